"""What a holder of a mailbox was handed, and what earlier ones are owed: its part in the mailbox's ledger.

Rules, beside those of `ledger`:

- Until the ledger of the mailbox was read it is not known what earlier holders are owed; what this one is
  handed meanwhile is kept on its own page, and goes into the ledger with it.
- Whoever finds in the mailbox what only a later holder can have written was replaced, and writes nothing.
- A journal, where there is one, is written before the ledger, and what is in it counts as handed over
  whatever the ledger says: the ledger is saved later, and a crash may come between.
- What is to be saved is taken together with the promise that it will be: when the saving fails, all of it is
  to be saved again.
"""

from __future__ import annotations

from typing import Protocol

from batchflow.ledger import Ledger, Page
from batchflow.wire import split_uid


class Record(Protocol):
    """Outlives the process, not the host: the uids of what was handed over."""

    def __contains__(self, uid: str, /) -> bool: ...

    def record(self, uid: str) -> None:
        """Return when it will not be forgotten. Raises OSError."""


class Account:
    """Of one incarnation of a session that can be found again by its name."""

    def __init__(self, incarnation: str, journal: Record | None = None) -> None:
        self.incarnation = incarnation
        self.loaded = False
        """Whether it is known what earlier holders are owed."""
        self.ledger = Ledger(pages={incarnation: Page()})
        self._journal = journal
        self._dirty = False

    @property
    def _page(self) -> Page:
        return self.ledger.pages[self.incarnation]

    def was_replaced(self, found: Ledger) -> bool:
        """Whether a later holder wrote what was found in the mailbox."""
        if self.loaded:
            return found.epoch > self.ledger.epoch
        return found.was_replaced(self.incarnation, self._page)

    def enter(self, found: Ledger) -> int:
        """Make this the holder, in what was found. Returns how many outcomes earlier ones are owed.

        It counts when it was saved: then `load` it.
        """
        return found.open(self.incarnation, self._page)

    def load(self, entered: Ledger) -> None:
        self.ledger = entered
        self.loaded = True

    def is_behind(self, submitted: int) -> bool:
        """Whether there is something to save; `submitted`: tasks that the broker has accepted or refused."""
        return self._dirty or self._page.submitted != submitted

    def to_save(self, submitted: int) -> bytes:
        """All that is known now; `not_saved` when it could not be saved."""
        self._page.submitted = submitted
        self._dirty = False
        return self.ledger.encode()

    def not_saved(self) -> None:
        self._dirty = True

    def consume(self, uid: str) -> None:
        """It was handed over, or will never come by mail. With a journal: raises OSError."""
        if self._journal is not None:
            self._journal.record(uid)
        self._dirty |= self.ledger.consume(*split_uid(uid))

    def is_consumed(self, uid: str) -> bool:
        """Whether somebody was shown it before; then it is not shown again."""
        if self._journal is not None and uid in self._journal:
            self._dirty |= self.ledger.consume(*split_uid(uid))
            return True
        return self.ledger.is_consumed(*split_uid(uid))

    def adopt(self, uid: str) -> bool:
        """Whether an outcome for an earlier holder is to be shown, which it is once."""
        return not self.is_consumed(uid) and self.ledger.adopt(*split_uid(uid))

    def is_owed(self, uid: str) -> bool:
        """Whether `enter` counted it."""
        return self.ledger.is_owed(*split_uid(uid))

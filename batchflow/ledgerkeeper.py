"""A session's ledger: kept in its mailbox, and in a journal on this host where one is asked for."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from batchflow.errors import ConfigurationError, MailboxInUse, ProtocolError
from batchflow.ledger import Ledger, Page, Ranges
from batchflow.wire import split_uid

if TYPE_CHECKING:
    from batchflow.broker import Mailbox
    from batchflow.session import Session

logger = logging.getLogger(__name__)

SAVE_INTERVAL: Final = 1.0
"""Seconds between two savings, at most, while there is something to save."""


class Journal:
    """Which outcomes were handed over on this host: an append-only file of uids, synced each time.

    Writes are a line each and are made in place: waiting for the disk is what is asked for. A line without an
    end was being written when the process died: nothing was handed over for it, and it goes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._known: dict[str, Ranges] = {}
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise ConfigurationError(f"journal {str(path)!r} cannot be used: {error}") from error
        try:
            self._read()
        except (OSError, UnicodeDecodeError, ProtocolError) as error:
            self._file.close()
            raise ConfigurationError(f"journal {str(path)!r} cannot be used: {error}") from error

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for line in whole.decode("ascii").splitlines():
            self._add(line)

    def _add(self, uid: str) -> bool:
        incarnation, sequence = split_uid(uid)
        return self._known.setdefault(incarnation, Ranges()).add(sequence)

    def __contains__(self, uid: str) -> bool:
        incarnation, sequence = split_uid(uid)
        return incarnation in self._known and sequence in self._known[incarnation]

    def record(self, uid: str) -> None:
        """Return when the disk has it. Raises OSError."""
        if uid not in self and not self._file.closed:
            self._file.write(f"{uid}\n".encode("ascii"))
            os.fsync(self._file.fileno())
            self._add(uid)

    def close(self) -> None:
        self._file.close()


class LedgerKeeper:
    """The ledger of a session that can be found again by its name."""

    def __init__(self, session: Session, journal: str | os.PathLike[str] | None) -> None:
        self._session = session
        self._ledger = Ledger(pages={session.incarnation: Page()})
        self._journal = None if journal is None else Journal(journal)
        self._dirty = False
        self.loaded = False
        """Whether it is known what earlier holders are owed."""

    async def load(self, mailbox: Mailbox) -> None:
        """Take the mailbox over from its earlier holders.

        Raises `BrokerError`: `MailboxInUse` when a later one had it before this one came to it.
        """
        session = self._session
        try:
            ledger = Ledger.decode(await mailbox.get_state())
        except ProtocolError as error:
            session._warn(f"what earlier holders of this mailbox have read is not known: {error}")
            ledger = Ledger()
        page = self._ledger.pages[session.incarnation]
        if ledger.was_replaced(session.incarnation, page):
            raise self._taken_over()
        owed = ledger.open(session.incarnation, page)
        await mailbox.set_state(ledger.encode())
        self._ledger = ledger
        session._tracker.expect(owed)
        self.loaded = True
        if owed:
            session._inform(f"{owed} outcomes are owed to earlier holders of this mailbox")
        session._changed()

    async def check(self, mailbox: Mailbox) -> None:
        """After the mailbox was lost and won again. Raises `MailboxInUse` when somebody had it meanwhile."""
        try:
            epoch = Ledger.decode(await mailbox.get_state()).epoch
        except ProtocolError:
            return
        if self.loaded and epoch > self._ledger.epoch:
            raise self._taken_over()

    def _taken_over(self) -> MailboxInUse:
        return MailboxInUse(f"taken over: another client has opened {self._session.name!r} meanwhile")

    async def save(self, mailbox: Mailbox) -> None:
        """Return when all that was consumed until now is saved. Raises `BrokerError`."""
        page = self._ledger.pages[self._session.incarnation]
        passed = self._session._outbox.passed
        if not self._dirty and page.submitted == passed:
            return
        page.submitted = passed
        self._dirty = False
        try:
            await mailbox.set_state(self._ledger.encode())
        except BaseException:
            self._dirty = True
            raise

    def consume(self, uid: str) -> None:
        """It was handed over, or will never come by mail. With a journal: raises OSError."""
        if self._journal is not None:
            self._journal.record(uid)
        self._dirty |= self._ledger.consume(*split_uid(uid))

    def is_consumed(self, uid: str) -> bool:
        """Whether somebody was shown it before; then it is not shown again."""
        if self._journal is not None and uid in self._journal:
            self._dirty |= self._ledger.consume(*split_uid(uid))
            return True
        return self._ledger.is_consumed(*split_uid(uid))

    def adopt(self, uid: str) -> bool:
        """Whether an outcome for an earlier holder is to be shown, which it is once."""
        owed = self.is_owed(uid)
        if self.is_consumed(uid):
            if owed:  # by the ledger; the journal knows better
                self._session._tracker.settle_owed()
            return False
        return self._ledger.adopt(*split_uid(uid))

    def is_owed(self, uid: str) -> bool:
        """Whether `load` counted it."""
        return self._ledger.is_owed(*split_uid(uid))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

"""The checkpoint of a mailbox: what each holder was handed, and what earlier holders are owed. Pure.

The checkpoint lies in the Service Bus session state. Rules:

- A message of results is completed only after a checkpoint that counts its outcomes as consumed was saved. So
  an outcome is in the mailbox, or in the checkpoint, or in both; never in neither.
- `epoch` grows with every holder. A holder that finds a higher epoch than its own was replaced, and writes
  nothing.
- A task is owed as long as it is below `submitted` of its incarnation and not consumed. What was submitted in
  the last moment before a crash may be missing from `submitted`; its outcome is shown when it comes.
- An incarnation of which everything is consumed is remembered for the next `REMEMBERED` ones: a message that
  was consumed and not completed is redelivered, and so may be the outcome of a task that ran twice.
- Until the checkpoint was read it is not known what earlier holders are owed; what this holder is handed
  meanwhile is kept as its own progress, and is saved with the checkpoint.
- `holder` is the incarnation that may have delivered more than the checkpoint counts. It is entered before
  the first outcome is received, and taken out by a save after which nothing is delivered. A later holder that
  finds it marks as `repeated` what the broker got before that holder had certainly lost the mailbox. So the
  mark depends neither on how a holder ended nor on holders in between.
- A journal, where there is one, is written before the checkpoint, and what is in it counts as delivered
  even if the checkpoint differs: the checkpoint is saved later, and a crash may come between.
- What is to be saved is taken together with the promise that it will be: when the saving fails, all of it is
  to be saved again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from batchflow.errors import ProtocolError
from batchflow.protocol.wire import split_uid
from batchflow.support.ranges import Ranges


class DeliveryJournal(Protocol):
    """The uids of what was delivered, kept beyond the process on this host."""

    def __contains__(self, uid: str, /) -> bool: ...

    def record(self, uid: str) -> None:
        """Return when the uid is stored. Raises `JournalError`."""


class DeliveryRecord:
    """What one incarnation of a session delivered; only a session with a name has a record."""

    def __init__(self, incarnation: str, journal: DeliveryJournal | None = None) -> None:
        self.incarnation = incarnation
        self.loaded: bool = False
        """Whether it is known what earlier holders are owed."""
        self.checkpoint: Checkpoint = Checkpoint(incarnations={incarnation: IncarnationProgress()})
        self._journal = journal
        self.beyond: Callable[[], list[tuple[int, int]]] = list
        """Returns the intervals of tasks above `submitted` that the broker has: others wait below them."""
        self._dirty = False
        self._saving_changes = False
        """Whether the save under way says more than that nothing is delivered any more."""

    @property
    def _progress(self) -> IncarnationProgress:
        return self.checkpoint.incarnations[self.incarnation]

    def was_replaced(self, found: Checkpoint) -> bool:
        """Tell whether a later holder wrote what was found in the mailbox."""
        if self.loaded:
            return found.epoch > self.checkpoint.epoch
        return found.was_replaced(self.incarnation, self._progress)

    def enter(self, found: Checkpoint, *, lost_by: float = 0.0) -> int:
        """Make this the holder in the checkpoint that was found. Returns the outcomes owed to earlier ones.

        Save it, then `load` it. `lost_by`: when the holder that was found had lost the mailbox, by the
        broker's clock.
        """
        return found.open(self.incarnation, self._progress, lost_by=lost_by)

    def load(self, entered: Checkpoint) -> None:
        self.checkpoint = entered
        self.loaded = True

    def is_behind(self, submitted: int, *, last: bool = False) -> bool:
        """Return whether there is something to save. `submitted`: tasks that the broker took or refused.

        `last`: see `to_save`.
        """
        progress = self._progress
        behind = self._dirty or progress.submitted != submitted or progress.beyond != self.beyond()
        return behind or (last and self.checkpoint.holder is not None)

    def to_save(self, submitted: int, *, last: bool = False) -> bytes:
        """Return the checkpoint to save. Call `not_saved` when the saving failed.

        `last`: nothing is delivered from now on, so that the checkpoint counts all that was.
        """
        self._saving_changes = self.is_behind(submitted)
        self.checkpoint.holder = None if last else self.incarnation
        self._progress.submitted = submitted
        self._progress.beyond = self.beyond()
        self._dirty = False
        return self.checkpoint.encode()

    def not_saved(self) -> None:
        self._dirty |= self._saving_changes
        self.checkpoint.holder = self.incarnation

    def consume(self, uid: str) -> None:
        """Note that an outcome was delivered. With a journal: raises `JournalError`, and it was not."""
        if self._journal is not None:
            self._journal.record(uid)
        self.withdraw(uid)

    def withdraw(self, uid: str) -> None:
        """Note that an outcome never comes in a message, so that no later holder waits for it."""
        self._dirty |= self.checkpoint.consume(*split_uid(uid))

    def is_consumed(self, uid: str) -> bool:
        """Return whether an outcome was delivered before; then it is not delivered again."""
        if self._journal is not None and uid in self._journal:
            self.withdraw(uid)
            return True
        return self.checkpoint.is_consumed(*split_uid(uid))

    def adopt(self, uid: str) -> bool:
        """Return whether to deliver an outcome for an earlier holder, which is done once."""
        return not self.is_consumed(uid) and self.checkpoint.adopt(*split_uid(uid))

    def note_sent(self, uid: str) -> None:
        """Note that the broker has a task of an earlier holder, which waited for others until now."""
        self._dirty |= self.checkpoint.note_sent(*split_uid(uid))

    def is_owed(self, uid: str) -> bool:
        """Return whether `enter` counted it."""
        return self.checkpoint.is_owed(*split_uid(uid))

    def may_be_repeated(self, enqueued_at: float, *, undated: bool) -> bool:
        """Return whether an earlier holder may have delivered an outcome that the broker got at this moment.

        `undated`: the moment says nothing. The message is a dead letter that was sent again, the outcome is
        not that of a run, or that holder had cancelled the task and may have told the outcome itself.
        """
        until = self.checkpoint.repeated_until
        return enqueued_at <= until or (undated and until > 0)


VERSION: Final = 1
"""The version of the document that is saved."""
UNKNOWN: Final = ""
"""The holder in a checkpoint that does not name it."""
REMEMBERED: Final = 500
"""Settled incarnations that a checkpoint keeps."""


@dataclass(slots=True)
class IncarnationProgress:
    """One incarnation of a session."""

    submitted: int = 0
    """Tasks that the broker has accepted or refused."""
    consumed: Ranges = field(default_factory=Ranges)
    beyond: list[tuple[int, int]] = field(default_factory=list)
    """Tasks above `submitted` that the broker has accepted or refused, while one below waits for others."""

    @classmethod
    def read(cls, fields: dict[str, Any]) -> IncarnationProgress:
        consumed = Ranges.of((int(first), int(last)) for first, last in fields["consumed"])
        beyond = [(int(first), int(last)) for first, last in fields.get("beyond", ())]
        return cls(int(fields["submitted"]), consumed, beyond)

    @property
    def owed(self) -> int:
        """Outcomes that are still to come."""
        owed = self.submitted - self.consumed.count_below(self.submitted)
        for first, last in self.beyond:
            consumed = self.consumed.count_below(last + 1) - self.consumed.count_below(first)
            owed += last - first + 1 - consumed
        return owed

    def is_owed(self, sequence: int) -> bool:
        """Return whether the broker had the task, and its outcome was not delivered."""
        return self._was_sent(sequence) and sequence not in self.consumed

    def note_sent(self, sequence: int) -> bool:
        """Note that the broker has a task above `submitted`. False when that was known."""
        if self._was_sent(sequence):
            return False
        sent = Ranges.of(self.beyond)
        sent.add(sequence)
        self.beyond = list(sent)
        return True

    def _was_sent(self, sequence: int) -> bool:
        return sequence < self.submitted or any(first <= sequence <= last for first, last in self.beyond)


@dataclass(slots=True)
class Checkpoint:
    """All incarnations of a session that are owed something, and the present one."""

    epoch: int = 0
    incarnations: dict[str, IncarnationProgress] = field(default_factory=dict)
    holder: str | None = None
    """The incarnation that may have delivered more than is consumed here; None: there is none.

    `UNKNOWN` in a document of a batchflow that did not write it.
    """
    repeated_until: float = 0.0
    """Earlier holders may have delivered what the broker got until then. By the broker's clock."""
    _adopted: dict[str, Ranges] = field(default_factory=dict)
    """Outcomes for earlier holders that this one has, shown or to be shown. Not saved."""

    def open(
        self, incarnation: str, progress: IncarnationProgress | None = None, *, lost_by: float = 0.0
    ) -> int:
        """Begin a new holder. Returns how many outcomes earlier ones are owed.

        `progress`: its own, if it consumed outcomes before it could read the checkpoint. `lost_by`: see
        `DeliveryRecord.enter`.
        """
        if self.holder not in (None, incarnation):
            self.repeated_until = max(self.repeated_until, lost_by)
        self.holder = incarnation
        self.epoch += 1
        settled = [name for name, progress in self.incarnations.items() if not progress.owed]
        for name in settled[:-REMEMBERED]:
            del self.incarnations[name]
        owed = sum(progress.owed for progress in self.incarnations.values())
        self.incarnations[incarnation] = progress or IncarnationProgress()
        return owed

    def consume(self, incarnation: str, sequence: int) -> bool:
        """Note that an outcome was delivered, or dropped for good. False when it had been before."""
        return self.incarnations.setdefault(incarnation, IncarnationProgress()).consumed.add(sequence)

    def note_sent(self, incarnation: str, sequence: int) -> bool:
        """Note that the broker has a task of an earlier incarnation. False when that was known."""
        progress = self.incarnations.setdefault(incarnation, IncarnationProgress())
        return progress.note_sent(sequence)

    def was_replaced(self, incarnation: str, progress: IncarnationProgress) -> bool:
        """Return whether another holder consumed outcomes of this one, whose own `progress` this is."""
        found = self.incarnations.get(incarnation)
        return found is not None and not progress.consumed.covers(found.consumed)

    def is_consumed(self, incarnation: str, sequence: int) -> bool:
        progress = self.incarnations.get(incarnation)
        return progress is not None and sequence in progress.consumed

    def is_owed(self, incarnation: str, sequence: int) -> bool:
        """Return whether it was counted as to come when this holder began."""
        progress = self.incarnations.get(incarnation)
        return progress is not None and progress.is_owed(sequence)

    def adopt(self, incarnation: str, sequence: int) -> bool:
        """Note an outcome for an earlier holder. False when it had come, or had been consumed, before."""
        if self.is_consumed(incarnation, sequence):
            return False
        return self._adopted.setdefault(incarnation, Ranges()).add(sequence)

    def encode(self) -> bytes:
        incarnations = {
            name: {"submitted": progress.submitted, "consumed": list(progress.consumed)}
            | ({"beyond": progress.beyond} if progress.beyond else {})
            for name, progress in self.incarnations.items()
        }
        document = {
            "v": VERSION,
            "epoch": self.epoch,
            "pages": incarnations,
            "holder": self.holder,
            "repeated_until": self.repeated_until,
        }
        return zlib.compress(orjson.dumps(document), 1)

    @classmethod
    def decode(cls, data: bytes | None) -> Checkpoint:
        """Read a checkpoint; an empty one for None. Raises `ProtocolError`."""
        if data is None:
            return cls()
        try:
            document: dict[str, Any] = orjson.loads(zlib.decompress(data))
            if document["v"] > VERSION:
                raise ProtocolError(
                    f"a mailbox's checkpoint of version {document['v']}: install a newer batchflow"
                )
            incarnations = {
                str(name): IncarnationProgress.read(progress) for name, progress in document["pages"].items()
            }
            return cls(
                int(document["epoch"]),
                incarnations,
                document.get("holder", UNKNOWN),
                float(document.get("repeated_until", 0.0)),
            )
        except (zlib.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"a mailbox's checkpoint that cannot be read: {error!r}") from error

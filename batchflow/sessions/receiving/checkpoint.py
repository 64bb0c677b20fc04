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
- A journal, where there is one, is written before the checkpoint, and what is in it counts as delivered
  even if the checkpoint differs: the checkpoint is saved later, and a crash may come between.
- What is to be saved is taken together with the promise that it will be: when the saving fails, all of it is
  to be saved again.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from batchflow.errors import ProtocolError
from batchflow.protocol.wire import split_uid


class DeliveryJournal(Protocol):
    """The uids of what was delivered, kept beyond the process on this host."""

    def __contains__(self, uid: str, /) -> bool: ...

    def record(self, uid: str) -> None:
        """Return when the uid is stored. Raises OSError."""


class DeliveryRecord:
    """What one incarnation of a session delivered; only a session with a name has a record."""

    def __init__(self, incarnation: str, journal: DeliveryJournal | None = None) -> None:
        self.incarnation = incarnation
        self.loaded: bool = False
        """Whether it is known what earlier holders are owed."""
        self.checkpoint: Checkpoint = Checkpoint(incarnations={incarnation: IncarnationProgress()})
        self._journal = journal
        self._dirty = False

    @property
    def _progress(self) -> IncarnationProgress:
        return self.checkpoint.incarnations[self.incarnation]

    def was_replaced(self, found: Checkpoint) -> bool:
        """Tell whether a later holder wrote what was found in the mailbox."""
        if self.loaded:
            return found.epoch > self.checkpoint.epoch
        return found.was_replaced(self.incarnation, self._progress)

    def enter(self, found: Checkpoint) -> int:
        """Make this the holder in the checkpoint that was found. Returns the outcomes owed to earlier ones.

        Save it, then `load` it.
        """
        return found.open(self.incarnation, self._progress)

    def load(self, entered: Checkpoint) -> None:
        self.checkpoint = entered
        self.loaded = True

    def is_behind(self, submitted: int) -> bool:
        """Return whether there is something to save. `submitted`: tasks that the broker took or refused."""
        return self._dirty or self._progress.submitted != submitted

    def to_save(self, submitted: int) -> bytes:
        """Return the checkpoint to save. Call `not_saved` when the saving failed."""
        self._progress.submitted = submitted
        self._dirty = False
        return self.checkpoint.encode()

    def not_saved(self) -> None:
        self._dirty = True

    def consume(self, uid: str) -> None:
        """Note that an outcome was delivered, or never comes in a message. With a journal: raises OSError."""
        if self._journal is not None:
            self._journal.record(uid)
        self._dirty |= self.checkpoint.consume(*split_uid(uid))

    def is_consumed(self, uid: str) -> bool:
        """Return whether an outcome was delivered before; then it is not delivered again."""
        if self._journal is not None and uid in self._journal:
            self._dirty |= self.checkpoint.consume(*split_uid(uid))
            return True
        return self.checkpoint.is_consumed(*split_uid(uid))

    def adopt(self, uid: str) -> bool:
        """Return whether to deliver an outcome for an earlier holder, which is done once."""
        return not self.is_consumed(uid) and self.checkpoint.adopt(*split_uid(uid))

    def is_owed(self, uid: str) -> bool:
        """Return whether `enter` counted it."""
        return self.checkpoint.is_owed(*split_uid(uid))


VERSION: Final = 1
"""The version of the document that is saved."""
REMEMBERED: Final = 500
"""Settled incarnations that a checkpoint keeps."""


@dataclass(slots=True)
class Ranges:
    """A set of whole numbers that mostly stand in rows: disjoint intervals, both ends included, sorted."""

    _firsts: list[int] = field(default_factory=list)
    _lasts: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, intervals: Iterable[tuple[int, int]]) -> Ranges:
        """Make a set of intervals. Raises ValueError when they are not sorted or not disjoint."""
        ranges = cls()
        for first, last in intervals:
            if first > last or (ranges._lasts and first <= ranges._lasts[-1] + 1):
                raise ValueError(f"interval {first}..{last} is out of order")
            ranges._firsts.append(first)
            ranges._lasts.append(last)
        return ranges

    def add(self, number: int) -> bool:
        """Add a number; return False when it was there already."""
        firsts, lasts = self._firsts, self._lasts
        at = bisect_right(firsts, number)
        if at and number <= lasts[at - 1]:
            return False
        after_left = at > 0 and lasts[at - 1] == number - 1
        before_right = at < len(firsts) and firsts[at] == number + 1
        if after_left and before_right:
            lasts[at - 1] = lasts.pop(at)
            del firsts[at]
        elif after_left:
            lasts[at - 1] = number
        elif before_right:
            firsts[at] = number
        else:
            firsts.insert(at, number)
            lasts.insert(at, number)
        return True

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number)
        return at > 0 and number <= self._lasts[at - 1]

    def covers(self, other: Ranges) -> bool:
        """Tell whether all members of the other one are in this."""
        for first, last in other:
            at = bisect_right(self._firsts, first)
            if not at or last > self._lasts[at - 1]:
                return False
        return True

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the intervals."""
        return zip(self._firsts, self._lasts, strict=True)

    def count_below(self, limit: int) -> int:
        """Return how many members are below `limit`."""
        return sum(min(last, limit - 1) - first + 1 for first, last in self if first < limit)


@dataclass(slots=True)
class IncarnationProgress:
    """One incarnation of a session."""

    submitted: int = 0
    """Tasks that the broker has accepted or refused."""
    consumed: Ranges = field(default_factory=Ranges)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> IncarnationProgress:
        consumed = Ranges.of((int(first), int(last)) for first, last in fields["consumed"])
        return cls(int(fields["submitted"]), consumed)

    @property
    def owed(self) -> int:
        """Outcomes that are still to come."""
        return self.submitted - self.consumed.count_below(self.submitted)


@dataclass(slots=True)
class Checkpoint:
    """All incarnations of a session that are owed something, and the present one."""

    epoch: int = 0
    incarnations: dict[str, IncarnationProgress] = field(default_factory=dict)
    _adopted: dict[str, Ranges] = field(default_factory=dict)
    """Outcomes for earlier holders that this one has, shown or to be shown. Not saved."""

    def open(self, incarnation: str, progress: IncarnationProgress | None = None) -> int:
        """Begin a new holder. Returns how many outcomes earlier ones are owed.

        `progress`: its own, if it consumed outcomes before it could read the checkpoint.
        """
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
        return progress is not None and sequence < progress.submitted and sequence not in progress.consumed

    def adopt(self, incarnation: str, sequence: int) -> bool:
        """Note an outcome for an earlier holder. False when it had come, or had been consumed, before."""
        if self.is_consumed(incarnation, sequence):
            return False
        return self._adopted.setdefault(incarnation, Ranges()).add(sequence)

    def encode(self) -> bytes:
        incarnations = {
            name: {"submitted": progress.submitted, "consumed": list(progress.consumed)}
            for name, progress in self.incarnations.items()
        }
        document = {"v": VERSION, "epoch": self.epoch, "pages": incarnations}
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
            return cls(int(document["epoch"]), incarnations)
        except (zlib.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"a mailbox's checkpoint that cannot be read: {error!r}") from error

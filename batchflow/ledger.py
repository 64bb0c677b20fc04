"""What travels with a mailbox: which of its tasks were handed over, so that a later holder can go on.

The ledger lies in the Service Bus session state. Rules:

- A message of results is completed only after a ledger that counts its outcomes as consumed was saved. So an
  outcome is in the mailbox, or in the ledger, or both; never in neither.
- `epoch` grows with every holder. A holder that finds a higher one than its own was replaced.
- A task is owed as long as it is below `submitted` of its incarnation and not consumed. What was submitted in
  the last moment before a crash may be missing from `submitted`; its outcome is shown when it comes.
- An incarnation of which everything is consumed is remembered for the next `REMEMBERED` ones: mail that was
  consumed and not completed comes again, and so may the outcome of a task that ran twice.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from batchflow.errors import ProtocolError

VERSION: Final = 1
REMEMBERED: Final = 500


@dataclass(slots=True)
class Ranges:
    """A set of whole numbers that mostly stand in rows: disjoint intervals, both ends included, sorted."""

    _firsts: list[int] = field(default_factory=list)
    _lasts: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, intervals: Iterable[tuple[int, int]]) -> Ranges:
        """Raises ValueError for what is not sorted or not disjoint."""
        ranges = cls()
        for first, last in intervals:
            if first > last or (ranges._lasts and first <= ranges._lasts[-1] + 1):
                raise ValueError(f"interval {first}..{last} is out of order")
            ranges._firsts.append(first)
            ranges._lasts.append(last)
        return ranges

    def add(self, number: int) -> bool:
        """False when it was there already."""
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
        """Whether all members of the other one are in this."""
        for first, last in other:
            at = bisect_right(self._firsts, first)
            if not at or last > self._lasts[at - 1]:
                return False
        return True

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The intervals."""
        return zip(self._firsts, self._lasts, strict=True)

    def count_below(self, limit: int) -> int:
        """How many members are below `limit`."""
        return sum(min(last, limit - 1) - first + 1 for first, last in self if first < limit)


@dataclass(slots=True)
class Page:
    """One incarnation of a session."""

    submitted: int = 0
    """Tasks that the broker has accepted or refused."""
    consumed: Ranges = field(default_factory=Ranges)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Page:
        consumed = Ranges.of((int(first), int(last)) for first, last in fields["consumed"])
        return cls(int(fields["submitted"]), consumed)

    @property
    def owed(self) -> int:
        """Outcomes that are still to come."""
        return self.submitted - self.consumed.count_below(self.submitted)


@dataclass(slots=True)
class Ledger:
    """All incarnations of a session that are owed something, and the present one."""

    epoch: int = 0
    pages: dict[str, Page] = field(default_factory=dict)
    _adopted: dict[str, Ranges] = field(default_factory=dict)
    """Outcomes for earlier holders that this one has, shown or to be shown. Not saved."""

    def open(self, incarnation: str, page: Page | None = None) -> int:
        """A new holder begins. Returns how many outcomes earlier ones are owed.

        `page`: its own, where it consumes before it can read the ledger.
        """
        self.epoch += 1
        settled = [name for name, page in self.pages.items() if not page.owed]
        for name in settled[:-REMEMBERED]:
            del self.pages[name]
        owed = sum(page.owed for page in self.pages.values())
        self.pages[incarnation] = page or Page()
        return owed

    def consume(self, incarnation: str, sequence: int) -> bool:
        """An outcome was handed over, or dropped for good. False when it had been before."""
        return self.pages.setdefault(incarnation, Page()).consumed.add(sequence)

    def was_replaced(self, incarnation: str, page: Page) -> bool:
        """Whether somebody else was handed outcomes of this holder, of which it knows only its `page`."""
        found = self.pages.get(incarnation)
        return found is not None and not page.consumed.covers(found.consumed)

    def is_consumed(self, incarnation: str, sequence: int) -> bool:
        page = self.pages.get(incarnation)
        return page is not None and sequence in page.consumed

    def is_owed(self, incarnation: str, sequence: int) -> bool:
        """Whether it was counted as to come when this holder began."""
        page = self.pages.get(incarnation)
        return page is not None and sequence < page.submitted and sequence not in page.consumed

    def adopt(self, incarnation: str, sequence: int) -> bool:
        """An outcome for an earlier holder came. False when it had come, or had been consumed, before."""
        if self.is_consumed(incarnation, sequence):
            return False
        return self._adopted.setdefault(incarnation, Ranges()).add(sequence)

    def encode(self) -> bytes:
        pages = {
            name: {"submitted": page.submitted, "consumed": list(page.consumed)}
            for name, page in self.pages.items()
        }
        document = {"v": VERSION, "epoch": self.epoch, "pages": pages}
        return zlib.compress(orjson.dumps(document), 1)

    @classmethod
    def decode(cls, data: bytes | None) -> Ledger:
        """An empty one for None. Raises `ProtocolError`."""
        if data is None:
            return cls()
        try:
            document: dict[str, Any] = orjson.loads(zlib.decompress(data))
            if document["v"] > VERSION:
                raise ProtocolError(
                    f"a mailbox's ledger of version {document['v']}: install a newer batchflow"
                )
            pages = {str(name): Page.read(page) for name, page in document["pages"].items()}
            return cls(int(document["epoch"]), pages)
        except (zlib.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"a mailbox's ledger that cannot be read: {error!r}") from error

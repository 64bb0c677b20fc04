"""Sets of whole numbers that mostly stand in rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


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

"""The random graphs of a chaos run, and what their tasks note of themselves.

A task appends a line to a file when it begins and when it ends, in one write each: a killed one has no end.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.model.history import Finished, Started

_SIZE: Final = 10
"""Tasks of a graph, one after another; no task waits for one of another graph."""
_FAILING: Final = 40
"""One in so many fails."""


@dataclass(frozen=True, slots=True)
class Node:
    """A task of a graph."""

    takes: Sequence[int]
    """The numbers of the tasks that it takes the values of."""
    after: Sequence[int]
    """The numbers of the tasks that it waits for otherwise."""
    passes: bool
    """Whether it also runs after those that failed."""
    fails: bool


def node(client: str, number: int) -> Node:
    """The task of that number: the same in every process."""
    chance = zlib.crc32(f"graph:{client}:{number}".encode())
    before = number % _SIZE
    waits = sorted({number - before + (chance >> shift) % before for shift in (4, 9, 14)}) if before else []
    if chance % 4 == 0:
        waits = []
    values = (chance >> 19) % (len(waits) + 1)
    return Node(
        takes=waits[:values],
        after=waits[values:],
        passes=(chance >> 22) % 5 == 0,
        fails=(chance >> 24) % _FAILING == 0,
    )


def noted(lines: Iterable[str]) -> Iterator[Started | Finished]:
    """What the tasks have noted, in its order."""
    for line in lines:
        kind, at, task, what = json.loads(line)
        yield Started(at, task, what) if kind == "begin" else Finished(at, task, what)

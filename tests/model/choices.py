"""Where the model's decisions come from: a tree that is walked to its end, or chance.

A run of the model asks for decisions and does nothing else that could differ, so that the answers to its
questions are the run. The tree is walked depth first: each run repeats the answers of the one before up to
the last question that has an answer left, and takes the default, 0, from there on. Bounds: how many faults a
run may have, and how often it may depart from the default order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Protocol


class Choices(Protocol):
    """What a run asks."""

    def order(self, options: int) -> int:
        """Which of those that could move does so; 0: whoever waits longest."""
        ...

    def fault(self, options: int) -> int:
        """Which fault happens here; 0: none."""
        ...

    def pick(self, options: int) -> int:
        """Anything else."""
        ...


class Scripted:
    """The answers of a list, then defaults, within bounds."""

    def __init__(self, script: list[int], *, faults: int, departures: int) -> None:
        self.asked: list[tuple[int, int]] = []
        """Each answer, and how many there were."""
        self._script = script
        self._faults = faults
        self._departures = departures

    def order(self, options: int) -> int:
        answer = self._answer(min(options, 1 + self._departures))
        self._departures -= answer
        return answer

    def fault(self, options: int) -> int:
        answer = self._answer(options if self._faults else 1)
        self._faults -= answer > 0
        return answer

    def pick(self, options: int) -> int:
        return self._answer(options)

    def _answer(self, options: int) -> int:
        if options == 1:
            return 0
        at = len(self.asked)
        answer = self._script[at] if at < len(self._script) else 0
        self.asked.append((answer, options))
        return answer


class Chance:
    """A seed's answers: `rate` faults for each thing that happens, `most` in all."""

    def __init__(self, seed: int, rate: float, most: int) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._left = most
        self._until_next = self._gap()

    def order(self, options: int) -> int:
        return int(self._random.random() * options)

    def fault(self, options: int) -> int:
        if self._until_next or not self._left:
            self._until_next -= 1
            return 0
        self._left -= 1
        self._until_next = self._gap()
        return 1 + int(self._random.random() * (options - 1))

    def pick(self, options: int) -> int:
        return int(self._random.random() * options)

    def _gap(self) -> int:
        """How many things go well before the next fault: a draw for each would cost more than the rest."""
        if not self._rate:
            return -1
        return int(math.log(1.0 - self._random.random()) / math.log(1.0 - self._rate))


def explore(run: Callable[[Scripted], object], *, faults: int, departures: int) -> Iterator[list[int]]:
    """Call `run` once for each way through its decisions; yields the answers that were given."""
    script: list[int] = []
    while True:
        choices = Scripted(script, faults=faults, departures=departures)
        run(choices)
        yield [answer for answer, _ in choices.asked]
        following = _following(choices.asked)
        if following is None:
            return
        script = following


def _following(asked: list[tuple[int, int]]) -> list[int] | None:
    """The answers up to the last question that has one left, with that one."""
    for at in range(len(asked) - 1, -1, -1):
        answer, options = asked[at]
        if answer + 1 < options:
            return [before for before, _ in asked[:at]] + [answer + 1]
    return None

"""How long tasks take on this node, and what the scheduler makes of it. Pure.

Rules:

- Each command has its mean duration, and there is one over all tasks. Nothing is known of a command before
  the first of it has ended.
- What follows in a slot is a matter of `AHEAD` seconds together with what the slot has to do.
- A message is worth having before a slot is free while tasks take less than `SHORT` seconds on average;
  unless more than `NEAR` seconds of work for each slot follow what runs, and the latest of it has not begun:
  that counts as the one in advance; or more than `SOON` seconds have not begun at all: another agent may need
  the message sooner.
- A task is a straggler after `STRAGGLER` seconds and, where tasks are short, `LAGGING` times the usual. Many
  tasks that wait behind stragglers wait at least as long as their copies would take.
- While every slot is busy `MOST_WAIT` seconds of work for each may wait, as far as it is known.
- Tasks are spread over the free slots, because that costs no messages here. Otherwise a pack stays whole.
- Results leave as they come, but wait up to `HOLD` seconds while short companions are worked off, and longer,
  up to `LOADED_HOLD`, while there are more of these to do: the tasks themselves have waited longer. So they
  do, for a share of that time, while messages lie in the queue for long before an agent takes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchflow.protocol.durations import Durations
from batchflow.protocol.packing import MOST_TASKS, MOST_WORK, Pack
from node_agent.scheduling.state import AT_WORK, SlotState, Task, can_recall, following

SHORT: Final = 0.1
"""Seconds: tasks below this are worth a message in advance."""
AHEAD: Final = 0.15
"""Seconds of expected work in a slot, with what follows: a full pack, and the end of the one before it."""
NEAR: Final = 0.005
SOON: Final = 0.05
"""Seconds of work in which a message comes from a broker that is far."""
STRAGGLER: Final = 0.1
LAGGING: Final = 3.0
"""Times the usual duration: a task is no straggler sooner."""
COPY: Final = 0.001
"""Seconds for each task that waits behind stragglers: what its copy would cost this agent and the next one. A
straggler that has lasted for longer may be expected to go on for as long again."""
MOST_WAIT: Final = 1.0
"""Seconds of work for each slot that may wait while they are busy. A pack is much less, unless its sender did
not know how long its tasks take; it was a small part of what there was to do, even so."""
HOLD: Final = 0.01
"""Seconds that a result waits for those of its companions, while these are being worked off: of a pack of
short tasks that saves four messages out of five. Where the broker is far, sends take longer by themselves."""
LOADED_HOLD: Final = 0.1
"""The same while there is short work for longer than this: as long as what a pack holds then takes."""
PACK_WORK: Final = 2 * MOST_WORK
"""Seconds of work that a slot is given at once: more than a message holds, so that packs stay whole."""

OF_AGE: Final = 0.1
"""What a result waits for others, of the seconds that the latest message was in the queue."""
AGED_HOLD: Final = 0.25
"""Seconds that it waits at most for that reason."""
_HOLDS: Final = (LOADED_HOLD, 0.06, 0.03)
"""Seconds: what is chosen from while there is short work for longer; else `HOLD`."""
_UNKNOWN: Final = 0.05
"""Seconds that the first tasks are taken for."""
_ROUNDING: Final = 1 + 1e-9
_REMEMBERED: Final = 8192
"""Commands; then it begins anew."""
_WEIGHT: Final = 0.2
"""Of the latest duration in the mean."""


def hold(left: float) -> float:
    """Return the seconds that a result waits for others; `left`: seconds of short work for every slot."""
    return next((seconds for seconds in _HOLDS if left > seconds), HOLD)


@dataclass(slots=True)
class LoadPolicy:
    """Of an agent of so many slots."""

    slots: int
    _durations: Durations = field(default_factory=Durations)
    age: float = 0.0
    """Seconds that the latest message was in the broker."""
    _mean: float | None = None
    """Seconds that tasks have taken."""

    def learn(self, task: Task, duration: float) -> None:
        """Note that a task took so many seconds."""
        if len(self._durations.means) >= _REMEMBERED:
            self._durations.means.clear()
        self._durations.seen(task.command, duration)
        self._mean = duration if self._mean is None else self._mean + _WEIGHT * (duration - self._mean)

    def expected(self, task: Task) -> float:
        """Return the seconds that a task is expected to take; infinite where nothing is known."""
        return self._durations.expected(task.command)

    def guess(self, task: Task) -> float:
        """Return the seconds that a task is taken for: those of its like, else of all tasks."""
        return self._durations.means.get(task.command, self._mean or _UNKNOWN)

    @property
    def is_short(self) -> bool:
        """Whether tasks have been so short that one more may wait until a slot is free."""
        return self._mean is not None and self._mean < SHORT

    def hold(self, slots: Iterable[SlotState], waiting: int) -> float:
        """Return the seconds that a result waits for others; 0 when none is on its way that comes within
        them."""
        busy = [slot for slot in slots if slot.tasks]
        standing = waiting + sum(len(slot.tasks) for slot in busy)
        seconds = max(hold(standing * (self._mean or 0.0) / self.slots), min(AGED_HOLD, OF_AGE * self.age))
        shared = (slot for slot in busy if slot.shared)
        return seconds if any(self.expected(slot.tasks[0]) <= seconds for slot in shared) else 0.0

    def pack(self, tasks: int, free: int) -> Pack:
        """Return an empty pack: what one slot is given of so many tasks, while so many slots are free."""
        share = tasks / max(1, free)
        most = min(MOST_TASKS, max(1, math.ceil(share)))
        return Pack(self._durations.means, most, most_work=PACK_WORK, waiting=share)

    def work(self, tasks: Iterable[Task]) -> float:
        """Return the seconds that these tasks are expected to take together."""
        return sum(map(self.expected, tasks))

    def may_follow(self, tasks: Iterable[Task], slot: SlotState) -> bool:
        """Return whether these are little enough to stand behind what the slot has."""
        return self.work(slot.tasks) + self.work(tasks) <= AHEAD * _ROUNDING

    def is_message_worth_having(self, slots: Iterable[SlotState]) -> bool:
        """Return whether a message is worth having before one of these slots, all busy, is free."""
        if self._mean is None or self._mean >= SHORT:
            return False
        unbegun = follow = 0
        for slot in slots:
            unbegun += max(0, len(slot.tasks) - 1)
            follow += following(slot)
        return unbegun * self._mean <= SOON * self.slots and follow * self._mean <= NEAR * self.slots

    @property
    def patience(self) -> float:
        """Seconds that one task may take before it is a straggler. Where they are long none has company that
        was meant for it, and what waits behind one must not wait for long."""
        mean = self._mean or 0.0
        return max(STRAGGLER, LAGGING * mean if mean < SHORT else 0.0)

    def lag_deadline(self, slot: SlotState) -> float | None:
        """Return when a slot's first task holds up those behind it for too long; None when it holds up
        none."""
        return slot.moved_at + self.patience if can_recall(slot) else None

    def straggler_deadline(self, slots: Sequence[SlotState], waiting: int) -> float | None:
        """Return when every slot has run one task for too long; None when one of them does something else."""
        if any(slot.phase not in AT_WORK for slot in slots):
            return None
        return max(slot.moved_at for slot in slots) + max(self.patience, COPY * waiting)

    def max_waiting(self, waiting: Collection[Task]) -> int:
        """Return how many of those that wait may go on, as far as it is known how long they take: one for
        each slot, which may just be about to become free, and more while they are short."""
        most = MOST_WAIT * self.slots
        if len(waiting) * (self._mean or 0.0) <= most:
            return len(waiting)
        work, kept = 0.0, 0
        for task in waiting:
            work += self._durations.means.get(task.command, 0.0)
            if work > most and kept >= self.slots:
                break
            kept += 1
        return kept

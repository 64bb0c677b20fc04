"""What running tasks have of their node beside one slot each, and which tasks the node can take. Pure.

Rules:

- A task that requires several slots runs in one of them, and keeps the others free. Memory and GPUs that a
  task requires are its own among the tasks that require some. Nothing is measured.
- A task that the node can never take goes back to the queue, where another agent finds it. Each hand back
  comes later than the one before, from `FIRST` to `MISFIT` seconds.
- A task that the node cannot take yet holds up those behind it for `HELD_UP` seconds at most. While it does,
  slots become free for it. Then it goes back to the queue for some time. For `PAUSE` seconds after that the
  agent holds no slot for such a task, so all of them together hold others up no longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchflow.protocol.needs import ALL, KnownNode, Needs
from batchflow.protocol.wire import TaskItem
from node_agent.scheduling.events import HandBack
from node_agent.scheduling.state import Task

FIRST: Final = 0.05
MISFIT: Final = 2.0
"""Seconds before another agent sees a task, at most, that this node can never run."""
NOT_YET: Final = 10.0
"""The same of one that does not fit beside what runs."""
HELD_UP: Final = 0.75
"""Seconds: less than the one that is promised, because the tasks behind it are yet to be placed."""
PAUSE: Final = 10.0


@dataclass(slots=True)
class Reservations:
    """Of one agent."""

    node: KnownNode
    held: dict[int, Needs] = field(default_factory=dict)
    """What the tasks that run require, by their slots; only of those that reserve something."""
    extra: int = 0
    """Slots that are kept free for them."""
    _blocked: int | None = None
    """The number of the task that holds others up."""
    _blocked_since: float = 0.0
    _paused_until: float = float("-inf")

    def width(self, task: Task) -> int:
        """Return how many slots a task occupies."""
        return 1 if task.needs is None else self._slots(task.needs)

    def fits(self, task: Task, free: int) -> bool:
        """Return whether a task can run beside what runs, while so many slots are free."""
        if (needs := task.needs) is None:
            return free > 0
        if self.width(task) > free:
            return False
        memory = self.node.memory
        used = sum(each.memory for each in self.held.values())
        if needs.memory and memory is not None and used + needs.memory > memory:
            return False
        return not needs.gpus or sum(each.gpus for each in self.held.values()) + needs.gpus <= self.node.gpus

    def take(self, slot: int, task: Task) -> None:
        """Note that a task is placed in this slot."""
        if task.needs is not None:
            self.held[slot] = task.needs
            self.extra += self._slots(task.needs) - 1

    def release(self, slot: int) -> None:
        """Note that nothing runs in this slot any more."""
        if (needs := self.held.pop(slot, None)) is not None:
            self.extra -= self._slots(needs) - 1

    def _slots(self, needs: Needs) -> int:
        return self.node.slots if needs.slots == ALL else needs.slots

    def misfit(self, task: Task) -> HandBack | None:
        """Return the copy of a task that has arrived, if this node can never run it."""
        return None if self.lack(task) is None else _back(task, MISFIT)

    def lack(self, task: Task) -> str | None:
        """Return what this node lacks for a task, however idle it is, in words; None: nothing."""
        needs = needs_of(task.item)
        return None if needs is None else needs.lacking(self.node)

    def held_up(self, task: Task | None, free: int, now: float) -> HandBack | None:
        """Return the copy of the next task if it has held up others for long enough.

        `task`: the first that waits; `free`: slots that are free.
        """
        if task is None or task.needs is None or not free or self.fits(task, free):
            self._blocked = None
            return None
        if self._blocked != task.number:
            self._blocked, self._blocked_since = task.number, now
        if now < self._paused_until or now >= self._blocked_since + HELD_UP:
            if now >= self._paused_until:
                self._paused_until = now + PAUSE
            self._blocked = None
            return _back(task, NOT_YET)
        return None

    def next_deadline(self) -> float | None:
        """Return when a task will have held up others for long enough."""
        return None if self._blocked is None else self._blocked_since + HELD_UP


def needs_of(item: TaskItem) -> Needs | None:
    """Return what a task requires. Raises ValueError for what cannot be read."""
    return None if item.requires is None else Needs.read(item.requires)


def reserved(item: TaskItem) -> Needs | None:
    """Return what a task requires if it reserves something; None: it takes one slot of any node that fits."""
    needs = needs_of(item)
    return needs if needs is not None and needs.reserves else None


def _back(task: Task, most: float) -> HandBack:
    return HandBack(task.number, delay=min(most, FIRST * 2.0 ** min(task.item.hop, 16)), reason="needs")

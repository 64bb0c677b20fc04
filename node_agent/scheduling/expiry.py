"""When the tasks that an agent holds expire: those that have not begun until then never do. Pure.

A task expires by the broker's clock: the agent knows how old its message was when the broker locked it, and
counts from there. A task that has begun expires no more, also where it is handed back or tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from batchflow.model import Status
from batchflow.protocol.dead_letters import EXPIRED
from node_agent.scheduling.events import Verdict
from node_agent.scheduling.state import Task

TOO_LATE: Final = Verdict(Status.FAILED, EXPIRED.kind, EXPIRED.error)


@dataclass(slots=True)
class Expiries:
    """The moments at which tasks expire."""

    spare: int = 1024
    """How many moments of settled tasks are kept at least, so that their removal costs little."""
    _moments: list[tuple[float, int]] = field(default_factory=list)
    """A heap of moments and numbers of tasks. Those of tasks that began, or are settled, may stay in it."""

    def take_in(self, task: Task, age: float, now: float) -> None:
        """Note when a task expires that has just arrived.

        `age`: seconds that its message is old, rather too few than too many.
        """
        if task.item.expires is not None:
            task.expires_at = now + task.item.expires - age
            self.watch(task)

    def watch(self, task: Task) -> None:
        """Have `due` name a task when it expires."""
        if task.expires_at < inf:
            heappush(self._moments, (task.expires_at, task.number))

    def due(self, now: float) -> list[int]:
        """Return the numbers of the tasks whose moment has come, and forget these."""
        found: list[int] = []
        while self._moments and self._moments[0][0] <= now:
            found.append(heappop(self._moments)[1])
        return found

    def prune(self, tasks: Mapping[int, Task]) -> None:
        """Forget the moments of settled tasks, once they outnumber the others.

        `tasks`: those that are not settled, by their numbers.
        """
        if len(self._moments) > 2 * len(tasks) + self.spare:
            numbers = {number for _, number in self._moments} & tasks.keys()
            left = [(tasks[number].expires_at, number) for number in numbers]
            self._moments = [each for each in left if each[0] < inf]
            heapify(self._moments)

    def next_deadline(self) -> float | None:
        """Return when the next task expires."""
        return self._moments[0][0] if self._moments else None


def is_expired(task: Task, now: float) -> bool:
    """Return whether a task that has not begun is too late."""
    return task.expires_at <= now

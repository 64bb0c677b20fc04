"""Counts the processes of running tasks, so that a fork bomb is found, ended and told as what it was.

The limit is of processes and threads together, those that have ended and were not waited for included: the
node's numbers are what runs out.

To read the whole process table all the time would cost more than most tasks do. While a task runs, one number
is read: how many processes and threads the node has. Only when that has grown by what the largest task was
short of the limit, or `LONGEST` seconds have passed, are the tasks counted one by one.

Counting takes long when thousands want to run. Then all tasks stand still while they are counted, and those
within the limit go on.

A bomb that is quicker than the looks meets the kernel: where the agent is not root, its tasks' processes have
an RLIMIT_NPROC (`most_processes`), which stops them and leaves the agent, which has none, able to act.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Protocol

from batchflow.support import linux
from node_agent.system import process_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERVAL: Final = 0.05
"""Seconds between two looks at the number of all processes."""
LONGEST: Final = 5.0
"""Seconds between two counts, however little that number grows."""

CROWD: Final = 50
"""As many for each core that want to run, and counting would take long."""


class Counted(Protocol):
    """A slot."""

    @property
    def running(self) -> bool:
        """Whether it runs a task."""

    def count(self, entries: Mapping[int, linux.ProcessStat]) -> int:
        """Count the processes and threads of its task; end the task when there are more than the limit."""

    def freeze(self) -> None:
        """Make its task stand still, for a moment."""

    def thaw(self) -> None:
        """Let its task go on."""


class ProcessLimiter:
    """Counts the processes of the tasks of all slots of an agent."""

    def __init__(self, limit: int) -> None:
        """`limit`: of each task; 0: none."""
        self.limit = limit
        self._slots: list[Counted] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._enough = 0

    def join(self, slot: Counted) -> None:
        """Count this slot from now on."""
        self._slots.append(slot)

    def leave(self, slot: Counted) -> None:
        """Count this slot no longer, for it is closed."""
        if slot in self._slots:
            self._slots.remove(slot)

    def wake(self) -> None:
        """Look soon, for a task begins or goes on."""
        if self._timer is None and self.limit:
            self._timer = self._loop.call_later(INTERVAL, self._look)

    def _look(self) -> None:
        self._timer = None
        running = [slot for slot in self._slots if slot.running]
        if not running:
            return
        self.wake()
        wanting, everything = process_groups.on_node()
        if everything < self._enough and self._loop.time() < self._due:
            return
        if crowded := wanting > CROWD * (os.cpu_count() or 1):
            for slot in running:
                slot.freeze()
        largest = self._count(running, crowded)
        self._enough = everything + max(1, self.limit - largest)
        self._due = self._loop.time() + LONGEST

    def _count(self, running: list[Counted], frozen: bool) -> int:
        """Return how many processes and threads the largest task has."""
        entries = process_groups.table()
        process_groups.reap_orphans_of(entries)
        counts = {slot: slot.count(entries) for slot in running}
        if frozen:
            for slot, count in counts.items():
                if count <= self.limit:
                    slot.thaw()
        return max(counts.values())


def most_processes(limit: int, slots: int) -> int | None:
    """Return what RLIMIT_NPROC is to be for the tasks of so many slots; None: nothing, for root is not
    bound by it.

    The kernel counts all that the user has, so what is there already comes on top. The tasks together may
    have what each of them may have: below that, none is kept from what is its own by the others.
    """
    if not limit or os.geteuid() == 0:
        return None
    return process_groups.of_user() + slots * limit

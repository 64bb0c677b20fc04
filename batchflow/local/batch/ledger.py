"""What the cores of the local Batch service share: serial numbers, the runs, and what is to be done.

Actions are what a core wants of the shell. Each but `Stop` and `Discard` is answered by a fact, told to the
method that the action names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from batchflow.local.batch.entities import Versioned
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.local.batch.entities import FailureInfo, NodeRecord, TaskRun


@frozen
class Allocate:
    """Make the node's disk, then tell `Fleet.node_allocated`."""

    node: NodeRecord


@frozen
class Boot:
    """Boot the node, its disk wiped first or not, then tell `Fleet.node_booted`."""

    node: NodeRecord
    boot: int
    wipe: bool


@frozen
class RunStartTask:
    """Run the node's start task, then tell `Fleet.start_task_ended`."""

    node: NodeRecord
    run: int


@frozen
class RunTask:
    """Run a task on its node; tell `run_launched` when it runs, `run_ended` when its processes are gone."""

    run: TaskRun


@frozen
class Stop:
    """End a run, or a start task's, with its processes; `hard`: without asking them first."""

    run: int
    hard: bool = False


@frozen
class Remove:
    """Take the node's disk away, then tell `Fleet.node_removed`."""

    node: NodeRecord


@frozen
class Discard:
    """Take the directory of a job, or of one of its tasks, away from every node."""

    job_id: str
    task_id: str | None


Action = Allocate | Boot | RunStartTask | RunTask | Stop | Remove | Discard


@dataclass(slots=True)
class Ledger:
    """The account's books."""

    actions: list[Action] = field(default_factory=list)
    runs: dict[int, TaskRun] = field(default_factory=dict)
    serial: int = 0

    def next_serial(self) -> int:
        """A number that was not given before, and is greater than all that were."""
        self.serial += 1
        return self.serial

    def stamp(self, now: float) -> Versioned:
        """The stamp of a new resource."""
        serial = self.next_serial()
        return Versioned(serial, now, now, serial)

    def touch(self, stamp: Versioned, now: float) -> None:
        """Note that a resource was changed."""
        stamp.modified, stamp.version = now, self.next_serial()

    def stop(
        self, run: TaskRun, fate: Literal["complete", "requeue"], reason: FailureInfo, *, hard: bool = False
    ) -> None:
        """Ask for a run's end; that its task completes outweighs that it is requeued."""
        if run.stopped_for is None or hard:
            self.actions.append(Stop(run.id, hard))
        if run.stopped_for is None or fate == "complete":
            run.fate, run.stopped_for = fate, reason


def fold(name: str) -> str:
    """Ids keep their case, and differ by more than it."""
    return name.lower()

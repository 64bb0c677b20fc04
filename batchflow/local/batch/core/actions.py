"""Actions that the local Batch service's state asks of the server.

Each action but `Stop` and `Discard` is answered by a fact: a call of the method that the action names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.local.batch.core.entities import NodeRecord, TaskRun


@frozen
class Allocate:
    """Make the node's disk, then tell `Pools.node_allocated`."""

    node: NodeRecord


@frozen
class Boot:
    """Boot the node, its disk wiped first or not, then tell `Nodes.booted`."""

    node: NodeRecord
    boot: int
    wipe: bool


@frozen
class RunStartTask:
    """Run the node's start task, then tell `Nodes.start_task_ended`."""

    node: NodeRecord
    run: int


@frozen
class RunTask:
    """Run a task on its node.

    Tell `BatchState.run_launched` when it runs, `BatchState.run_ended` when its processes are gone.
    """

    run: TaskRun


@frozen
class Stop:
    """End a run, or a start task's, with its processes; `hard`: without asking them first."""

    run: int
    hard: bool = False


@frozen
class Remove:
    """Take the node's disk away, then tell `Pools.node_removed`."""

    node: NodeRecord


@frozen
class Discard:
    """Take the directory of a job, or of one of its tasks, away from every node."""

    job_id: str
    task_id: str | None


Action = Allocate | Boot | RunStartTask | RunTask | Stop | Remove | Discard

"""The state of one local Batch account: its pools, nodes and jobs, and which task goes to which node.

A core without clock, socket or process. Pools, nodes and jobs each decide for themselves; here they meet:

- A task goes to a node when the two are taken together in `take_actions`, jobs of high priority first, tasks
  in the order in which they wait. A task that needs more slots than any node has free lets others pass.
- A run ends for both at once.

Invariants, beside those of `Nodes` and `Jobs`: a node's runs never take more slots than it has; a
job never has more runs than it allows; a run belongs to one node and one task, and ends exactly once.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from batchflow.local.batch.core.actions import Action
from batchflow.local.batch.core.context import AccountContext, id_key
from batchflow.local.batch.core.faults import BatchFaults
from batchflow.local.batch.core.jobs import Jobs
from batchflow.local.batch.core.nodes import Nodes
from batchflow.local.batch.core.pools import Pools
from batchflow.local.batch.core.samples import AutoscaleTiming

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.local.batch.core.entities import JobRecord, NodeRecord, Outcome, PoolRecord


class BatchState:
    """Everything that one account holds. Times are seconds since the epoch.

    `on_error` is called while an exception is handled that nothing should bring about; it says where.
    """

    def __init__(
        self,
        account: str,
        on_error: Callable[[str], None] = lambda where: None,
        timing: AutoscaleTiming | None = None,
    ) -> None:
        self._context = AccountContext(on_error, timing or AutoscaleTiming())
        self.faults = BatchFaults()
        self.nodes = Nodes(self._context, account, self.faults)
        self.jobs = Jobs(self._context)
        self.pools = Pools(self._context, self.nodes, self.faults, self.jobs.counts_of_pool)

    @property
    def timing(self) -> AutoscaleTiming:
        """When formulas are evaluated, and what they see."""
        return self._context.timing

    def take_actions(self, now: float) -> list[Action]:
        """Give waiting tasks to nodes; then all that must be done since this was last asked, in order."""
        self._schedule(now)
        actions, self._context.actions = self._context.actions, []
        return actions

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` is due."""
        due = min(chain(self.pools.deadlines(), self.jobs.deadlines()), default=None)
        return None if due is None else max(due, self._context.not_before)

    def tick(self, now: float) -> None:
        """Enforce the limits of time that have passed."""
        self.pools.tick(now)
        self.jobs.tick(now)

    def run_launched(self, run_id: int, now: float) -> None:
        """Record that a task's command has been started."""
        self.jobs.launched(self._context.runs[run_id], now)

    def run_ended(self, run_id: int, outcome: Outcome, now: float) -> None:
        """Record that all processes of a run are gone."""
        run = self._context.runs[run_id]
        self.jobs.ended(run, outcome, now)
        self.nodes.run_ended(run.node, now)

    def _schedule(self, now: float) -> None:
        by_rank = sorted(self.jobs.by_id.values(), key=lambda job: (-job.spec.priority, job.stamp.serial))
        for job in by_rank:
            pool = self.pools.by_id.get(id_key(job.spec.pool_id))
            if pool is not None and job.state == "active":
                self._schedule_job(job, pool, now)

    def _schedule_job(self, job: JobRecord, pool: PoolRecord, now: float) -> None:
        for task in list(job.waiting.values()):
            if 0 <= job.spec.max_parallel <= len(job.runs) or best_node(pool, slots=1) is None:
                return
            node = best_node(pool, task.spec.slots)
            if node is not None:
                self.jobs.assign(task, node, now)
                self.nodes.run_began(node, now)


def best_node(pool: PoolRecord, slots: int) -> NodeRecord | None:
    """Choose the node for a task of so many slots: the emptiest when tasks are spread, else the fullest."""
    fitting = [node for node in pool.nodes.values() if node.accepts_tasks and node.slots_free >= slots]
    sign = 1 if pool.spec.fill == "spread" else -1
    return min(fitting, key=lambda node: (sign * node.slots_taken, node.serial), default=None)

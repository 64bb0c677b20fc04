"""The state of one local Batch account: its fleet, its work, and which task goes to which node.

A core without clock, socket or process. The fleet and the work each decide for themselves; here they meet:

- A task goes to a node when the two are taken together in `take_actions`, jobs of high priority first, tasks
  in the order in which they wait. A task that needs more slots than any node has free lets others pass.
- A run ends for both at once.

Invariants, beside those of `batch_fleet` and `batch_work`: a node's runs never take more slots than it has; a
job never has more runs than it allows; a run belongs to one node and one task, and ends exactly once.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from batchflow.local.batch.fleet import Fleet
from batchflow.local.batch.ledger import Action, Ledger, fold
from batchflow.local.batch.work import Work

if TYPE_CHECKING:
    from batchflow.local.batch.entities import JobRecord, NodeRecord, Outcome, PoolRecord


class BatchState:
    """Everything that one account holds. Times are seconds since the epoch."""

    def __init__(self, account: str) -> None:
        self._ledger = Ledger()
        self.fleet = Fleet(self._ledger, account)
        self.work = Work(self._ledger)

    def take_actions(self, now: float) -> list[Action]:
        """Give waiting tasks to nodes; then all that must be done since this was last asked, in order."""
        self._schedule(now)
        actions, self._ledger.actions = self._ledger.actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When `tick` has to be called, at the latest."""
        return min(chain(self.fleet.deadlines(), self.work.deadlines()), default=None)

    def tick(self, now: float) -> None:
        """Enforce the limits of time that have passed."""
        self.fleet.tick(now)
        self.work.tick(now)

    def run_launched(self, run_id: int, now: float) -> None:
        """A task's command has been started."""
        self.work.launched(self._ledger.runs[run_id], now)

    def run_ended(self, run_id: int, outcome: Outcome, now: float) -> None:
        """A run's processes are gone, all of them."""
        run = self._ledger.runs[run_id]
        self.work.ended(run, outcome, now)
        self.fleet.run_left(run.node, now)

    def _schedule(self, now: float) -> None:
        by_rank = sorted(self.work.jobs.values(), key=lambda job: (-job.spec.priority, job.stamp.serial))
        for job in by_rank:
            pool = self.fleet.pools.get(fold(job.spec.pool_id))
            if pool is not None and job.state == "active":
                self._schedule_job(job, pool, now)

    def _schedule_job(self, job: JobRecord, pool: PoolRecord, now: float) -> None:
        for task in list(job.waiting.values()):
            if 0 <= job.spec.max_parallel <= len(job.runs) or best_node(pool, slots=1) is None:
                return
            node = best_node(pool, task.spec.slots)
            if node is not None:
                self.work.assign(task, node, now)
                self.fleet.run_came(node, now)


def best_node(pool: PoolRecord, slots: int) -> NodeRecord | None:
    """The node for a task of so many slots: the emptiest when tasks are spread, the fullest when packed."""
    fitting = [node for node in pool.nodes.values() if node.accepts_tasks and node.slots_free >= slots]
    sign = 1 if pool.spec.fill == "spread" else -1
    return min(fitting, key=lambda node: (sign * node.slots_taken, node.serial), default=None)

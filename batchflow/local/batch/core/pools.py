"""Pools: a core without clock, socket or process.

Users' requests and facts from the nodes come in as method calls with the time. What must be done is added to
the context's actions. A request that the service would refuse raises `Refused` and changes nothing.

Pools   active -> deleting -> (gone, when the last node is). Allocation: steady -> resizing -> steady, by way
        of stopping when the resize was stopped or ran out of time. A resize has come to its end when no node
        is being created and none is leaving.
        A pool with a formula has the size that the formula gives when it is set and at each interval. A
        resize of such a pool is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from batchflow.local.batch.core.autoscale import Targets, check, evaluate
from batchflow.local.batch.core.context import AccountContext, id_key
from batchflow.local.batch.core.entities import (
    AutoscaleFormula,
    AutoscaleRun,
    BatchPoolSpec,
    Deallocation,
    FailureInfo,
    NodeOutage,
    NodeRecord,
    PoolRecord,
    PreemptionNotice,
)
from batchflow.local.batch.core.errors import Refused, invalid_property
from batchflow.local.batch.core.faults import NODE_FAULTS, BatchFaults, InjectedFault
from batchflow.local.batch.core.formula_values import FormulaFacts
from batchflow.local.batch.core.nodes import Nodes
from batchflow.local.batch.core.samples import USABLE, MetricSample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_REMOVED_NODES = 100
_STOPPED = FailureInfo(
    "usererror",
    "ResizeStopped",
    "Desired number of nodes could not be allocated as the resize operation was stopped",
)
_TIMED_OUT = FailureInfo(
    "usererror",
    "AllocationTimedout",
    "Desired number of nodes could not be allocated as the resize timeout was reached",
)


class Pools:
    """The pools of one account."""

    def __init__(
        self,
        context: AccountContext,
        nodes: Nodes,
        faults: BatchFaults,
        count_tasks: Callable[[str], Mapping[str, int]],
    ) -> None:
        self._count_tasks = count_tasks
        self.by_id: dict[str, PoolRecord] = {}
        self._context = context
        self._nodes = nodes
        self._faults = faults

    def deadlines(self) -> Iterator[float]:
        """Return the times at which a resize ends, a node comes back, a sample or a formula is due."""
        for pool in self.by_id.values():
            yield pool.sampled + self._context.timing.sample_period
            if pool.resize_deadline is not None:
                yield pool.resize_deadline
            if (due := _formula_due(pool)) is not None:
                yield due
            for node in pool.nodes.values():
                if node.outage is not None and node.leaving_for is None and node.outage.until is not None:
                    yield node.outage.until
                if node.notice is not None:
                    yield node.notice.not_before

    def tick(self, now: float) -> None:
        """Give up the resizes that ran out of time, let nodes come back, evaluate formulas."""
        for pool in list(self.by_id.values()):
            self._context.tick(f"the pool {pool.spec.id!r}", partial(self._tick, pool, now), now)

    def _tick(self, pool: PoolRecord, now: float) -> None:
        self._sample(pool, now)
        for node in pool.nodes.values():
            self._nodes.preempt_when_due(node, now)
            self._nodes.come_back_when_due(node, now)
        if pool.resize_deadline is not None and pool.resize_deadline <= now:
            self._abandon_resize(pool, _TIMED_OUT, now)
        if (due := _formula_due(pool)) is not None and due <= now:
            self._scale_again(pool, now)

    # What users ask of pools

    def pool(self, pool_id: str) -> PoolRecord:
        """Return a pool. Raises Refused: PoolNotFound."""
        pool = self.by_id.get(id_key(pool_id))
        if pool is None:
            raise Refused("PoolNotFound", PoolId=pool_id)
        return pool

    def create_pool(self, spec: BatchPoolSpec, wanted: int, spot_wanted: int, now: float) -> PoolRecord:
        """Make a pool and begin to allocate its nodes."""
        if (there := self.by_id.get(id_key(spec.id))) is not None:
            self._check_not_deleting(there)
            raise Refused("PoolExists", PoolId=spec.id)
        if spec.formula is not None:
            check(spec.formula.text)
        stamp = self._context.stamp(now)
        pool = PoolRecord(
            spec, stamp, wanted, spot_wanted, state_since=now, allocation_since=now, sampled=now
        )
        self.by_id[id_key(spec.id)] = pool
        if spec.formula is None:
            self._begin_resize(pool, now)
            self._allocate(pool, "requeue", now)
        else:
            self._evaluate_and_scale(pool, spec.formula.text, now)
        return pool

    def change_pool(self, pool: PoolRecord, spec: BatchPoolSpec, now: float) -> None:
        """Give a pool another specification; a changed start task counts from a node's next boot."""
        self._check_not_deleting(pool)
        pool.spec = spec
        self._context.touch(pool.stamp, now)

    def delete_pool(self, pool: PoolRecord, now: float) -> None:
        """Take the pool's nodes away, their tasks requeued, and then the pool."""
        self._check_not_deleting(pool)
        pool.state, pool.state_since = "deleting", now
        pool.wanted = pool.spot_wanted = 0
        self._context.touch(pool.stamp, now)
        self._begin_resize(pool, now)
        for node in list(pool.nodes.values()):
            self._nodes.leave(node, "removal", "requeue", now)
        self._settle_pool(pool, now)

    def resize_pool(
        self,
        pool: PoolRecord,
        wanted: int | None,
        spot_wanted: int | None,
        option: Deallocation,
        timeout: float | None,
        now: float,
    ) -> None:
        """Begin to bring the pool to another size; None leaves that count as it is."""
        self._check_resizable(pool)
        if pool.spec.formula is not None:
            raise Refused("OperationNotValidOnPool", PoolId=pool.spec.id, Reason="a formula decides its size")
        pool.wanted = pool.wanted if wanted is None else wanted
        pool.spot_wanted = pool.spot_wanted if spot_wanted is None else spot_wanted
        self._context.touch(pool.stamp, now)
        self._begin_resize(pool, now, timeout)
        self._allocate(pool, option, now)

    def stop_resize(self, pool: PoolRecord, now: float) -> None:
        """Leave the pool at the size that it has got to."""
        self._check_not_deleting(pool)
        if pool.allocation != "resizing":
            raise Refused("OperationInvalidForCurrentState", PoolId=pool.spec.id, Reason="no resize to stop")
        self._context.touch(pool.stamp, now)
        self._abandon_resize(pool, _STOPPED, now)

    def remove_nodes(
        self, pool: PoolRecord, node_ids: list[str], option: Deallocation, timeout: float | None, now: float
    ) -> None:
        """Take the named nodes away; the pool is then wanted that much smaller."""
        self._check_resizable(pool)
        if not 1 <= len(node_ids) <= MAX_REMOVED_NODES:
            raise invalid_property("nodeList", len(node_ids), "1 to 100 nodes can be removed in one request.")
        nodes = [self._nodes.node(pool, node_id) for node_id in dict.fromkeys(map(id_key, node_ids))]
        pool.wanted = max(0, pool.wanted - sum(node.dedicated for node in nodes))
        pool.spot_wanted = max(0, pool.spot_wanted - sum(not node.dedicated for node in nodes))
        self._context.touch(pool.stamp, now)
        self._begin_resize(pool, now, timeout)
        for node in nodes:
            self._nodes.leave(node, "removal", option, now)
        self._settle_pool(pool, now)

    def enable_formula(self, pool: PoolRecord, text: str | None, interval: float | None, now: float) -> None:
        """Let a formula decide from now on, or another one, or at another interval; None keeps what is."""
        self._check_resizable(pool)
        old = pool.spec.formula
        text = text or (old.text if old is not None else None)
        if text is None:
            raise Refused("MissingRequiredProperty", PropertyName="autoScaleFormula")
        check(text)
        if now - pool.formula_set < self._context.timing.min_pause:
            raise Refused("TooManyEnableAutoScaleRequests", PoolId=pool.spec.id)
        kept = old.interval if old is not None else self._context.timing.interval
        pool.spec = replace(pool.spec, formula=AutoscaleFormula(text, kept if interval is None else interval))
        pool.formula_set = now
        self._context.touch(pool.stamp, now)
        self._evaluate_and_scale(pool, text, now)

    def disable_formula(self, pool: PoolRecord, now: float) -> None:
        """Leave the pool at its size; resizes are accepted again."""
        self._check_not_deleting(pool)
        pool.spec, pool.formula_run = replace(pool.spec, formula=None), None
        self._context.touch(pool.stamp, now)

    def evaluate_formula(self, pool: PoolRecord, text: str, now: float) -> Targets:
        """Evaluate a formula with the pool's nodes and the samples that are seen by now. Raises Refused."""
        facts = FormulaFacts(
            now,
            pool.wanted,
            pool.spot_wanted,
            self._metrics(pool),
            pool.samples,
            self._context.timing,
        )
        return evaluate(text, facts)

    def _metrics(self, pool: PoolRecord) -> tuple[float, ...]:
        """Measure a pool, in the order of `METRICS`."""
        tasks = self._count_tasks(id_key(pool.spec.id))
        nodes = pool.nodes.values()
        counts = (
            tasks["active"],
            tasks["running"],
            tasks["active"] + tasks["running"],
            tasks["succeeded"],
            tasks["failed"],
            pool.count(dedicated=True),
            pool.count(dedicated=False),
            sum(node.state == "preempted" for node in nodes),
            sum(node.state in USABLE for node in nodes),
            len(nodes),
            pool.spec.task_slots,
        )
        return tuple(map(float, counts))

    def _sample(self, pool: PoolRecord, now: float) -> None:
        """Take the sample that is due; those that were missed stay missing."""
        periods = (now - pool.sampled) // self._context.timing.sample_period
        if periods >= 1:
            pool.sampled += periods * self._context.timing.sample_period
            pool.samples.append(MetricSample(pool.sampled, self._metrics(pool)))

    def _scale_again(self, pool: PoolRecord, now: float) -> None:
        """Evaluate the formula, except while the pool resizes. The pool tells an error in it."""
        if pool.spec.formula is None or pool.allocation != "steady":
            pool.formula_run = replace(pool.formula_run, at=now) if pool.formula_run else AutoscaleRun(now)
            return
        self._evaluate_and_scale(pool, pool.spec.formula.text, now)

    def _evaluate_and_scale(self, pool: PoolRecord, text: str, now: float) -> None:
        """Scale a pool as its formula says, or note in the pool why that says nothing."""
        try:
            targets = self.evaluate_formula(pool, text, now)
        except Refused as refused:
            pool.formula_run = AutoscaleRun(now, failure=failure_of(refused))
            return
        self._scale(pool, targets, now)

    def _scale(self, pool: PoolRecord, targets: Targets, now: float) -> None:
        before = (pool.wanted, pool.spot_wanted)
        pool.wanted = pool.wanted if targets.dedicated is None else targets.dedicated
        pool.spot_wanted = pool.spot_wanted if targets.spot is None else targets.spot
        pool.formula_run = AutoscaleRun(now, targets.results)
        if (pool.wanted, pool.spot_wanted) != before:
            self._begin_resize(pool, now, math.inf)  # the pool's timeout is for manual scaling alone
            self._allocate(pool, targets.option, now)

    # Faults, as a test asks for them

    def inject(self, pool_id: str, fault: InjectedFault, now: float) -> None:
        """Do to a pool, which need not exist yet, or to its nodes, what may happen on Azure."""
        self._faults.note(pool_id, fault)
        if fault.kind not in NODE_FAULTS:
            return
        pool = self.pool(pool_id)
        chosen = [self._nodes.node(pool, fault.node)] if fault.node is not None else list(pool.nodes.values())
        for node in chosen:
            if fault.kind != "preempted":
                self._nodes.fail(node, fault, now)
            elif not node.dedicated and fault.notice:
                event, away = f"preempt-{node.id}-{now}", fault.seconds or 0.0
                self._nodes.announce_preemption(node, PreemptionNotice(event, now + fault.notice, away))
            elif not node.dedicated:
                self._nodes.take_out(
                    node, NodeOutage("preempted", now + (fault.seconds or 0.0), wipe=True), now
                )
            elif fault.node is not None:
                raise Refused(
                    "OperationNotValidOnNode", NodeId=node.id, Reason="only spot nodes are preempted"
                )

    # Facts from the nodes

    def node_allocated(self, node: NodeRecord, now: float) -> None:
        """Record that the node's disk exists."""
        self._nodes.allocated(node, now)
        self._settle_pool(node.pool, now)

    def node_removed(self, node: NodeRecord, now: float) -> None:
        """Remove a node that is gone."""
        del node.pool.nodes[id_key(node.id)]
        self._settle_pool(node.pool, now)

    # Decisions about pools

    def _begin_resize(self, pool: PoolRecord, now: float, timeout: float | None = None) -> None:
        pool.allocation, pool.allocation_since = "resizing", now
        pool.resize_errors = ()
        patience = pool.spec.resize_timeout if timeout is None else timeout
        pool.resize_deadline = None if patience == math.inf else now + patience

    def _allocate(self, pool: PoolRecord, option: Deallocation, now: float) -> None:
        """Make the nodes that are missing, and let those leave that are too many: the least busy first."""
        for dedicated, wanted in ((True, pool.wanted), (False, pool.spot_wanted)):
            staying = [node for node in pool.staying() if node.dedicated == dedicated]
            for _ in range(self._obtainable(pool, wanted - len(staying))):
                self._nodes.create(pool, dedicated, now)
            by_work = sorted(staying, key=lambda node: (len(node.runs), -node.serial))
            for node in by_work[: max(0, len(staying) - wanted)]:
                self._nodes.leave(node, "removal", option, now)
        self._settle_pool(pool, now)

    def _obtainable(self, pool: PoolRecord, missing: int) -> int:
        """Return how many of the missing nodes can be allocated."""
        fault = self._faults.of(pool.spec.id).allocation
        left = max(0, fault.limit - len(pool.staying()))
        if left < missing:
            pool.resize_errors = (fault.failure,)
        return min(left, max(0, missing))

    def _settle_pool(self, pool: PoolRecord, now: float) -> None:
        """End a resize that has come to its end, and a pool that has no more nodes to lose."""
        if any(node.state in ("creating", "leavingpool") for node in pool.nodes.values()):
            return
        if pool.state == "deleting":
            self.by_id.pop(id_key(pool.spec.id), None)
        if pool.allocation != "steady":
            pool.allocation, pool.allocation_since = "steady", now
            pool.resize_deadline = None

    def _abandon_resize(self, pool: PoolRecord, reason: FailureInfo, now: float) -> None:
        """Take no further step towards the size wanted: nodes that only wait for their tasks stay."""
        pool.resize_deadline = None
        if pool.state == "deleting":
            return
        pool.allocation, pool.allocation_since = "stopping", now
        for node in pool.nodes.values():
            waits = node.runs and all(run.stopped_for is None for run in node.runs.values())
            if node.leaving_for == "removal" and waits:
                self._nodes.stay(node, now)
        if len(pool.staying()) != pool.wanted + pool.spot_wanted:
            pool.resize_errors = (reason,)
        self._settle_pool(pool, now)

    @staticmethod
    def _check_not_deleting(pool: PoolRecord) -> None:
        if pool.state == "deleting":
            raise Refused("PoolBeingDeleted", PoolId=pool.spec.id)

    def _check_resizable(self, pool: PoolRecord) -> None:
        self._check_not_deleting(pool)
        if pool.allocation != "steady":
            raise Refused("PoolBeingResized", PoolId=pool.spec.id)


def failure_of(refused: Refused) -> FailureInfo:
    """Return the error of a formula as a pool shows it."""
    return FailureInfo("usererror", refused.code, refused.values.get("Reason", refused.message))


def _formula_due(pool: PoolRecord) -> float | None:
    """Return when the pool's formula is to be evaluated again."""
    if pool.spec.formula is None or pool.formula_run is None or pool.state != "active":
        return None
    return pool.formula_run.at + pool.spec.formula.interval

"""Pools and their nodes: a core without clock, socket or process.

Users' requests and facts from the nodes come in as method calls with the time; what must be done goes into
the ledger. A request that the service would refuse raises `Refused` and changes nothing.

Pools   active -> deleting -> (gone, when the last node is). Allocation: steady -> resizing -> steady, by way
        of stopping when the resize was stopped or ran out of time. A resize has come to its end when no node
        is being created and none is leaving.
        A pool with a formula is as large as that says when it is set and at its interval; nobody resizes it.
Nodes   creating -> starting -> waitingforstarttask -> idle <-> running; starttaskfailed when the start task
        failed and success was asked for; offline when disabled and at rest; leavingpool, rebooting,
        reimaging, deallocating (then deallocated, until started) from the moment they are asked for;
        unusable, preempted or unknown by an injected fault, the last two until its time is over. What has to
        wait until nothing runs on the node any more is kept in `leaving_for`.

Invariants: a node that leaves gets no task and never comes back, unless the resize that removes it is given
up while it still waits for tasks to complete; at most one start task runs on a node; facts of an earlier boot
change nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from batchflow.local.batch.autoscale import Targets, evaluate
from batchflow.local.batch.entities import (
    BAD_EXIT,
    ENDED_BY_USER,
    AutoscaleFormula,
    AutoscaleRun,
    BatchPoolSpec,
    Deallocation,
    Departure,
    FailureInfo,
    NodeOutage,
    NodeRecord,
    NodeState,
    Outcome,
    PoolRecord,
    StartTaskRecord,
)
from batchflow.local.batch.errors import Refused, invalid_property
from batchflow.local.batch.faults import NODE_FAULTS, NODE_GONE, BatchFaults, InjectedFault
from batchflow.local.batch.ledger import Allocate, Boot, Ledger, Remove, RunStartTask, Stop, fold

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_REMOVED_NODES = 100
FORMULA_INTERVAL = 15 * 60.0
"""Seconds between two evaluations of a formula whose interval nobody gave."""

MIN_FORMULA_PAUSE = 30.0
"""Seconds that have to lie between two settings of a pool's formula."""

_DEPARTING: dict[Departure, NodeState] = {
    "outage": "unknown",
    "removal": "leavingpool",
    "reboot": "rebooting",
    "reimage": "reimaging",
    "deallocation": "deallocating",
}
_BUSY: dict[NodeState, str] = {
    "preempted": "OperationNotValidOnNode",
    "unknown": "OperationNotValidOnNode",
    "creating": "NodeBeingCreated",
    "starting": "NodeBeingStarted",
    "rebooting": "NodeBeingRebooted",
    "reimaging": "NodeBeingReimaged",
    "leavingpool": "OperationNotValidOnNode",
    "deallocating": "OperationNotValidOnNode",
    "deallocated": "OperationNotValidOnNode",
}
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


class Fleet:
    """The pools of one account."""

    def __init__(self, ledger: Ledger, account: str) -> None:
        self.pools: dict[str, PoolRecord] = {}
        self._ledger = ledger
        self._account = account
        self._start_runs: dict[int, NodeRecord] = {}
        self.faults = BatchFaults()

    def deadlines(self) -> Iterator[float]:
        """When a resize runs out of time, a node that is out comes back, or a formula is due."""
        for pool in self.pools.values():
            if pool.resize_deadline is not None:
                yield pool.resize_deadline
            if (due := _formula_due(pool)) is not None:
                yield due
            for node in pool.nodes.values():
                if node.outage is not None and node.leaving_for is None and node.outage.until is not None:
                    yield node.outage.until

    def tick(self, now: float) -> None:
        """Give up the resizes that ran out of time, let nodes come back, evaluate formulas."""
        for pool in list(self.pools.values()):
            for node in pool.nodes.values():
                self._come_back_when_due(node, now)
            if pool.resize_deadline is not None and pool.resize_deadline <= now:
                self._abandon_resize(pool, _TIMED_OUT, now)
            if (due := _formula_due(pool)) is not None and due <= now:
                self._scale_again(pool, now)

    # What users ask of pools

    def pool(self, pool_id: str) -> PoolRecord:
        """Raises Refused: PoolNotFound."""
        pool = self.pools.get(fold(pool_id))
        if pool is None:
            raise Refused("PoolNotFound", PoolId=pool_id)
        return pool

    def create_pool(self, spec: BatchPoolSpec, wanted: int, spot_wanted: int, now: float) -> PoolRecord:
        """Make a pool and begin to allocate its nodes."""
        if (there := self.pools.get(fold(spec.id))) is not None:
            self._check_not_deleting(there)
            raise Refused("PoolExists", PoolId=spec.id)
        targets = None if spec.formula is None else evaluate(spec.formula.text, 0, 0)
        stamp = self._ledger.stamp(now)
        pool = PoolRecord(spec, stamp, wanted, spot_wanted, state_since=now, allocation_since=now)
        self.pools[fold(spec.id)] = pool
        if targets is None:
            self._begin_resize(pool, now)
            self._allocate(pool, "requeue", now)
        else:
            self._scale(pool, targets, now)
        return pool

    def change_pool(self, pool: PoolRecord, spec: BatchPoolSpec, now: float) -> None:
        """Give a pool another specification; a changed start task counts from a node's next boot."""
        self._check_not_deleting(pool)
        pool.spec = spec
        self._ledger.touch(pool.stamp, now)

    def delete_pool(self, pool: PoolRecord, now: float) -> None:
        """Take the pool's nodes away, their tasks requeued, and then the pool."""
        self._check_not_deleting(pool)
        pool.state, pool.state_since = "deleting", now
        pool.wanted = pool.spot_wanted = 0
        self._ledger.touch(pool.stamp, now)
        self._begin_resize(pool, now)
        for node in list(pool.nodes.values()):
            self._leave(node, "removal", "requeue", now)
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
        self._ledger.touch(pool.stamp, now)
        self._begin_resize(pool, now, timeout)
        self._allocate(pool, option, now)

    def stop_resize(self, pool: PoolRecord, now: float) -> None:
        """Leave the pool at the size that it has got to."""
        self._check_not_deleting(pool)
        if pool.allocation != "resizing":
            raise Refused("OperationInvalidForCurrentState", PoolId=pool.spec.id, Reason="no resize to stop")
        self._ledger.touch(pool.stamp, now)
        self._abandon_resize(pool, _STOPPED, now)

    def remove_nodes(
        self, pool: PoolRecord, node_ids: list[str], option: Deallocation, timeout: float | None, now: float
    ) -> None:
        """Take the named nodes away; the pool is then wanted that much smaller."""
        self._check_resizable(pool)
        if not 1 <= len(node_ids) <= MAX_REMOVED_NODES:
            raise invalid_property("nodeList", len(node_ids), "1 to 100 nodes can be removed in one request.")
        nodes = [self.node(pool, node_id) for node_id in dict.fromkeys(map(fold, node_ids))]
        pool.wanted = max(0, pool.wanted - sum(node.dedicated for node in nodes))
        pool.spot_wanted = max(0, pool.spot_wanted - sum(not node.dedicated for node in nodes))
        self._ledger.touch(pool.stamp, now)
        self._begin_resize(pool, now, timeout)
        for node in nodes:
            self._leave(node, "removal", option, now)
        self._settle_pool(pool, now)

    def enable_formula(self, pool: PoolRecord, text: str | None, interval: float | None, now: float) -> None:
        """Let a formula decide from now on, or another one, or at another interval; None keeps what is."""
        self._check_resizable(pool)
        old = pool.spec.formula
        text = text or (old.text if old is not None else None)
        if text is None:
            raise Refused("MissingRequiredProperty", PropertyName="autoScaleFormula")
        targets = self.evaluate_formula(pool, text)
        if now - pool.formula_set < MIN_FORMULA_PAUSE:
            raise Refused("TooManyEnableAutoScaleRequests", PoolId=pool.spec.id)
        kept = old.interval if old is not None else FORMULA_INTERVAL
        pool.spec = replace(pool.spec, formula=AutoscaleFormula(text, kept if interval is None else interval))
        pool.formula_set = now
        self._ledger.touch(pool.stamp, now)
        self._scale(pool, targets, now)

    def disable_formula(self, pool: PoolRecord, now: float) -> None:
        """Leave the pool as large as it is; whoever wants can resize it again."""
        self._check_not_deleting(pool)
        pool.spec, pool.formula_run = replace(pool.spec, formula=None), None
        self._ledger.touch(pool.stamp, now)

    def evaluate_formula(self, pool: PoolRecord, text: str) -> Targets:
        """What a formula would come to now. Raises Refused."""
        return evaluate(text, pool.count(dedicated=True), pool.count(dedicated=False))

    def _scale_again(self, pool: PoolRecord, now: float) -> None:
        """A formula that cannot be evaluated now says so in the pool; while that resizes it is left out."""
        if pool.spec.formula is None or pool.allocation != "steady":
            pool.formula_run = replace(pool.formula_run, at=now) if pool.formula_run else AutoscaleRun(now)
            return
        try:
            targets = self.evaluate_formula(pool, pool.spec.formula.text)
        except Refused as refused:
            reason = refused.values.get("Reason", refused.message)
            pool.formula_run = AutoscaleRun(now, failure=FailureInfo("usererror", refused.code, reason))
            return
        self._scale(pool, targets, now)

    def _scale(self, pool: PoolRecord, targets: Targets, now: float) -> None:
        before = (pool.wanted, pool.spot_wanted)
        pool.wanted = pool.wanted if targets.dedicated is None else targets.dedicated
        pool.spot_wanted = pool.spot_wanted if targets.spot is None else targets.spot
        pool.formula_run = AutoscaleRun(now, targets.results)
        if (pool.wanted, pool.spot_wanted) != before:
            self._begin_resize(pool, now)
            self._allocate(pool, targets.option, now)

    # What users ask of nodes

    def node(self, pool: PoolRecord, node_id: str) -> NodeRecord:
        """Raises Refused: NodeNotFound."""
        node = pool.nodes.get(fold(node_id))
        if node is None:
            raise Refused("NodeNotFound", PoolId=pool.spec.id, NodeId=node_id)
        return node

    def reboot(self, node: NodeRecord, option: Deallocation, now: float) -> None:
        """Boot the node again."""
        self._interrupt(node, "reboot", option, now)

    def reimage(self, node: NodeRecord, option: Deallocation, now: float) -> None:
        """Boot the node again, its disk wiped."""
        self._interrupt(node, "reimage", option, now)

    def deallocate(self, node: NodeRecord, option: Deallocation, now: float) -> None:
        """Give the node's machine back until it is started again; its disk is lost."""
        self._interrupt(node, "deallocation", option, now)

    def start(self, node: NodeRecord, now: float) -> None:
        """Boot a deallocated node."""
        if node.state != "deallocated":
            raise Refused("OperationNotValidOnNode", NodeId=node.id, NodeState=node.state)
        _set_state(node, "starting", now)
        self._boot(node, wipe=True)

    def _interrupt(self, node: NodeRecord, purpose: Departure, option: Deallocation, now: float) -> None:
        if node.state in _BUSY:
            raise Refused(_BUSY[node.state], NodeId=node.id, NodeState=node.state)
        self._leave(node, purpose, option, now)

    def disable_scheduling(self, node: NodeRecord, option: Deallocation, now: float) -> None:
        """Give the node no further tasks, and deal with those that it has as `option` says."""
        if not node.enabled:
            raise Refused("NodeAlreadyInTargetSchedulingState", NodeId=node.id)
        node.enabled = False
        self._evict(node, option)
        self._settle_node(node, now)

    def enable_scheduling(self, node: NodeRecord, now: float) -> None:
        """Let the node have tasks again."""
        if node.enabled:
            raise Refused("NodeAlreadyInTargetSchedulingState", NodeId=node.id)
        node.enabled = True
        self._settle_node(node, now)

    # Faults, as a test asks for them

    def inject(self, pool_id: str, fault: InjectedFault, now: float) -> None:
        """Do to a pool, which need not exist yet, or to its nodes, what may happen on Azure."""
        self.faults.note(pool_id, fault)
        if fault.kind not in NODE_FAULTS:
            return
        pool = self.pool(pool_id)
        chosen = [self.node(pool, fault.node)] if fault.node is not None else list(pool.nodes.values())
        for node in chosen:
            if fault.kind != "preempted":
                self._fail(node, fault, now)
            elif not node.dedicated:
                self._take_out(node, NodeOutage("preempted", now + (fault.seconds or 0.0), wipe=True), now)
            elif fault.node is not None:
                raise Refused(
                    "OperationNotValidOnNode", NodeId=node.id, Reason="only spot nodes are preempted"
                )

    def _fail(self, node: NodeRecord, fault: InjectedFault, now: float) -> None:
        if fault.kind == "lost":
            until = None if fault.seconds is None else now + fault.seconds
            self._take_out(node, NodeOutage("unknown", until, wipe=False), now)
        elif node.leaving_for is None:
            node.ready, node.errors = False, (fault.failure,)
            _set_state(node, "unusable", now)
            self._cut(node)

    def _take_out(self, node: NodeRecord, outage: NodeOutage, now: float) -> None:
        if node.leaving_for is not None or node.outage is not None or node.state == "creating":
            raise Refused("OperationNotValidOnNode", NodeId=node.id, NodeState=node.state)
        node.outage, node.leaving_for, node.ready = outage, "outage", False
        _set_state(node, outage.state, now)
        self._cut(node)
        self._depart_when_at_rest(node, now)

    def _cut(self, node: NodeRecord) -> None:
        """End what runs there at once, as a machine's end does; Batch runs its tasks again."""
        for run in node.runs.values():
            self._ledger.stop(run, "requeue", NODE_GONE, hard=True)
        if node.start_run is not None:
            self._ledger.actions.append(Stop(node.start_run, hard=True))

    def _come_back_when_due(self, node: NodeRecord, now: float) -> None:
        outage = node.outage
        if outage is None or node.leaving_for is not None or outage.until is None or outage.until > now:
            return
        node.outage = None
        _set_state(node, "starting", now)
        self._boot(node, wipe=outage.wipe)

    # Facts from the nodes

    def node_allocated(self, node: NodeRecord, now: float) -> None:
        """The node's disk is there."""
        if node.leaving_for is None:
            _set_state(node, "starting", now)
            self._ledger.actions.append(Boot(node, node.boot, wipe=False))
        self._depart_when_at_rest(node, now)
        self._settle_pool(node.pool, now)

    def node_booted(self, node: NodeRecord, boot: int, now: float) -> None:
        """The node has booted for the `boot`-th time."""
        if boot != node.boot or node.leaving_for is not None or node.outage is not None:
            return
        spec = self.faults.of(node.pool.spec.id).start_task or node.pool.spec.start_task
        node.booted, node.errors = now, ()
        node.start_task = None if spec is None else StartTaskRecord(spec, started=now)
        node.ready = spec is None or not spec.wait_for_success
        if spec is not None:
            _set_state(node, "waitingforstarttask", now)
            self._run_start_task(node)
        self._settle_node(node, now)

    def start_task_ended(self, run: int, outcome: Outcome, now: float) -> None:
        """A start task's processes are gone."""
        node = self._start_runs.pop(run)
        record = node.start_task
        if node.start_run != run or record is None:
            raise AssertionError("a start task ended that its node did not run")
        node.start_run = None
        limit = record.spec.command.max_retries
        concerned = node.leaving_for is None and not node.errors
        if concerned and is_retriable(outcome, limit, record.retries):
            record.retries, record.last_retry = record.retries + 1, now
            self._run_start_task(node)
            return
        record.ended, record.outcome = now, judged(outcome)
        if concerned:
            node.ready = record.outcome.succeeded or not record.spec.wait_for_success
            if not node.ready:
                _set_state(node, "starttaskfailed", now)
        self.run_left(node, now)

    def node_removed(self, node: NodeRecord, now: float) -> None:
        """The node is gone."""
        del node.pool.nodes[fold(node.id)]
        self._settle_pool(node.pool, now)

    def run_came(self, node: NodeRecord, now: float) -> None:
        """A run took slots of the node."""
        self._settle_node(node, now)

    def run_left(self, node: NodeRecord, now: float) -> None:
        """A run, or the start task's, is over on the node."""
        self._depart_when_at_rest(node, now)
        self._settle_node(node, now)

    # Decisions about nodes

    def _leave(self, node: NodeRecord, purpose: Departure, option: Deallocation, now: float) -> None:
        if node.leaving_for == "removal":
            return
        allocated = node.state != "creating"
        node.leaving_for, node.ready, node.outage = purpose, False, None
        _set_state(node, _DEPARTING[purpose], now)
        self._evict(node, option)
        if node.start_run is not None:
            self._ledger.actions.append(Stop(node.start_run))
        if allocated:
            self._depart_when_at_rest(node, now)

    def _evict(self, node: NodeRecord, option: Deallocation) -> None:
        for run in node.runs.values():
            match option:
                case "requeue":
                    self._ledger.stop(run, "requeue", ENDED_BY_USER)
                case "terminate":
                    self._ledger.stop(run, "complete", ENDED_BY_USER)

    def _depart_when_at_rest(self, node: NodeRecord, now: float) -> None:
        """Do what had to wait until nothing runs on the node any more."""
        if node.runs or node.start_run is not None:
            return
        match node.leaving_for:
            case "removal":
                self._ledger.actions.append(Remove(node))
            case "reboot" | "reimage" as purpose:
                node.leaving_for = None
                self._boot(node, wipe=purpose == "reimage")
            case "deallocation":
                node.leaving_for = None
                _set_state(node, "deallocated", now)
            case "outage":
                node.leaving_for = None
                self._come_back_when_due(node, now)

    def _boot(self, node: NodeRecord, *, wipe: bool) -> None:
        node.boot += 1
        self._ledger.actions.append(Boot(node, node.boot, wipe=wipe))

    def _run_start_task(self, node: NodeRecord) -> None:
        node.start_run = self._ledger.next_serial()
        self._start_runs[node.start_run] = node
        self._ledger.actions.append(RunStartTask(node, node.start_run))

    def _settle_node(self, node: NodeRecord, now: float) -> None:
        """Bring a node that may run tasks to the state that tells whether it does."""
        if not node.ready or node.leaving_for is not None:
            return
        at_rest: NodeState = "idle" if node.enabled else "offline"
        _set_state(node, "running" if node.runs else at_rest, now)

    # Decisions about pools

    def _begin_resize(self, pool: PoolRecord, now: float, timeout: float | None = None) -> None:
        pool.allocation, pool.allocation_since = "resizing", now
        pool.resize_errors = ()
        pool.resize_deadline = now + (pool.spec.resize_timeout if timeout is None else timeout)

    def _allocate(self, pool: PoolRecord, option: Deallocation, now: float) -> None:
        """Make the nodes that are missing, and let those leave that are too many: the least busy first."""
        for dedicated, wanted in ((True, pool.wanted), (False, pool.spot_wanted)):
            staying = [node for node in pool.staying() if node.dedicated == dedicated]
            for _ in range(self._obtainable(pool, wanted - len(staying))):
                self._make_node(pool, dedicated, now)
            by_work = sorted(staying, key=lambda node: (len(node.runs), -node.serial))
            for node in by_work[: max(0, len(staying) - wanted)]:
                self._leave(node, "removal", option, now)
        self._settle_pool(pool, now)

    def _obtainable(self, pool: PoolRecord, missing: int) -> int:
        """How many of the nodes that are missing can be had."""
        fault = self.faults.of(pool.spec.id).allocation
        left = max(0, fault.limit - len(pool.staying()))
        if left < missing:
            pool.resize_errors = (fault.failure,)
        return min(left, max(0, missing))

    def _make_node(self, pool: PoolRecord, dedicated: bool, now: float) -> None:
        origin = f"{self._account}/{fold(pool.spec.id)}/{pool.stamp.serial}"
        host = hashlib.sha256(origin.encode()).hexdigest()[:8]
        digest = hashlib.sha256(f"{origin}/{pool.nodes_made}".encode()).hexdigest()
        node = NodeRecord(
            id=f"tvmps_{digest}_{'d' if dedicated else 'p'}",
            serial=self._ledger.next_serial(),
            pool=pool,
            dedicated=dedicated,
            host_name=f"{host}{pool.nodes_made:06d}",
            allocated=now,
            state_since=now,
        )
        pool.nodes_made += 1
        pool.nodes[fold(node.id)] = node
        self._ledger.actions.append(Allocate(node))

    def _settle_pool(self, pool: PoolRecord, now: float) -> None:
        """End a resize that has come to its end, and a pool that has no more nodes to lose."""
        if any(node.state in ("creating", "leavingpool") for node in pool.nodes.values()):
            return
        if pool.state == "deleting":
            self.pools.pop(fold(pool.spec.id), None)
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
                node.leaving_for, node.ready = None, True
                self._settle_node(node, now)
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


def _formula_due(pool: PoolRecord) -> float | None:
    """When the pool's formula has to be evaluated again."""
    if pool.spec.formula is None or pool.formula_run is None or pool.state != "active":
        return None
    return pool.formula_run.at + pool.spec.formula.interval


def is_retriable(outcome: Outcome, allowed: int, used: int) -> bool:
    """Only a command that ran and exited with an error is retried (not one that could not start)."""
    failed = outcome.failure is None and outcome.exit_code != 0
    return failed and (allowed == -1 or used < allowed)


def judged(outcome: Outcome) -> Outcome:
    """The outcome with its failure: a non-zero exit is one that the user caused."""
    if outcome.failure is None and outcome.exit_code != 0:
        return Outcome(outcome.exit_code, BAD_EXIT)
    return outcome


def _set_state(node: NodeRecord, state: NodeState, now: float) -> None:
    if node.state != state:
        node.state, node.state_since = state, now

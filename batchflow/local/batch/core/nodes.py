"""The nodes of pools: a core without clock, socket or process.

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
from typing import TYPE_CHECKING

from batchflow.local.batch.core.actions import Allocate, Boot, Remove, RunStartTask, Stop
from batchflow.local.batch.core.context import id_key
from batchflow.local.batch.core.entities import (
    ENDED_BY_USER,
    Deallocation,
    Departure,
    NodeOutage,
    NodeRecord,
    NodeState,
    Outcome,
    PoolRecord,
    PreemptionNotice,
    StartTaskRecord,
)
from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.faults import NODE_LOST, BatchFaults, InjectedFault

if TYPE_CHECKING:
    from batchflow.local.batch.core.context import AccountContext

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


class Nodes:
    """The nodes of one account's pools."""

    def __init__(self, context: AccountContext, account: str, faults: BatchFaults) -> None:
        self._context = context
        self._account = account
        self._faults = faults
        self._start_runs: dict[int, NodeRecord] = {}

    # What users ask of nodes

    def node(self, pool: PoolRecord, node_id: str) -> NodeRecord:
        """Return a node. Raises Refused: NodeNotFound."""
        node = pool.nodes.get(id_key(node_id))
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
        self.leave(node, purpose, option, now)

    def disable_scheduling(self, node: NodeRecord, option: Deallocation, now: float) -> None:
        """Give the node no further tasks, and deal with those that it has as `option` says."""
        if not node.enabled:
            raise Refused("NodeAlreadyInTargetSchedulingState", NodeId=node.id)
        node.enabled = False
        self._evict(node, option)
        self.settle(node, now)

    def enable_scheduling(self, node: NodeRecord, now: float) -> None:
        """Let the node have tasks again."""
        if node.enabled:
            raise Refused("NodeAlreadyInTargetSchedulingState", NodeId=node.id)
        node.enabled = True
        self.settle(node, now)

    # Faults

    def fail(self, node: NodeRecord, fault: InjectedFault, now: float) -> None:
        if fault.kind == "lost":
            until = None if fault.seconds is None else now + fault.seconds
            self.take_out(node, NodeOutage("unknown", until, wipe=False), now)
        elif node.leaving_for is None:
            node.ready, node.errors = False, (fault.failure,)
            _set_state(node, "unusable", now)
            self._cut(node)

    def announce_preemption(self, node: NodeRecord, notice: PreemptionNotice) -> None:
        """Let a node read that it will be preempted."""
        if node.leaving_for is not None or node.outage is not None or node.state == "creating":
            raise Refused("OperationNotValidOnNode", NodeId=node.id, NodeState=node.state)
        node.notice = notice

    def preempt_when_due(self, node: NodeRecord, now: float) -> None:
        notice = node.notice
        if notice is None or notice.not_before > now:
            return
        node.notice = None
        if node.leaving_for is None and node.outage is None:
            self.take_out(node, NodeOutage("preempted", now + notice.outage, wipe=True), now)

    def take_out(self, node: NodeRecord, outage: NodeOutage, now: float) -> None:
        if node.leaving_for is not None or node.outage is not None or node.state == "creating":
            raise Refused("OperationNotValidOnNode", NodeId=node.id, NodeState=node.state)
        node.outage, node.leaving_for, node.ready = outage, "outage", False
        _set_state(node, outage.state, now)
        self._cut(node)
        self._depart_when_at_rest(node, now)

    def _cut(self, node: NodeRecord) -> None:
        """End what runs there at once, as a machine's end does; Batch runs its tasks again."""
        for run in node.runs.values():
            self._context.stop(run, "requeue", NODE_LOST, hard=True)
        if node.start_run is not None:
            self._context.actions.append(Stop(node.start_run, hard=True))

    def come_back_when_due(self, node: NodeRecord, now: float) -> None:
        outage = node.outage
        if outage is None or node.leaving_for is not None or outage.until is None or outage.until > now:
            return
        node.outage = None
        _set_state(node, "starting", now)
        self._boot(node, wipe=outage.wipe)

    # Facts from the nodes

    def allocated(self, node: NodeRecord, now: float) -> None:
        """Record that the node's disk exists."""
        if node.leaving_for is None:
            _set_state(node, "starting", now)
            self._context.actions.append(Boot(node, node.boot, wipe=False))
        self._depart_when_at_rest(node, now)

    def booted(self, node: NodeRecord, boot: int, now: float) -> None:
        """Record that the node has booted for the `boot`-th time."""
        if boot != node.boot or node.leaving_for is not None or node.outage is not None:
            return
        spec = self._faults.of(node.pool.spec.id).start_task or node.pool.spec.start_task
        node.booted, node.errors = now, ()
        node.start_task = None if spec is None else StartTaskRecord(spec, started=now)
        node.ready = spec is None or not spec.wait_for_success
        if spec is not None:
            _set_state(node, "waitingforstarttask", now)
            self._run_start_task(node)
        self.settle(node, now)

    def start_task_ended(self, run: int, outcome: Outcome, now: float) -> None:
        """Record that a start task's processes are gone."""
        node = self._start_runs.pop(run)
        record = node.start_task
        if node.start_run != run or record is None:
            raise AssertionError("a start task ended that its node did not run")
        node.start_run = None
        limit = record.spec.command.max_retries
        concerned = node.leaving_for is None and not node.errors
        if concerned and outcome.is_retriable(limit, record.retries):
            record.retries, record.last_retry = record.retries + 1, now
            self._run_start_task(node)
            return
        record.ended, record.outcome = now, outcome.judged()
        if concerned:
            node.ready = record.outcome.succeeded or not record.spec.wait_for_success
            if not node.ready:
                _set_state(node, "starttaskfailed", now)
        self.run_ended(node, now)

    def run_began(self, node: NodeRecord, now: float) -> None:
        """Count the slots of the node that a run took."""
        self.settle(node, now)

    def run_ended(self, node: NodeRecord, now: float) -> None:
        """Record that a run, or the start task's, is over on the node."""
        self._depart_when_at_rest(node, now)
        self.settle(node, now)

    # Decisions

    def leave(self, node: NodeRecord, purpose: Departure, option: Deallocation, now: float) -> None:
        if node.leaving_for == "removal":
            return
        allocated = node.state != "creating"
        node.leaving_for, node.ready, node.outage = purpose, False, None
        _set_state(node, _DEPARTING[purpose], now)
        self._evict(node, option)
        if node.start_run is not None:
            self._context.actions.append(Stop(node.start_run))
        if allocated:
            self._depart_when_at_rest(node, now)

    def stay(self, node: NodeRecord, now: float) -> None:
        """Keep a node that was about to be removed and still waits for its tasks."""
        node.leaving_for, node.ready = None, True
        self.settle(node, now)

    def _evict(self, node: NodeRecord, option: Deallocation) -> None:
        for run in node.runs.values():
            match option:
                case "requeue":
                    self._context.stop(run, "requeue", ENDED_BY_USER)
                case "terminate":
                    self._context.stop(run, "complete", ENDED_BY_USER)

    def _depart_when_at_rest(self, node: NodeRecord, now: float) -> None:
        """Do what had to wait until nothing runs on the node any more."""
        if node.runs or node.start_run is not None:
            return
        match node.leaving_for:
            case "removal":
                self._context.actions.append(Remove(node))
            case "reboot" | "reimage" as purpose:
                node.leaving_for = None
                self._boot(node, wipe=purpose == "reimage")
            case "deallocation":
                node.leaving_for = None
                _set_state(node, "deallocated", now)
            case "outage":
                node.leaving_for = None
                self.come_back_when_due(node, now)

    def _boot(self, node: NodeRecord, *, wipe: bool) -> None:
        node.boot += 1
        self._context.actions.append(Boot(node, node.boot, wipe=wipe))

    def _run_start_task(self, node: NodeRecord) -> None:
        node.start_run = self._context.next_serial()
        self._start_runs[node.start_run] = node
        self._context.actions.append(RunStartTask(node, node.start_run))

    def settle(self, node: NodeRecord, now: float) -> None:
        """Bring a node that may run tasks to the state that tells whether it does."""
        if not node.ready or node.leaving_for is not None:
            return
        at_rest: NodeState = "idle" if node.enabled else "offline"
        _set_state(node, "running" if node.runs else at_rest, now)

    def create(self, pool: PoolRecord, dedicated: bool, now: float) -> None:
        origin = f"{self._account}/{id_key(pool.spec.id)}/{pool.stamp.serial}"
        host = hashlib.sha256(origin.encode()).hexdigest()[:8]
        digest = hashlib.sha256(f"{origin}/{pool.nodes_made}".encode()).hexdigest()
        node = NodeRecord(
            id=f"tvmps_{digest}_{'d' if dedicated else 'p'}",
            serial=self._context.next_serial(),
            pool=pool,
            dedicated=dedicated,
            host_name=f"{host}{pool.nodes_made:06d}",
            allocated=now,
            state_since=now,
        )
        pool.nodes_made += 1
        pool.nodes[id_key(node.id)] = node
        self._context.actions.append(Allocate(node))


def _set_state(node: NodeRecord, state: NodeState, now: float) -> None:
    if node.state != state:
        node.state, node.state_since = state, now

"""The state of the Batch service as a machine: whatever happens in whatever order, its invariants hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchflow.local.batch.core.actions import Allocate, Boot, Remove, RunStartTask, RunTask, Stop
from batchflow.local.batch.core.entities import (
    BatchJobSpec,
    BatchPoolSpec,
    BatchTaskSpec,
    CommandSpec,
    NodeRecord,
    Outcome,
    PoolRecord,
    StartTaskSpec,
    TaskRecord,
    TaskRun,
)
from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.state import BatchState

SLOTS = 3
OPTIONS = st.sampled_from(["requeue", "terminate", "taskcompletion"])
NODE_CHANGES = ("reboot", "reimage", "deallocate", "start", "disable", "enable", "remove")
OUTCOMES = st.sampled_from([Outcome(0), Outcome(1), Outcome(137)])


@contextmanager
def allowed_refusal(*codes: str) -> Iterator[None]:
    """A request that the service may refuse, but only with one of these codes; none: with any conflict."""
    try:
        yield
    except Refused as refused:
        if refused.code not in codes if codes else refused.status != 409:
            raise


def pool_spec(pool_id: str = "pool", *, start_task: StartTaskSpec | None = None) -> BatchPoolSpec:
    """A pool of nodes with a few slots."""
    return BatchPoolSpec(pool_id, "standard_d2s_v3", SLOTS, "spread", start_task, 900.0, {})


def job_spec(
    job_id: str = "job", *, ends: bool = False, priority: int = 0, parallel: int = -1
) -> BatchJobSpec:
    """A job in the pool."""
    return BatchJobSpec(job_id, "pool", priority, parallel, None, ends, {}, {})


def task_spec(
    task_id: str, *, slots: int = 1, retries: int = 0, seconds: float | None = None
) -> BatchTaskSpec:
    """A task with the limits given."""
    return BatchTaskSpec(task_id, CommandSpec("command", max_retries=retries, max_seconds=seconds), slots, {})


class Nodes:
    """What the shell would do, done by hand: the actions not yet answered."""

    def __init__(self, state: BatchState) -> None:
        self.state = state
        self.now = 1000.0
        self.allocating: list[NodeRecord] = []
        self.booting: list[tuple[NodeRecord, int]] = []
        self.starting: dict[int, NodeRecord] = {}
        self.removing: list[NodeRecord] = []
        self.runs: dict[int, TaskRun] = {}
        self.stopping: set[int] = set()

    def act(self) -> None:
        """Take what the state wants done."""
        self.now += 1.0
        for action in self.state.take_actions(self.now):
            match action:
                case Allocate(node):
                    self.allocating.append(node)
                case Boot(node, boot, _):
                    self.booting.append((node, boot))
                case RunStartTask(node, run):
                    self.starting[run] = node
                case RunTask(run):
                    assert run.id not in self.runs
                    self.runs[run.id] = run
                case Stop(run_id):
                    assert run_id in self.runs or run_id in self.starting
                    self.stopping.add(run_id)
                case Remove(node):
                    assert node not in self.removing
                    self.removing.append(node)

    def allocate(self) -> None:
        """All disks that are asked for are there."""
        while self.allocating:
            self.state.pools.node_allocated(self.allocating.pop(0), self.now)
        self.act()

    def boot(self) -> None:
        """All nodes that boot have booted."""
        while self.booting:
            self.state.nodes.booted(*self.booting.pop(0), self.now)
        self.act()

    def end(self, run_id: int, outcome: Outcome) -> None:
        """A run's processes are gone."""
        del self.runs[run_id]
        self.stopping.discard(run_id)
        self.state.run_ended(run_id, outcome, self.now)
        self.act()

    def end_start(self, run_id: int, outcome: Outcome) -> None:
        """A start task's processes are gone."""
        del self.starting[run_id]
        self.stopping.discard(run_id)
        self.state.nodes.start_task_ended(run_id, outcome, self.now)
        self.act()

    def remove(self) -> None:
        """All disks that shall go are gone."""
        while self.removing:
            self.state.pools.node_removed(self.removing.pop(0), self.now)
        self.act()

    def settle(self) -> None:
        """Everything but what runs and was not stopped comes to its end."""
        while self.allocating or self.booting or self.removing or self.stopping or self.starting:
            self.allocate()
            self.boot()
            for run_id in list(self.starting):
                self.end_start(run_id, Outcome(0))
            for run_id in list(self.stopping):
                self.end(run_id, Outcome(143))
            self.remove()


class BatchMachine(RuleBasedStateMachine):
    """One pool, two jobs, and everything that users and nodes may do to them."""

    def __init__(self) -> None:
        super().__init__()
        self.state = BatchState("account")
        self.nodes = Nodes(self.state)
        self.names = 0
        self.tasks: dict[tuple[str, str], TaskRecord] = {}
        self._make_pool()
        for job_id in ("low", "high"):
            self.state.jobs.create_job(job_spec(job_id, priority=len(job_id), parallel=4), self.nodes.now)

    def _make_pool(self) -> None:
        start_task = StartTaskSpec(CommandSpec("start", max_retries=1), wait_for_success=True)
        self.state.pools.create_pool(pool_spec(start_task=start_task), 2, 1, self.nodes.now)
        self.nodes.act()

    def _pool(self) -> PoolRecord:
        return self.state.pools.pool("pool")

    @rule(job=st.sampled_from(["low", "high"]), slots=st.integers(1, SLOTS), retries=st.integers(-1, 2))
    def create_task(self, job: str, slots: int, retries: int) -> None:
        self.names += 1
        spec = task_spec(f"task-{self.names}", slots=slots, retries=max(0, retries))
        self.tasks[job, spec.id] = self.state.jobs.create_task(self.state.jobs.job(job), spec, self.nodes.now)
        self.nodes.act()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), what=st.sampled_from(["terminate", "reactivate", "delete"]))
    def change_task(self, data: st.DataObject, what: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.tasks)))
        task = self.tasks[key]
        with allowed_refusal():
            getattr(self.state.jobs, f"{what}_task")(task, self.nodes.now)
            if what == "delete":
                del self.tasks[key]
        self.nodes.act()

    @rule(wanted=st.integers(0, 3), spot=st.integers(0, 2), option=OPTIONS)
    def resize(self, wanted: int, spot: int, option: Any) -> None:
        with allowed_refusal("PoolBeingResized", "OperationNotValidOnPool"):
            self.state.pools.resize_pool(self._pool(), wanted, spot, option, None, self.nodes.now)
        self.nodes.act()

    @rule()
    def stop_resize(self) -> None:
        with allowed_refusal("OperationInvalidForCurrentState"):
            self.state.pools.stop_resize(self._pool(), self.nodes.now)
        self.nodes.act()

    @rule(wanted=st.integers(0, 3), seconds=st.sampled_from([1.0, 400.0]))
    def enable_formula(self, wanted: int, seconds: float) -> None:
        text = f"$TargetDedicatedNodes = ({wanted} + $CurrentDedicatedNodes) / 2"
        with allowed_refusal("PoolBeingResized", "TooManyEnableAutoScaleRequests"):
            self.state.pools.enable_formula(self._pool(), text, 300.0, self.nodes.now)
        self.nodes.now += seconds
        self.state.tick(self.nodes.now)
        self.nodes.act()

    @rule()
    def disable_formula(self) -> None:
        self.state.pools.disable_formula(self._pool(), self.nodes.now)
        self.nodes.act()

    @precondition(lambda self: self._pool().nodes)
    @rule(data=st.data(), option=OPTIONS, what=st.sampled_from(NODE_CHANGES))
    def change_node(self, data: st.DataObject, option: Any, what: str) -> None:
        node = self._pool().nodes[data.draw(st.sampled_from(sorted(self._pool().nodes)))]
        nodes, now = self.state.nodes, self.nodes.now
        with allowed_refusal():
            match what:
                case "reboot" | "reimage" | "deallocate":
                    getattr(nodes, what)(node, option, now)
                case "start":
                    nodes.start(node, now)
                case "disable":
                    nodes.disable_scheduling(node, option, now)
                case "enable":
                    nodes.enable_scheduling(node, now)
                case "remove":
                    self.state.pools.remove_nodes(self._pool(), [node.id], option, None, now)
        self.nodes.act()

    @rule(job=st.sampled_from(["low", "high"]), option=st.sampled_from(["requeue", "terminate", "wait"]))
    def disable_job(self, job: str, option: Any) -> None:
        with allowed_refusal("JobDisabled", "JobNotActive"):
            self.state.jobs.disable_job(self.state.jobs.job(job), option, self.nodes.now)
        self.nodes.act()

    @rule(job=st.sampled_from(["low", "high"]))
    def enable_job(self, job: str) -> None:
        with allowed_refusal("JobNotActive"):
            self.state.jobs.enable_job(self.state.jobs.job(job), self.nodes.now)
        self.nodes.act()

    @rule()
    def nodes_allocated(self) -> None:
        self.nodes.allocate()

    @rule()
    def nodes_booted(self) -> None:
        self.nodes.boot()

    @rule()
    def nodes_removed(self) -> None:
        self.nodes.remove()

    @precondition(lambda self: self.nodes.starting)
    @rule(data=st.data(), outcome=OUTCOMES)
    def start_task_ends(self, data: st.DataObject, outcome: Outcome) -> None:
        self.nodes.end_start(data.draw(st.sampled_from(sorted(self.nodes.starting))), outcome)

    @precondition(lambda self: self.nodes.runs)
    @rule(data=st.data(), launched=st.booleans(), outcome=OUTCOMES)
    def run_ends(self, data: st.DataObject, launched: bool, outcome: Outcome) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.nodes.runs)))
        if launched:
            self.state.run_launched(run_id, self.nodes.now)
        self.nodes.end(run_id, outcome)

    @invariant()
    def formulas_are_evaluated_in_time(self) -> None:
        formula, run = self._pool().spec.formula, self._pool().formula_run
        assert (formula is None) == (run is None)
        assert formula is None or run is None or self.nodes.now < run.at + formula.interval

    @invariant()
    def tasks_are_in_one_place(self) -> None:
        running = {id(run.task): run for run in self.nodes.runs.values()}
        for task in self.tasks.values():
            waits = task in task.job.waiting.values()
            assert (task.state == "active") == waits, task.state
            assert (task.run is not None) == (id(task) in running)
            assert task.state not in ("preparing", "running") or task.run in self.nodes.runs
        assert len(running) == len(self.nodes.runs)

    @invariant()
    def slots_are_not_oversubscribed(self) -> None:
        for node in self._pool().nodes.values():
            assert 0 <= node.slots_taken <= SLOTS
        for job in self.state.jobs.by_id.values():
            assert len(job.runs) <= 4

    @invariant()
    def nodes_that_leave_are_let_go(self) -> None:
        for node in self._pool().nodes.values():
            if node.leaving_for == "removal":
                assert node.runs or node.start_run or node in [*self.nodes.removing, *self.nodes.allocating]
            assert node.state != "idle" or not node.runs
            assert node.state != "running" or node.runs

    @invariant()
    def no_slot_is_left_free_beside_a_task_that_fits(self) -> None:
        for job in self.state.jobs.by_id.values():
            if job.state != "active" or len(job.runs) >= 4:
                continue
            free = max((n.slots_free for n in self._pool().nodes.values() if n.accepts_tasks), default=0)
            assert all(task.spec.slots > free for task in job.waiting.values())

    def teardown(self) -> None:
        """Left alone, everything comes to rest: nothing is lost, and the pool can be taken away."""
        for job in self.state.jobs.by_id.values():
            if job.state in ("disabling", "disabled"):
                self.state.jobs.enable_job(job, self.nodes.now)
        self.nodes.act()
        self.nodes.settle()
        while self.nodes.runs:
            self.nodes.end(next(iter(self.nodes.runs)), Outcome(0))
            self.nodes.settle()
        assert self._pool().allocation == "steady"
        if any(node.accepts_tasks for node in self._pool().nodes.values()):
            assert all(task.state == "completed" for task in self.tasks.values())
        self.state.pools.delete_pool(self._pool(), self.nodes.now)
        self.nodes.act()
        self.nodes.settle()
        assert not self.state.pools.by_id


TestBatchMachine = BatchMachine.TestCase
TestBatchMachine.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.fixture
def nodes() -> Nodes:
    """A state with a pool of one ready node, and a job."""
    made = Nodes(BatchState("account"))
    made.state.pools.create_pool(pool_spec(), 1, 0, made.now)
    made.state.jobs.create_job(job_spec(), made.now)
    made.act()
    made.settle()
    return made


def test_resize_that_runs_out_of_time_is_given_up(nodes: Nodes) -> None:
    """A node that only waits for its tasks stays when the resize timeout is over, and the pool says why."""
    state = nodes.state
    pool, job = state.pools.pool("pool"), state.jobs.job("job")
    state.jobs.create_task(job, task_spec("task"), nodes.now)
    nodes.act()
    state.pools.resize_pool(pool, 0, None, "taskcompletion", 300.0, nodes.now)
    deadline = nodes.now + 300.0
    assert deadline in state.pools.deadlines()
    state.tick(deadline)
    assert (pool.allocation, [error.code for error in pool.resize_errors]) == (
        "steady",
        ["AllocationTimedout"],
    )
    assert [node.state for node in pool.nodes.values()] == ["running"]


def test_job_that_runs_out_of_time_is_terminated(nodes: Nodes) -> None:
    """A job's wall clock time counts from its creation, and ends its tasks."""
    state = nodes.state
    spec = BatchJobSpec("short", "pool", 0, -1, 60.0, False, {}, {})
    job = state.jobs.create_job(spec, nodes.now)
    task = state.jobs.create_task(job, task_spec("task"), nodes.now)
    nodes.act()
    state.tick(job.stamp.created + 60.0)
    assert job.state == "terminating"
    nodes.act()
    nodes.settle()
    assert (job.state, job.reason, task.state) == ("completed", "MaxWallClockTimeExpiry", "completed")


def test_large_task_lets_small_ones_pass(nodes: Nodes) -> None:
    """A task that needs more slots than are free does not keep a smaller one waiting."""
    jobs = nodes.state.jobs
    job = jobs.job("job")
    made = [jobs.create_task(job, task_spec(f"task-{slots}", slots=slots), nodes.now) for slots in (2, 3, 1)]
    nodes.act()
    assert [task.state for task in made] == ["preparing", "active", "preparing"]


def test_pool_deleted_during_boot_goes(nodes: Nodes) -> None:
    """A pool whose nodes are being made or booted can be deleted; late news of them changes nothing."""
    pools = nodes.state.pools
    pool = pools.create_pool(pool_spec("young"), 2, 0, nodes.now)
    nodes.act()
    pools.node_allocated(nodes.allocating.pop(0), nodes.now)
    nodes.act()
    pools.delete_pool(pool, nodes.now)
    nodes.act()
    nodes.settle()
    assert "young" not in pools.by_id


def test_packed_and_spread_pools_differ() -> None:
    """A pool that packs fills one node first, one that spreads takes the emptiest."""
    for fill, expected in (("pack", [0, 2]), ("spread", [1, 1])):
        nodes = Nodes(BatchState("account"))
        spec = BatchPoolSpec("pool", "standard_d2s_v3", SLOTS, fill, None, 900.0, {})  # type: ignore[arg-type]
        pool = nodes.state.pools.create_pool(spec, 2, 0, nodes.now)
        job = nodes.state.jobs.create_job(job_spec(), nodes.now)
        nodes.act()
        nodes.settle()
        for number in range(2):
            nodes.state.jobs.create_task(job, task_spec(f"task-{number}"), nodes.now)
        nodes.act()
        assert sorted(len(node.runs) for node in pool.nodes.values()) == expected


def test_names_are_taken_until_their_owners_are_gone(nodes: Nodes) -> None:
    """What is being deleted still has its name, and says that it is on its way."""
    state = nodes.state
    state.jobs.create_task(state.jobs.job("job"), task_spec("task"), nodes.now)
    nodes.act()
    with pytest.raises(Refused, match="JobExists"):
        state.jobs.create_job(job_spec(), nodes.now)
    with pytest.raises(Refused, match="PoolExists"):
        state.pools.create_pool(pool_spec(), 1, 0, nodes.now)
    state.jobs.delete_job(state.jobs.job("job"), nodes.now)
    state.pools.delete_pool(state.pools.pool("pool"), nodes.now)
    with pytest.raises(Refused, match="JobBeingDeleted"):
        state.jobs.create_job(job_spec(), nodes.now)
    with pytest.raises(Refused, match="PoolBeingDeleted"):
        state.pools.create_pool(pool_spec(), 1, 0, nodes.now)
    nodes.act()
    nodes.settle()
    state.jobs.create_job(job_spec(), nodes.now)
    state.pools.create_pool(pool_spec(), 1, 0, nodes.now)

"""The state of the local Batch service, and its decisions: a core without clock, socket or process.

Users' requests and facts from the nodes come in as method calls with the time; what must be done comes out of
`take_actions()`. A request that the service would refuse raises `Refused` and changes nothing.

Pools      active -> deleting -> (gone, when the last node is); allocation: steady -> resizing -> steady, by way
           of stopping when the resize was stopped. A resize is done when the nodes there are, are those wanted,
           and none of them is being created or is leaving.
Nodes      creating -> starting -> waitingforstarttask -> idle <-> running; starttaskfailed when the start task
           failed and success was asked for; offline when disabled and at rest; leavingpool, rebooting, reimaging
           from the moment they are asked for. What has to wait for running tasks is kept in `leaving_for` and
           done when the last run and the start task are gone.
Jobs       active -> terminating -> completed; active -> disabling -> disabled -> active; any -> deleting -> (gone).
           The intermediate states last while the job has runs.
Tasks      active -> preparing -> running -> completed; back to active by retry, requeue and reactivation.

Invariants: a task is active if and only if it waits in its job's queue; it has at most one run, and a task that
is preparing or running has exactly one; a node's runs never take more slots than it has; a run belongs to one
node and ends exactly once; a task that was not deleted is in its job.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from batchflow.local.batch_entities import (
    Deallocation,
    Document,
    Execution,
    Failure,
    Job,
    JobSpec,
    JobState,
    Node,
    NodeState,
    Outcome,
    Pool,
    PoolSpec,
    Run,
    StartTaskRecord,
    Task,
    TaskSpec,
    TaskState,
    Versioned,
)
from batchflow.local.batch_errors import Refused, invalid_property

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_REMOVED_NODES = 100
RECENT_TASKS = 10

ENDED_BY_USER = Failure("usererror", "TaskEnded", "The task was ended by user request.")
OUT_OF_TIME = Failure("usererror", "TaskEnded", "The task exceeded its maximum wall clock time.")
BAD_EXIT = Failure(
    "usererror",
    "FailureExitCode",
    "The task exited with an exit code representing a failure",
    (("Message", "The task exited with an exit code representing a failure"),),
)


@dataclass(frozen=True, slots=True)
class Allocate:
    """Make the node's disk, then tell `node_allocated`."""

    node: Node


@dataclass(frozen=True, slots=True)
class Boot:
    """Boot the node, its disk wiped first or not, then tell `node_booted`."""

    node: Node
    boot: int
    wipe: bool


@dataclass(frozen=True, slots=True)
class RunStartTask:
    """Run the node's start task, then tell `start_task_ended`."""

    node: Node
    run: int


@dataclass(frozen=True, slots=True)
class RunTask:
    """Run a task on its node; tell `run_launched` when it runs and `run_ended` when its processes are gone."""

    run: Run


@dataclass(frozen=True, slots=True)
class Stop:
    """End a run, or a start task's, with its processes."""

    run: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Take the node's disk away, then tell `node_removed`."""

    node: Node


@dataclass(frozen=True, slots=True)
class Discard:
    """Take a job's directory, or one task's, away from the nodes."""

    nodes: tuple[Node, ...]
    job_id: str
    task_id: str | None


Action = Allocate | Boot | RunStartTask | RunTask | Stop | Remove | Discard


def fold(name: str) -> str:
    """Ids keep their case, and differ by more than it."""
    return name.lower()


class BatchState:
    """Everything that one Batch account holds."""

    def __init__(self, account: str) -> None:
        self.pools: dict[str, Pool] = {}
        self.jobs: dict[str, Job] = {}
        self._account = account
        self._runs: dict[int, Run] = {}
        self._start_runs: dict[int, Node] = {}
        self._serial = 0
        self._actions: list[Action] = []

    def take_actions(self) -> list[Action]:
        """What must be done since this was last asked, in order."""
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When `tick` has to be called, at the latest."""
        deadlines = [run.deadline for run in self._runs.values() if run.deadline is not None]
        deadlines += [
            pool.resize_deadline for pool in self.pools.values() if pool.resize_deadline is not None
        ]
        deadlines += [job.stamp.created + job.spec.max_seconds for job in self._bounded_jobs()]
        return min(deadlines, default=None)

    def tick(self, now: float) -> None:
        """Enforce the limits of time that have passed."""
        for run in [run for run in self._runs.values() if run.deadline is not None and run.deadline <= now]:
            run.deadline = None
            self._stop(run, "complete", OUT_OF_TIME)
        for pool in list(self.pools.values()):
            if pool.resize_deadline is not None and pool.resize_deadline <= now:
                self._resize_timed_out(pool, now)
        for job in list(self._bounded_jobs()):
            if job.stamp.created + (job.spec.max_seconds or 0.0) <= now:
                self._terminate_job(job, "MaxWallClockTimeExpiry", now)

    # Pools

    def pool(self, pool_id: str) -> Pool:
        """Raises Refused: PoolNotFound."""
        pool = self.pools.get(fold(pool_id))
        if pool is None:
            raise Refused("PoolNotFound", PoolId=pool_id)
        return pool

    def create_pool(self, spec: PoolSpec, wanted: int, spot_wanted: int, now: float) -> Pool:
        """Make a pool and begin to allocate its nodes."""
        if fold(spec.id) in self.pools:
            raise Refused("PoolExists", PoolId=spec.id)
        pool = Pool(spec, self._stamp(now), wanted, spot_wanted, state_since=now, allocation_since=now)
        self.pools[fold(spec.id)] = pool
        self._begin_resize(pool, now)
        self._allocate(pool, "requeue", now)
        return pool

    def change_pool(self, pool: Pool, spec: PoolSpec, now: float) -> None:
        """Give a pool another specification; a changed start task counts from a node's next boot."""
        self._check_not_deleting(pool)
        pool.spec = spec
        self._touch(pool.stamp, now)

    def delete_pool(self, pool: Pool, now: float) -> None:
        """Take the pool's nodes away, tasks requeued, and then the pool."""
        self._check_not_deleting(pool)
        pool.state, pool.state_since = "deleting", now
        pool.wanted = pool.spot_wanted = 0
        self._touch(pool.stamp, now)
        if pool.allocation == "steady":
            self._begin_resize(pool, now)
        for node in list(pool.nodes.values()):
            self._leave(node, "removal", "requeue", now)
        self._settle_pool(pool, now)

    def resize_pool(
        self,
        pool: Pool,
        wanted: int | None,
        spot_wanted: int | None,
        option: Deallocation,
        timeout: float | None,
        now: float,
    ) -> None:
        """Begin to bring the pool to another size; None leaves that count as it is."""
        self._check_resizable(pool)
        pool.wanted = pool.wanted if wanted is None else wanted
        pool.spot_wanted = pool.spot_wanted if spot_wanted is None else spot_wanted
        self._touch(pool.stamp, now)
        self._begin_resize(pool, now, timeout)
        self._allocate(pool, option, now)

    def stop_resize(self, pool: Pool, now: float) -> None:
        """Leave the pool at the size that it has got to."""
        self._check_not_deleting(pool)
        if pool.allocation != "resizing":
            raise Refused("OperationInvalidForCurrentState", PoolId=pool.spec.id, Reason="no resize to stop")
        self._touch(pool.stamp, now)
        self._abandon_resize(
            pool,
            Failure(
                "usererror",
                "ResizeStopped",
                "Desired number of nodes could not be allocated as the resize operation was stopped",
            ),
            now,
        )

    def remove_nodes(
        self, pool: Pool, node_ids: list[str], option: Deallocation, timeout: float | None, now: float
    ) -> None:
        """Take the named nodes away; the pool is then wanted that much smaller."""
        self._check_resizable(pool)
        if not 1 <= len(node_ids) <= MAX_REMOVED_NODES:
            raise invalid_property("nodeList", len(node_ids), "1 to 100 nodes can be removed in one request.")
        nodes = [self.node(pool, node_id) for node_id in dict.fromkeys(node_ids)]
        pool.wanted -= sum(node.dedicated for node in nodes)
        pool.spot_wanted -= sum(not node.dedicated for node in nodes)
        self._touch(pool.stamp, now)
        self._begin_resize(pool, now, timeout)
        for node in nodes:
            self._leave(node, "removal", option, now)
        self._settle_pool(pool, now)

    # Nodes, as users ask

    def node(self, pool: Pool, node_id: str) -> Node:
        """Raises Refused: NodeNotFound."""
        node = pool.nodes.get(fold(node_id))
        if node is None:
            raise Refused("NodeNotFound", PoolId=pool.spec.id, NodeId=node_id)
        return node

    def reboot(
        self, node: Node, option: Deallocation, now: float, *, kind: Literal["reboot", "reimage"] = "reboot"
    ) -> None:
        """Boot the node again, with its disk wiped when it is to be re-imaged."""
        match node.state:
            case "creating" | "starting":
                raise Refused("NodeBeingCreated", NodeId=node.id)
            case "rebooting":
                raise Refused("NodeBeingRebooted", NodeId=node.id)
            case "reimaging":
                raise Refused("NodeBeingReimaged", NodeId=node.id)
            case "leavingpool":
                raise Refused(
                    "OperationNotValidOnNode", NodeId=node.id, Reason="the node is leaving the pool"
                )
        self._leave(node, kind, option, now)

    def disable_scheduling(self, node: Node, option: Deallocation, now: float) -> None:
        """Give the node no further tasks, and deal with those that it has as `option` says."""
        if not node.enabled:
            raise Refused("NodeAlreadyInTargetSchedulingState", NodeId=node.id)
        node.enabled = False
        self._evict(node, option)
        self._settle_node(node, now)

    def enable_scheduling(self, node: Node, now: float) -> None:
        """Let the node have tasks again."""
        if node.enabled:
            raise Refused("NodeAlreadyInTargetSchedulingState", NodeId=node.id)
        node.enabled = True
        self._settle_node(node, now)
        self._schedule(now)

    # Jobs

    def job(self, job_id: str) -> Job:
        """Raises Refused: JobNotFound."""
        job = self.jobs.get(fold(job_id))
        if job is None:
            raise Refused("JobNotFound", JobId=job_id)
        return job

    def create_job(self, spec: JobSpec, now: float) -> Job:
        """Make a job; its pool need not exist yet."""
        if fold(spec.id) in self.jobs:
            raise Refused("JobExists", JobId=spec.id)
        job = Job(spec, self._stamp(now), state_since=now)
        self.jobs[fold(spec.id)] = job
        self._end_when_done(job, now)
        return job

    def change_job(self, job: Job, spec: JobSpec, now: float) -> None:
        """Give a job another specification."""
        if job.state in ("terminating", "completed", "deleting"):
            raise self._job_refusal(job)
        if spec.pool_id != job.spec.pool_id and job.state != "disabled":
            raise Refused(
                "OperationInvalidForCurrentState",
                JobId=job.spec.id,
                Reason="the pool can be changed only while the job is disabled",
            )
        job.spec = spec
        self._touch(job.stamp, now)
        self._end_when_done(job, now)
        self._schedule(now)

    def terminate_job(self, job: Job, reason: str, now: float) -> None:
        """End the job's running tasks, then the job; tasks that wait stay as they are."""
        if job.state in ("terminating", "completed", "deleting"):
            raise self._job_refusal(job)
        self._terminate_job(job, reason, now)

    def disable_job(self, job: Job, option: Literal["requeue", "terminate", "wait"], now: float) -> None:
        """Start none of the job's tasks, and deal with the running ones as `option` says."""
        if job.state != "active":
            raise self._job_refusal(job)
        self._set_job_state(job, "disabling", now)
        self._touch(job.stamp, now)
        for run in self._runs_of(job):
            if option != "wait":
                self._stop(run, "requeue" if option == "requeue" else "complete", ENDED_BY_USER)
        self._settle_job(job, now)

    def enable_job(self, job: Job, now: float) -> None:
        """Start tasks of a disabled job again."""
        if job.state not in ("disabled", "disabling"):
            raise self._job_refusal(job)
        self._set_job_state(job, "active", now)
        self._touch(job.stamp, now)
        self._end_when_done(job, now)
        self._schedule(now)

    def delete_job(self, job: Job, now: float) -> None:
        """End the job's running tasks, then remove the job, its tasks and its files."""
        if job.state == "deleting":
            raise self._job_refusal(job)
        self._set_job_state(job, "deleting", now)
        self._touch(job.stamp, now)
        for run in self._runs_of(job):
            self._stop(run, "complete", ENDED_BY_USER)
        self._settle_job(job, now)

    # Tasks

    def task(self, job: Job, task_id: str) -> Task:
        """Raises Refused: TaskNotFound."""
        task = job.tasks.get(fold(task_id))
        if task is None:
            raise Refused("TaskNotFound", JobId=job.spec.id, TaskId=task_id)
        return task

    def create_task(self, job: Job, spec: TaskSpec, now: float) -> Task:
        """Add a task to the end of the job's queue."""
        if job.state in ("terminating", "completed", "deleting"):
            raise self._job_refusal(job)
        if fold(spec.id) in job.tasks:
            raise Refused("TaskExists", JobId=job.spec.id, TaskId=spec.id)
        task = Task(spec, job, self._stamp(now), state_since=now)
        job.tasks[fold(spec.id)] = job.waiting[fold(spec.id)] = task
        self._schedule(now)
        return task

    def change_task(self, task: Task, spec: TaskSpec, now: float) -> None:
        """Give a task other constraints."""
        if task.state == "completed":
            raise Refused("TaskCompleted", TaskId=task.spec.id)
        task.spec = spec
        self._touch(task.stamp, now)

    def delete_task(self, task: Task, now: float) -> None:
        """Remove a task, its processes and its files."""
        job = task.job
        del job.tasks[fold(task.spec.id)]
        job.waiting.pop(fold(task.spec.id), None)
        if task.run is not None:
            self._stop(self._runs[task.run], "complete", ENDED_BY_USER)
        if task.place is not None:
            self._actions.append(Discard((task.place,), job.spec.id, task.spec.id))
        self._end_when_done(job, now)

    def terminate_task(self, task: Task, now: float) -> None:
        """Complete a task as ended by its user, at once; its processes end soon after."""
        if task.state == "completed":
            raise Refused("TaskCompleted", TaskId=task.spec.id)
        task.job.waiting.pop(fold(task.spec.id), None)
        if task.run is not None:
            self._stop(self._runs[task.run], "complete", ENDED_BY_USER)
        self._complete(task, Outcome(None, ENDED_BY_USER), now)
        self._touch(task.stamp, now)

    def reactivate_task(self, task: Task, now: float) -> None:
        """Let a task that completed without success run again, its retries counted anew."""
        job = task.job
        if task.state != "completed":
            raise Refused("TaskNotCompleted", TaskId=task.spec.id)
        if task.execution.outcome is not None and task.execution.outcome.succeeded:
            raise Refused("TaskSucceeded", TaskId=task.spec.id)
        if job.state in ("terminating", "completed", "deleting"):
            raise self._job_refusal(job)
        if task.run is not None:
            raise Refused(
                "OperationInvalidForCurrentState", TaskId=task.spec.id, Reason="the task is still ending"
            )
        task.execution = Execution(requeues=task.execution.requeues, last_requeue=task.execution.last_requeue)
        self._wait(task, now)
        self._touch(task.stamp, now)
        self._schedule(now)

    # Facts from the nodes

    def node_allocated(self, node: Node, now: float) -> None:
        """The node's disk is there."""
        if node.leaving_for is None:
            self._set_node_state(node, "starting", now)
            self._actions.append(Boot(node, node.boot, wipe=False))
        self._node_at_rest(node, now)
        self._settle_pool(node.pool, now)

    def node_booted(self, node: Node, boot: int, now: float) -> None:
        """The node has booted for the `boot`-th time."""
        if boot != node.boot or node.leaving_for == "removal":
            return
        node.booted = now
        spec = node.pool.spec.start_task
        node.start_task = None
        if spec is None:
            node.ready = True
        else:
            node.start_task = StartTaskRecord(spec, started=now)
            node.ready = not spec.wait_for_success
            self._set_node_state(node, "waitingforstarttask", now)
            self._run_start_task(node)
        self._settle_node(node, now)
        self._schedule(now)

    def start_task_ended(self, run: int, outcome: Outcome, now: float) -> None:
        """A start task's processes are gone."""
        node = self._start_runs.pop(run)
        record = node.start_task
        if node.start_run != run or record is None:
            raise AssertionError("a start task ended that its node did not run")
        node.start_run = None
        if node.leaving_for is None and self._retriable(
            outcome, record.spec.command.max_retries, record.retries
        ):
            record.retries, record.last_retry = record.retries + 1, now
            self._run_start_task(node)
            return
        record.ended, record.outcome = now, _judged(outcome)
        if record.outcome.succeeded or not record.spec.wait_for_success:
            node.ready = True
        elif node.leaving_for is None:
            self._set_node_state(node, "starttaskfailed", now)
        self._node_at_rest(node, now)
        self._settle_node(node, now)
        self._schedule(now)

    def node_removed(self, node: Node, now: float) -> None:
        """The node is gone."""
        del node.pool.nodes[fold(node.id)]
        self._settle_pool(node.pool, now)

    def run_launched(self, run_id: int, now: float) -> None:
        """A task's command has been started."""
        run = self._runs[run_id]
        if run.task.state == "preparing":
            self._set_task_state(run.task, "running", now)

    def run_ended(self, run_id: int, outcome: Outcome, now: float) -> None:
        """A run's processes are gone, all of them."""
        run = self._runs.pop(run_id)
        task, node, job = run.task, run.node, run.task.job
        del node.runs[run_id]
        job.runs.discard(run_id)
        task.run = None
        node.tasks_run += 1
        if task.state != "completed" and job.tasks.get(fold(task.spec.id)) is task:
            self._conclude(run, outcome, now)
        node.tasks_succeeded += task.execution.outcome is not None and task.execution.outcome.succeeded
        self._settle_job(job, now)
        self._node_at_rest(node, now)
        self._settle_node(node, now)
        self._schedule(now)

    # Decisions about runs

    def _conclude(self, run: Run, outcome: Outcome, now: float) -> None:
        task = run.task
        if run.stopped_for is not None and run.fate == "requeue":
            task.execution.requeues, task.execution.last_requeue = task.execution.requeues + 1, now
            self._wait(task, now)
        elif run.stopped_for is not None:
            self._complete(task, replace(outcome, failure=run.stopped_for), now)
        elif self._retriable(outcome, task.spec.command.max_retries, task.execution.retries):
            task.execution.retries, task.execution.last_retry = task.execution.retries + 1, now
            self._wait(task, now, first=True)
        else:
            self._complete(task, _judged(outcome), now)

    @staticmethod
    def _retriable(outcome: Outcome, allowed: int, used: int) -> bool:
        """Only a command that ran and exited with an error is retried (not one that could not start)."""
        failed = outcome.failure is None and outcome.exit_code != 0
        return failed and (allowed == -1 or used < allowed)

    def _complete(self, task: Task, outcome: Outcome, now: float) -> None:
        task.execution.ended, task.execution.outcome = now, outcome
        self._set_task_state(task, "completed", now)
        self._end_when_done(task.job, now)

    def _wait(self, task: Task, now: float, *, first: bool = False) -> None:
        job = task.job
        self._set_task_state(task, "active", now)
        task.execution.started = None
        if first:
            job.waiting = {fold(task.spec.id): task} | job.waiting
        else:
            job.waiting[fold(task.spec.id)] = task

    def _stop(self, run: Run, fate: Literal["complete", "requeue"], reason: Failure) -> None:
        """Ask for a run's end; completing a task outweighs requeueing it."""
        if run.stopped_for is None:
            self._actions.append(Stop(run.id))
        if run.stopped_for is None or fate == "complete":
            run.fate, run.stopped_for = fate, reason

    def _schedule(self, now: float) -> None:
        """Give the tasks that wait, the jobs of high priority first, to the nodes that have room."""
        for job in sorted(self.jobs.values(), key=lambda job: (-job.spec.priority, job.stamp.serial)):
            pool = self.pools.get(fold(job.spec.pool_id))
            if pool is None or job.state != "active":
                continue
            for task in list(job.waiting.values()):
                full = 0 <= job.spec.max_parallel <= len(job.runs)
                if full or _best_node(pool, slots=1) is None:
                    break
                node = _best_node(pool, task.spec.slots)
                if node is not None:
                    self._assign(task, node, now)

    def _assign(self, task: Task, node: Node, now: float) -> None:
        del task.job.waiting[fold(task.spec.id)]
        run = Run(self._next_serial(), task, node)
        if task.spec.command.max_seconds is not None:
            run.deadline = now + task.spec.command.max_seconds
        self._runs[run.id] = node.runs[run.id] = run
        task.job.runs.add(run.id)
        task.run, task.place = run.id, node
        task.execution.started = now
        self._set_task_state(task, "preparing", now)
        node.recent = [task, *(other for other in node.recent if other is not task)][:RECENT_TASKS]
        self._settle_node(node, now)
        self._actions.append(RunTask(run))

    # Decisions about nodes

    def _leave(
        self, node: Node, purpose: Literal["removal", "reboot", "reimage"], option: Deallocation, now: float
    ) -> None:
        if node.leaving_for == "removal":
            return
        node.leaving_for, node.ready = purpose, False
        words: dict[str, NodeState] = {
            "removal": "leavingpool",
            "reboot": "rebooting",
            "reimage": "reimaging",
        }
        created = node.state == "creating"
        self._set_node_state(node, words[purpose], now)
        self._evict(node, option)
        if node.start_run is not None:
            self._actions.append(Stop(node.start_run))
        if not created:
            self._node_at_rest(node, now)

    def _evict(self, node: Node, option: Deallocation) -> None:
        for run in node.runs.values():
            match option:
                case "requeue":
                    self._stop(run, "requeue", ENDED_BY_USER)
                case "terminate":
                    self._stop(run, "complete", ENDED_BY_USER)

    def _node_at_rest(self, node: Node, now: float) -> None:
        """Do what had to wait until nothing runs on the node any more."""
        if node.runs or node.start_run is not None:
            return
        match node.leaving_for:
            case "removal":
                if node.boot >= 0:
                    node.boot = -1
                    self._actions.append(Remove(node))
            case "reboot" | "reimage" as purpose:
                node.leaving_for = None
                node.boot += 1
                self._actions.append(Boot(node, node.boot, wipe=purpose == "reimage"))

    def _run_start_task(self, node: Node) -> None:
        node.start_run = self._next_serial()
        self._start_runs[node.start_run] = node
        self._actions.append(RunStartTask(node, node.start_run))

    def _settle_node(self, node: Node, now: float) -> None:
        """Bring a node that may run tasks to the state that tells whether it does."""
        if not node.ready or node.leaving_for is not None:
            return
        if node.runs:
            self._set_node_state(node, "running", now)
        else:
            self._set_node_state(node, "idle" if node.enabled else "offline", now)

    def _set_node_state(self, node: Node, state: NodeState, now: float) -> None:
        if node.state != state:
            node.state, node.state_since = state, now

    # Decisions about pools

    def _begin_resize(self, pool: Pool, now: float, timeout: float | None = None) -> None:
        pool.allocation, pool.allocation_since = "resizing", now
        pool.resize_errors = ()
        pool.resize_deadline = now + (pool.spec.resize_timeout if timeout is None else timeout)

    def _allocate(self, pool: Pool, option: Deallocation, now: float) -> None:
        """Make the nodes that are missing, and let those leave that are too many."""
        for dedicated, wanted in ((True, pool.wanted), (False, pool.spot_wanted)):
            staying = [node for node in _staying(pool) if node.dedicated == dedicated]
            for _ in range(wanted - len(staying)):
                self._make_node(pool, dedicated, now)
            surplus = sorted(staying, key=lambda node: (len(node.runs), -node.serial))
            for node in surplus[: max(0, len(staying) - wanted)]:
                self._leave(node, "removal", option, now)
        self._settle_pool(pool, now)

    def _make_node(self, pool: Pool, dedicated: bool, now: float) -> None:
        origin = f"{self._account}/{fold(pool.spec.id)}/{pool.stamp.serial}"
        digest = hashlib.sha256(f"{origin}/{pool.nodes_made}".encode()).hexdigest()
        host = hashlib.sha256(origin.encode()).hexdigest()[:8]
        node = Node(
            id=f"tvmps_{digest}_{'d' if dedicated else 'p'}",
            serial=self._next_serial(),
            pool=pool,
            dedicated=dedicated,
            host_name=f"{host}{pool.nodes_made:06d}",
            allocated=now,
            state_since=now,
        )
        pool.nodes_made += 1
        pool.nodes[fold(node.id)] = node
        self._actions.append(Allocate(node))

    def _settle_pool(self, pool: Pool, now: float) -> None:
        """End a resize that has come to its end, and a pool that has no more nodes to lose."""
        if pool.state == "deleting" and not pool.nodes:
            self.pools.pop(fold(pool.spec.id), None)
        restless = any(node.state in ("creating", "leavingpool") for node in pool.nodes.values())
        if pool.allocation != "steady" and not restless:
            pool.allocation, pool.allocation_since = "steady", now
            pool.resize_deadline = None

    def _abandon_resize(self, pool: Pool, reason: Failure, now: float) -> None:
        """Take no further step towards the size wanted: nodes that only wait for their tasks stay."""
        pool.allocation, pool.allocation_since = "stopping", now
        pool.resize_deadline = None
        for node in pool.nodes.values():
            if (
                node.leaving_for == "removal"
                and node.runs
                and not any(run.stopped_for for run in node.runs.values())
            ):
                node.leaving_for, node.ready = None, True
                self._settle_node(node, now)
        if len(list(_staying(pool))) != pool.wanted + pool.spot_wanted:
            pool.resize_errors = (reason,)
        self._settle_pool(pool, now)

    def _resize_timed_out(self, pool: Pool, now: float) -> None:
        reason = Failure(
            "usererror",
            "AllocationTimedout",
            "Desired number of nodes could not be reached within the resize timeout",
        )
        self._abandon_resize(pool, reason, now)

    # Decisions about jobs

    def _terminate_job(self, job: Job, reason: str, now: float) -> None:
        job.reason = reason
        self._set_job_state(job, "terminating", now)
        self._touch(job.stamp, now)
        for run in self._runs_of(job):
            self._stop(run, "complete", ENDED_BY_USER)
        self._settle_job(job, now)

    def _end_when_done(self, job: Job, now: float) -> None:
        """An empty job counts as done, as the service documents it."""
        if job.state != "active" or not job.spec.ends_with_tasks:
            return
        if all(task.state == "completed" for task in job.tasks.values()):
            self._terminate_job(job, "AllTasksCompleted", now)

    def _settle_job(self, job: Job, now: float) -> None:
        if job.runs:
            return
        match job.state:
            case "terminating":
                job.ended = now
                self._set_job_state(job, "completed", now)
            case "disabling":
                self._set_job_state(job, "disabled", now)
            case "deleting":
                del self.jobs[fold(job.spec.id)]
                places = {task.place.id: task.place for task in job.tasks.values() if task.place is not None}
                self._actions.append(Discard(tuple(places.values()), job.spec.id, None))

    def _set_job_state(self, job: Job, state: JobState, now: float) -> None:
        job.previous = (job.state, job.state_since)
        job.state, job.state_since = state, now

    def _set_task_state(self, task: Task, state: TaskState, now: float) -> None:
        task.previous = (task.state, task.state_since)
        task.state, task.state_since = state, now

    # Small things

    def _runs_of(self, job: Job) -> list[Run]:
        return [self._runs[run_id] for run_id in sorted(job.runs)]

    def _bounded_jobs(self) -> Iterator[Job]:
        for job in self.jobs.values():
            if job.spec.max_seconds is not None and job.state in ("active", "disabling", "disabled"):
                yield job

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _stamp(self, now: float) -> Versioned:
        serial = self._next_serial()
        return Versioned(serial, now, now, serial)

    def _touch(self, stamp: Versioned, now: float) -> None:
        stamp.modified, stamp.version = now, self._next_serial()

    @staticmethod
    def _check_not_deleting(pool: Pool) -> None:
        if pool.state == "deleting":
            raise Refused("PoolBeingDeleted", PoolId=pool.spec.id)

    def _check_resizable(self, pool: Pool) -> None:
        self._check_not_deleting(pool)
        if pool.allocation != "steady":
            raise Refused("PoolBeingResized", PoolId=pool.spec.id)

    @staticmethod
    def _job_refusal(job: Job) -> Refused:
        codes = {
            "terminating": "JobBeingTerminated",
            "completed": "JobCompleted",
            "deleting": "JobBeingDeleted",
            "disabled": "JobDisabled",
            "disabling": "JobDisabled",
        }
        return Refused(codes.get(job.state, "JobNotActive"), JobId=job.spec.id)


def _judged(outcome: Outcome) -> Outcome:
    """A non-zero exit is a failure that the user caused."""
    if outcome.failure is None and outcome.exit_code != 0:
        return replace(outcome, failure=BAD_EXIT)
    return outcome


def _staying(pool: Pool) -> Iterable[Node]:
    return (node for node in pool.nodes.values() if node.leaving_for != "removal")


def _best_node(pool: Pool, slots: int) -> Node | None:
    """The node for a task of so many slots: the emptiest when tasks are spread, the fullest when packed."""
    fitting = [node for node in pool.nodes.values() if node.accepts_tasks and node.slots_free >= slots]
    sign = 1 if pool.spec.fill == "spread" else -1
    return min(fitting, key=lambda node: (sign * node.slots_taken, node.serial), default=None)


def counts(job: Job, slots: bool) -> Document:
    """How many of a job's tasks, or how many slots of them, are in which state."""
    totals = dict.fromkeys(("active", "running", "completed", "succeeded", "failed"), 0)
    for task in job.tasks.values():
        weight = task.spec.slots if slots else 1
        state = "running" if task.state == "preparing" else task.state
        totals[state] += weight
        if task.state == "completed":
            outcome = task.execution.outcome
            totals["succeeded" if outcome is not None and outcome.succeeded else "failed"] += weight
    return totals

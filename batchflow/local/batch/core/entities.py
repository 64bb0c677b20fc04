"""The records of the local Batch service: pools, nodes, jobs, tasks, and the runs of tasks on nodes.

Specifications are what a user asked for; they never change in place. Records are the service's own; only
`BatchState` and its parts change them. Times are seconds since the epoch. States are the wire's words.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from batchflow.local.batch.core.samples import HISTORY, MetricSample
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

PoolState = Literal["active", "deleting"]
AllocationState = Literal["steady", "resizing", "stopping"]
NodeState = Literal[
    "creating", "starting", "waitingforstarttask", "starttaskfailed", "idle", "running", "offline",
    "rebooting", "reimaging", "leavingpool", "unusable", "unknown", "preempted",
    "deallocating", "deallocated",
]  # fmt: skip
JobState = Literal["active", "disabling", "disabled", "enabling", "terminating", "completed", "deleting"]
TaskState = Literal["active", "preparing", "running", "completed"]
Deallocation = Literal["requeue", "terminate", "taskcompletion", "retaineddata"]
Departure = Literal["removal", "reboot", "reimage", "deallocation", "outage"]
Document = dict[str, Any]

RECENT_TASKS = 10


@frozen
class FailureInfo:
    """Why something did not succeed, in the wire's words."""

    category: Literal["usererror", "servererror"]
    code: str
    message: str
    details: tuple[tuple[str, str], ...] = ()


@frozen
class Outcome:
    """The end of a command: an exit code, or by a failure to start it, or both when it was stopped."""

    exit_code: int | None
    failure: FailureInfo | None = None

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0 and self.failure is None

    def is_retriable(self, allowed: int, used: int) -> bool:
        """Tell whether a command that ended so is retried; one that could not start is not."""
        failed = self.failure is None and self.exit_code != 0
        return failed and (allowed == -1 or used < allowed)

    def judged(self) -> Outcome:
        """Return the outcome with its failure: a non-zero exit is one that the user caused."""
        if self.failure is None and self.exit_code != 0:
            return Outcome(self.exit_code, BAD_EXIT)
        return self


ENDED_BY_USER = FailureInfo("usererror", "TaskEnded", "The task was ended by user request.")
OUT_OF_TIME = FailureInfo("usererror", "TaskEnded", "The task exceeded its maximum wall clock time.")
BAD_EXIT = FailureInfo(
    "usererror",
    "FailureExitCode",
    "The task exited with an exit code representing a failure",
    (("Message", "The task exited with an exit code representing a failure"),),
)


@frozen
class ResourceFileSpec:
    """Files to fetch before a command runs: a blob, or a container's blobs below a prefix.

    The URL may carry a signature: it is a secret.
    """

    url: str = field(repr=False)
    path: str
    is_container: bool = False
    prefix: str = ""
    mode: int = 0o770
    identity: str | None = None
    """The resource id of the node's identity that opens it."""


@frozen
class CommandSpec:
    """A command line with what it needs."""

    command_line: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: tuple[ResourceFileSpec, ...] = ()
    max_retries: int = 0
    """Retries after a non-zero exit; -1: without end."""
    max_seconds: float | None = None


@frozen
class StartTaskSpec:
    """The command that a node runs when it boots."""

    command: CommandSpec
    wait_for_success: bool


@frozen
class AutoscaleFormula:
    """A formula that sets the size of a pool, evaluated every `interval` seconds."""

    text: str
    interval: float


@frozen
class BatchPoolSpec:
    """A pool as asked for. `document` holds the properties that the service only repeats."""

    id: str
    vm_size: str
    task_slots: int
    fill: Literal["spread", "pack"]
    start_task: StartTaskSpec | None
    resize_timeout: float
    document: Document
    formula: AutoscaleFormula | None = None


@frozen
class BatchJobSpec:
    """A job as asked for. `document` holds the properties that the service only repeats."""

    id: str
    pool_id: str
    priority: int
    max_parallel: int
    """-1: as many as there are slots."""
    max_seconds: float | None
    ends_with_tasks: bool
    """onAllTasksComplete is terminatejob."""
    environment: Mapping[str, str]
    document: Document


@frozen
class BatchTaskSpec:
    """A task as asked for. `document` holds the properties that the service only repeats."""

    id: str
    command: CommandSpec
    slots: int
    document: Document


@dataclass(slots=True)
class Versioned:
    """When a resource was created and changed, and its version."""

    serial: int
    created: float
    modified: float
    version: int


@frozen
class AutoscaleRun:
    """One evaluation of a pool's formula: what it came to, or why it came to nothing."""

    at: float
    results: str = ""
    failure: FailureInfo | None = None


@dataclass(slots=True)
class PoolRecord:
    """A pool and its nodes. `wanted` counts dedicated nodes, `spot_wanted` the others."""

    spec: BatchPoolSpec
    stamp: Versioned
    wanted: int
    spot_wanted: int
    state: PoolState = "active"
    state_since: float = 0.0
    allocation: AllocationState = "steady"
    allocation_since: float = 0.0
    resize_deadline: float | None = None
    resize_errors: tuple[FailureInfo, ...] = ()
    formula_run: AutoscaleRun | None = None
    formula_set: float = float("-inf")
    """When the formula was last set."""
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    nodes_made: int = 0
    samples: deque[MetricSample] = field(default_factory=lambda: deque(maxlen=HISTORY))
    sampled: float = 0.0
    """When the last sample was due."""

    def count(self, *, dedicated: bool) -> int:
        """Return the nodes of that kind that there are."""
        return sum(node.dedicated == dedicated for node in self.nodes.values())

    def staying(self) -> list[NodeRecord]:
        """Return the nodes that are not about to leave."""
        return [node for node in self.nodes.values() if node.leaving_for != "removal"]


@dataclass(slots=True)
class NodeRecord:
    """A node. `boot` counts its boots: facts about an earlier boot are stale."""

    id: str
    serial: int
    pool: PoolRecord
    dedicated: bool
    host_name: str
    allocated: float
    state: NodeState = "creating"
    state_since: float = 0.0
    ready: bool = False
    """Booted, and its start task does not stand in the way of tasks."""
    enabled: bool = True
    boot: int = 0
    booted: float = 0.0
    leaving_for: Departure | None = None
    errors: tuple[FailureInfo, ...] = ()
    outage: NodeOutage | None = None
    notice: PreemptionNotice | None = None
    start_task: StartTaskRecord | None = None
    runs: dict[int, TaskRun] = field(default_factory=dict)
    start_run: int | None = None
    tasks_run: int = 0
    tasks_succeeded: int = 0
    recent: list[TaskRecord] = field(default_factory=list)

    @property
    def slots_taken(self) -> int:
        return sum(run.task.spec.slots for run in self.runs.values())

    @property
    def slots_free(self) -> int:
        return self.pool.spec.task_slots - self.slots_taken

    @property
    def accepts_tasks(self) -> bool:
        return self.ready and self.enabled and self.leaving_for is None and self.pool.state == "active"

    def note(self, task: TaskRecord) -> None:
        """Remember a task among the recent ones."""
        others = [other for other in self.recent if other is not task]
        self.recent = [task, *others][:RECENT_TASKS]


@frozen
class PreemptionNotice:
    """The notice that a spot node is about to be taken away."""

    id: str
    not_before: float
    outage: float
    """Seconds until it comes back."""


@frozen
class NodeOutage:
    """Why a node is not there, and when it is back: never when that is None."""

    state: Literal["preempted", "unknown"]
    until: float | None
    wipe: bool
    """Whether it comes back with an empty disk."""


@dataclass(slots=True)
class StartTaskRecord:
    """The start task on one node: its runs and its outcome."""

    spec: StartTaskSpec
    started: float
    ended: float | None = None
    outcome: Outcome | None = None
    retries: int = 0
    last_retry: float | None = None


@dataclass(slots=True)
class JobRecord:
    """A job, its tasks, and which of them wait (in order)."""

    spec: BatchJobSpec
    stamp: Versioned
    state: JobState = "active"
    state_since: float = 0.0
    previous: tuple[JobState, float] | None = None
    ended: float | None = None
    reason: str | None = None
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    waiting: dict[str, TaskRecord] = field(default_factory=dict)
    runs: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Execution:
    """The executions of a task: times, outcome, retries, requeues."""

    started: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    retries: int = 0
    last_retry: float | None = None
    requeues: int = 0
    last_requeue: float | None = None


@dataclass(slots=True)
class TaskRecord:
    """A task. `place` is where it last ran."""

    spec: BatchTaskSpec
    job: JobRecord
    stamp: Versioned
    state: TaskState = "active"
    state_since: float = 0.0
    previous: tuple[TaskState, float] | None = None
    execution: Execution = field(default_factory=Execution)
    place: NodeRecord | None = None
    run: int | None = None


@dataclass(slots=True)
class TaskRun:
    """One occupation of slots of a node by a task: from its assignment until its processes are gone."""

    id: int
    task: TaskRecord
    node: NodeRecord
    fate: Literal["complete", "requeue"] = "complete"
    stopped_for: FailureInfo | None = None
    deadline: float | None = None

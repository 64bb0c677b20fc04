"""The public values: what a task ended as, what a session counts, what a pool is made of.

Plain frozen data, no I/O; importing this loads nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.errors import TaskError


@final
class Unset(Enum):
    """The type of `UNSET`, which tells "not given" from None."""

    UNSET = "UNSET"


UNSET: Final = Unset.UNSET


class Status(Enum):
    """Where a task is. The first two are under way, the others are final."""

    SENDING = "sending"
    """In the session's outbox: the broker does not have it yet."""
    QUEUED = "queued"
    """The broker has it; it waits or runs."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (Status.SENDING, Status.QUEUED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An earlier try of a task that did not end it."""

    number: int
    error: str
    node: str
    finished_at: float


@dataclass(frozen=True, slots=True)
class Result:
    """A task's frozen outcome. Times are seconds since the epoch, by the clock of who noted them."""

    task_id: str
    job_id: str
    client: str
    command: str
    status: Status
    index: int
    """The task's place in its session (or, from `map`, among its inputs), from 0."""
    value: Any = None
    """What the task returned: any JSON; the lines of stdout for a jar or another executable."""
    error: str | None = None
    kind: str | None = None
    """The name of the `TaskError` that awaiting the task raises; None on success."""
    traceback: str | None = None
    tag: Any = None
    node: str | None = None
    """The host name of the node that ran it; None when no node did."""
    attempt: int = 1
    attempts: tuple[Attempt, ...] = ()
    """The earlier tries."""
    stdout: str = ""
    stderr: str = ""
    submitted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    files: tuple[str, ...] = ()
    """The names of the files that the task left in its output folder."""

    @property
    def ok(self) -> bool:
        return self.status is Status.SUCCEEDED

    def exception(self) -> TaskError | None:
        """The error that this outcome stands for; None for a success."""
        from batchflow.errors import TaskError, TaskFailed

        return None if self.ok else TaskError.by_kind.get(self.kind or "", TaskFailed)(self)

    def unwrap(self) -> Any:
        """The value, or the outcome's `TaskError` raised."""
        if (error := self.exception()) is not None:
            raise error
        return self.value


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks of a session are where. `sending` and `queued` are under way."""

    sending: int = 0
    queued: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def submitted(self) -> int:
        return self.sending + self.queued + self.done

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a pool, as Batch and its agent's heartbeat tell of it."""

    id: str
    state: str
    """Azure Batch's word: creating, starting, idle, running, starttaskfailed, unusable, preempted, ..."""
    host: str | None = None
    """The host name, once an agent lives there."""
    dedicated: bool = True
    slots: int = 0
    """Places for running tasks; 0 without an agent."""
    running: int = 0
    agent: str | None = None
    """What its agent says of itself: ready, draining, exiting; None without one."""


@dataclass(frozen=True, slots=True)
class Image:
    """A virtual machine image of the Azure marketplace and the node agent that goes with it."""

    publisher: str = "canonical"
    offer: str = "ubuntu-24_04-lts"
    sku: str = "server"
    version: str = "latest"
    node_agent: str = "batch.node.ubuntu 24.04"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a new pool is made of."""

    id: str
    nodes: int | None = None
    """Dedicated nodes; None: the settings' default."""
    spot: int = 0
    """Spot nodes: cheap, taken away at any time; their tasks run again elsewhere."""
    slots: int | None = None
    """Tasks that run at once on a node; None: the settings' default, there 0 means the node's cores."""
    vm_size: str | None = None
    image: Image | None = None
    files: tuple[Any, ...] = ()
    """The default bundle of the pool's sessions."""
    start_command: str | None = None
    """Run once on each node before it takes work, for what a user wants installed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Plain settings for the start command; never secrets: anyone who reads the pool reads them."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why nothing happens, and what to do about it."""

    what: str
    remedy: str
    severity: Literal["blocking", "slow", "note"] = "blocking"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of a pool or a session: the state in one line, then the reasons."""

    summary: str
    causes: tuple[Cause, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self.summary]
        lines += [f"- {cause.what}\n  what to do: {cause.remedy}" for cause in self.causes]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a session has to tell besides results."""

    kind: Literal["stdout", "stderr", "log", "progress", "warning", "info"]
    message: str
    at: float
    """Seconds since the epoch."""
    task_id: str | None = None
    data: Any = None

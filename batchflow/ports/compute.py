"""The port to the machines: what batchflow needs of Azure Batch, and nothing else.

Implemented by `batchflow.azure.batch`. Failures are `PoolError`s.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Final, Literal, Protocol

from batchflow.ports.broker import Closable
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from batchflow.model import Image, ManagedIdentity


@frozen
class PoolDocument:
    """The properties of a new pool."""

    id: str
    vm_size: str
    image: Image
    nodes: int
    spot: int = 0
    formula: str | None = None
    """The autoscale formula that decides the size, instead of `nodes` and `spot`; None: the size is fixed."""
    formula_interval: float = 300.0
    """Seconds between two evaluations of the formula."""
    task_slots: int = 1
    """Batch's own slots for Batch tasks: one, for the agent. The agent has its own slots."""
    start_command: str | None = None
    start_admin: bool = True
    """Whether the start task runs as an administrator: it is there to install things."""
    environment: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    subnet: str | None = None
    container: str | None = None
    """The container image that the nodes fetch beforehand."""


@frozen
class SupportedImage:
    """An image that Batch supports, as Batch describes it."""

    publisher: str
    offer: str
    sku: str
    node_agent: str
    linux: bool = True
    containers: bool = False
    """Whether nodes of it can run containers."""
    end_of_life: float | None = None
    """The time from which Batch creates no pool with it, in seconds since the epoch; None: not known yet."""


@frozen
class ReportedFault:
    """An error of a resize or of a node, as Batch reports it."""

    code: str
    message: str

    @property
    def is_quota(self) -> bool:
        """Whether a quota of the account was reached."""
        return "quota" in self.code.lower()


@frozen
class PoolInfo:
    """A pool as Batch describes it."""

    id: str
    state: Literal["active", "deleting"]
    allocation: Literal["steady", "resizing", "stopping"]
    vm_size: str
    nodes: int
    """Current number of dedicated nodes."""
    wanted: int
    """Target number of dedicated nodes."""
    spot: int
    spot_wanted: int
    task_slots: int
    metadata: Mapping[str, str]
    resize_errors: tuple[ReportedFault, ...] = ()
    image: Image | None = None
    """The marketplace image; None for any other image."""
    start_command: str | None = None
    autoscale: bool = False
    """Whether a formula sets the target number of nodes."""
    formula: str | None = None
    """The formula."""
    formula_error: ReportedFault | None = None
    """Why the last evaluation of the formula came to nothing."""
    identities: tuple[ManagedIdentity, ...] = ()
    """The user-assigned managed identities of its nodes."""

    @property
    def size(self) -> int:
        """Current number of nodes."""
        return self.nodes + self.spot

    @property
    def target(self) -> int:
        """Target number of nodes."""
        return self.wanted + self.spot_wanted


START_TASK_FAILED: Final = "starttaskfailed"
FAILED_STATES: Final = (START_TASK_FAILED, "unusable")
"""The states of nodes that run no agent until they are rebooted or removed."""


@frozen
class NodeInfo:
    """A node as Batch describes it."""

    id: str
    state: str
    dedicated: bool
    errors: tuple[ReportedFault, ...] = ()
    start_task_error: ReportedFault | None = None
    allocated_at: float | None = None
    """When Batch allocated the node, in seconds since the epoch."""

    @property
    def has_failed(self) -> bool:
        """Whether it can run no agent, and is billed all the same."""
        return self.state in FAILED_STATES


@frozen
class ResourceFile:
    """A file that Batch downloads into a task's directory. `url` may carry a signature: a secret."""

    url: str = field(repr=False)
    path: str
    mode: str | None = None
    identity: str | None = None
    """The resource id of the pool's identity that opens it; None: the URL's signature opens it."""


@frozen
class BatchTask:
    """A task of Azure Batch itself: here, always an agent's."""

    id: str
    command: str
    """The command line, run without a shell."""
    files: tuple[ResourceFile, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables; never secrets."""
    slots: int = 1
    """Number of its node's Batch slots that it takes."""
    retries: int = 0
    """Maximum number of retries; -1: without end."""
    container: str | None = None
    """The container image that it runs in; None: on the node itself."""


@frozen
class BatchTaskInfo:
    """A task of Azure Batch, as Batch describes it."""

    id: str
    state: Literal["active", "preparing", "running", "completed"]
    node: str | None = None
    exit_code: int | None = None
    failure: ReportedFault | None = None
    retries: int = 0
    """Number of times that Batch has started it again after it failed."""
    created_at: float | None = None
    started_at: float | None = None
    """When it was added, and when it began to run, in seconds since the epoch."""

    @property
    def is_alive(self) -> bool:
        """Whether it waits, runs, or will be started again."""
        return self.state != "completed"

    @property
    def waits_for_node(self) -> bool:
        """Whether no node has begun with it."""
        return self.state == "active" and not self.retries


class Compute(Closable, Protocol):
    """The Batch account."""

    async def create_pool(self, document: PoolDocument) -> None:
        """Create a pool. Raises `PoolExists`, `QuotaExceeded`, or `ConfigurationError`."""

    async def pool(self, pool_id: str) -> PoolInfo:
        """Return a pool. Raises `PoolNotFound`."""

    def pools(self) -> AsyncIterator[PoolInfo]: ...

    async def images(self) -> list[SupportedImage]:
        """Return the images that Batch supports."""

    async def enable_autoscale(self, pool_id: str, formula: str, interval: float) -> bool:
        """Let a formula decide the size from now on; it is evaluated at once, then every `interval` seconds.

        False: Batch does not take it now, because the pool resizes or a formula was set within 30 s.
        """

    async def disable_autoscale(self, pool_id: str) -> None:
        """Leave the pool at its size; it can be resized again."""

    async def resize_pool(self, pool_id: str, nodes: int, spot: int) -> None:
        """Request a resize; return when Batch has accepted it. The resize may take minutes."""

    async def stop_resize(self, pool_id: str) -> None:
        """Leave the pool at the nodes that it has, those included that wait for their tasks to leave.

        Nothing happens to a pool that does not resize.
        """

    async def delete_pool(self, pool_id: str) -> bool:
        """Request a deletion; return when Batch has accepted it. False when there was no pool."""

    async def nodes(self, pool_id: str) -> list[NodeInfo]:
        """Return the nodes of a pool. Raises `PoolNotFound`."""

    async def remove_nodes(self, pool_id: str, node_ids: Sequence[str]) -> None:
        """Remove these nodes and lower the pool's target size. Their tasks are requeued."""

    async def reboot_node(self, pool_id: str, node_id: str) -> None:
        """Request a reboot; return when Batch has accepted it.

        The node's tasks are requeued, and its start task runs again.
        """

    async def node_output(self, pool_id: str, node_id: str, path: str, tail: int = 4096) -> str:
        """Return the end of a node's file, such as `startup/stderr.txt`; "" when it cannot be read."""

    async def change_start_task(self, document: PoolDocument) -> None:
        """Give the pool the document's start task; each node runs it from its next boot on."""

    async def create_job(self, job_id: str, pool_id: str) -> bool:
        """Create a job; False when an active one has that id. A completed one is replaced."""

    async def add_tasks(self, job_id: str, tasks: Sequence[BatchTask]) -> None:
        """Add tasks. Tasks that exist are left as they are."""

    async def end_job_when_idle(self, job_id: str) -> None:
        """Let Batch end the job by itself when all its tasks are complete (set after tasks were added).

        Nothing happens to a job that has ended, or is gone.
        """

    async def tasks(self, job_id: str) -> list[BatchTaskInfo]:
        """Return the tasks of a job; empty when there is no such job."""

    async def delete_task(self, job_id: str, task_id: str) -> bool:
        """Delete a task, also one that runs. False when there was none."""

    async def task_output(self, job_id: str, task_id: str, name: str, tail: int = 4096) -> str:
        """Return the end of `stdout.txt` or `stderr.txt`, decoded leniently; "" when there is none."""

    async def delete_job(self, job_id: str) -> bool:
        """Delete a job and end its tasks. False when there was none."""

"""The port to the machines: what batchflow needs of Azure Batch, and nothing else.

Implemented by `batchflow.azure.batch`. Failures are `PoolError`s.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Literal, Protocol

from batchflow.ports.broker import Closable
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from batchflow.model import Image, ManagedIdentity


@frozen
class PoolDocument:
    """A pool to be made."""

    id: str
    vm_size: str
    image: Image
    nodes: int
    spot: int = 0
    task_slots: int = 1
    """Batch's own slots for Batch tasks: one, for the agent. The agent's slots are its own affair."""
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
    """An image that Batch makes nodes of, as it tells of it."""

    publisher: str
    offer: str
    sku: str
    node_agent: str
    linux: bool = True
    containers: bool = False
    """Whether nodes of it can run containers."""
    end_of_life: float | None = None
    """From when on Batch makes no pool of it, in seconds since the epoch; None: not known yet."""


@frozen
class ReportedFault:
    """What Batch reports of a resize or of a node that went wrong."""

    code: str
    message: str


@frozen
class PoolInfo:
    """A pool as Batch tells of it."""

    id: str
    state: Literal["active", "deleting"]
    allocation: Literal["steady", "resizing", "stopping"]
    vm_size: str
    nodes: int
    """Dedicated nodes there are."""
    wanted: int
    """Dedicated nodes there shall be."""
    spot: int
    spot_wanted: int
    task_slots: int
    metadata: Mapping[str, str]
    resize_errors: tuple[ReportedFault, ...] = ()
    image: Image | None = None
    """None for one that is not of the marketplace."""
    start_command: str | None = None
    autoscale: bool = False
    """Whether a formula decides how many nodes there shall be."""
    identities: tuple[ManagedIdentity, ...] = ()
    """The user-assigned managed identities of its nodes."""


@frozen
class NodeInfo:
    """A node as Batch tells of it."""

    id: str
    state: str
    dedicated: bool
    errors: tuple[ReportedFault, ...] = ()
    start_task_error: ReportedFault | None = None


@frozen
class ResourceFile:
    """A file that Batch downloads into a task's directory. `url` may carry a signature: a secret."""

    url: str = field(repr=False)
    path: str
    mode: str | None = None
    identity: str | None = None
    """The resource id of the pool's identity that opens it; None: the URL does, by its signature."""


@frozen
class BatchTask:
    """A task of Azure Batch itself: here, always an agent's."""

    id: str
    command: str
    """Run without a shell."""
    files: tuple[ResourceFile, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Never secrets."""
    slots: int = 1
    """How many of its node's Batch slots it takes."""
    retries: int = 0
    """-1: without end."""
    container: str | None = None
    """The container image that it runs in; None: on the node itself."""


@frozen
class BatchTaskInfo:
    """A task of Azure Batch as it tells of it."""

    id: str
    state: Literal["active", "preparing", "running", "completed"]
    node: str | None = None
    exit_code: int | None = None
    failure: ReportedFault | None = None
    retries: int = 0
    """How often Batch has started it again after a failure of its own."""


class Compute(Closable, Protocol):
    """The Batch account."""

    async def create_pool(self, document: PoolDocument) -> None:
        """Raises `PoolExists`, `QuotaExceeded`, or `ConfigurationError` for what Batch would not take."""

    async def pool(self, pool_id: str) -> PoolInfo:
        """Raises `PoolNotFound`."""

    def pools(self) -> AsyncIterator[PoolInfo]: ...

    async def images(self) -> list[SupportedImage]:
        """What nodes can be made of."""

    async def resize_pool(self, pool_id: str, nodes: int, spot: int) -> None:
        """Returns when Batch has taken the wish; it may take minutes to come true."""

    async def delete_pool(self, pool_id: str) -> bool:
        """Returns when Batch has taken the wish. False when there was none."""

    async def nodes(self, pool_id: str) -> list[NodeInfo]:
        """Raises `PoolNotFound`."""

    async def remove_nodes(self, pool_id: str, node_ids: Sequence[str]) -> None:
        """Take these nodes away; the pool is wanted that much smaller. Their tasks are requeued."""

    async def reboot_node(self, pool_id: str, node_id: str) -> None:
        """Returns when Batch has taken the wish. Its tasks are requeued, its start task runs again."""

    async def node_output(self, pool_id: str, node_id: str, path: str, tail: int = 4096) -> str:
        """The end of a node's file, such as `startup/stderr.txt`; "" when it cannot be had."""

    async def change_start_task(self, document: PoolDocument) -> None:
        """Give the pool the document's start task; each node runs it from its next boot on."""

    async def create_job(self, job_id: str, pool_id: str) -> bool:
        """False when there is an active one of that id. A completed one is removed and made anew."""

    async def add_tasks(self, job_id: str, tasks: Sequence[BatchTask]) -> None:
        """Tasks that exist are left as they are."""

    async def end_job_when_idle(self, job_id: str) -> None:
        """Let Batch end the job by itself when all its tasks are complete (set after tasks were added).

        Nothing happens to a job that has ended, or is gone.
        """

    async def tasks(self, job_id: str) -> list[BatchTaskInfo]:
        """Empty when there is no such job."""

    async def delete_task(self, job_id: str, task_id: str) -> bool:
        """Ends it where it runs. False when there was none."""

    async def task_output(self, job_id: str, task_id: str, name: str, tail: int = 4096) -> str:
        """The end of `stdout.txt` or `stderr.txt`, in bytes decoded leniently; "" when there is none."""

    async def delete_job(self, job_id: str) -> bool:
        """Ends its tasks where they run. False when there was none."""

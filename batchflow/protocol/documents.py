"""The documents in Blob Storage by which clients and agents know of each other. Pure.

Every document is JSON with a version; a reader refuses a higher one, ignores fields it does not know, and
refuses a field that is not of the type that is written here: agents write some of these, and code on a node
can write them too. `protocol.layout` says where they lie.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar, Final, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import orjson

from batchflow.errors import ProtocolError
from batchflow.model import ManagedIdentity
from batchflow.ports.broker import QueueRef
from batchflow.protocol.budgets import BudgetTerms
from batchflow.protocol.fields import FieldError, misfit
from batchflow.support.frozen import frozen
from batchflow.support.setting_groups.agent_limits import AgentLimits

T = TypeVar("T")
_SIGNS_OF_LIFE: Final = 3
"""Number of documents missing in a row after which their writer counts as gone."""


class Document:
    """A frozen dataclass that is written as JSON."""

    VERSION: ClassVar[int] = 1

    def encode(self) -> bytes:
        return orjson.dumps({"v": self.VERSION, **asdict(self)})  # type: ignore[call-overload]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a document. Raises `ProtocolError`."""
        try:
            document = orjson.loads(data)
            if document["v"] > cls.VERSION:
                raise ProtocolError(
                    f"a {cls.__name__} of version {document['v']}, this batchflow reads {cls.VERSION}: "
                    "install a newer one"
                )
            made: Self = _read(document, cls)
        except FieldError as error:
            raise ProtocolError(f"a {cls.__name__} that cannot be read: {error}") from None
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a {cls.__name__} that cannot be read: {error!r}") from error
        return made


def _read(value: Any, hint: Any) -> Any:
    """Read a value of JSON as the type that the annotation names. Raises `FieldError`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _read(value, arguments[0])
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return _read_tuple(value, arguments)
    if origin is Mapping and isinstance(value, dict):
        return {name: _read_part(item, arguments[1], f".{name[:80]}") for name, item in value.items()}
    if is_dataclass(hint) and isinstance(value, dict):
        return _read_fields(value, hint)
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint:
        return value
    raise misfit(value, hint.__name__ if isinstance(hint, type) else str(hint))


def _read_part(value: Any, hint: Any, step: str) -> Any:
    """Read a part of a value. An error names the path to the part."""
    try:
        return _read(value, hint)
    except FieldError as error:
        raise error.below(step) from None


def _read_fields(value: dict[str, Any], kind: Any) -> Any:
    known = _annotations(kind).items()
    return kind(**{name: _read_part(value[name], hint, f".{name}") for name, hint in known if name in value})


def _read_tuple(value: list[Any], hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    parts = zip(value, hints, strict=True)
    return tuple(_read_part(item, hint, f"[{place}]") for place, (item, hint) in enumerate(parts))


@cache
def _annotations(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


@frozen
class PackageLock:
    """Packages that a client has locked for all clients, because only that client has the file of them."""

    text: str = field(repr=False)
    """Every package at its version, with hashes, one to a line, without credentials."""
    python: str
    """The minor version of Python that they are for."""
    platform: str
    """The platform, as wheels name it."""


@frozen
class DefaultPackages:
    """The Python packages of tasks, where nothing nearer to the task says."""

    requirements: tuple[str, ...] = ()
    """Each as pip takes it; locked by the client that needs them first."""
    lock: PackageLock | None = None
    """What a file, or what was installed on a client, came to; in place of `requirements`."""


@frozen
class ScalingLimits:
    """The bounds between which an elastic pool grows and shrinks with its work, in nodes."""

    min_nodes: int = 0
    max_nodes: int = 0
    """Dedicated nodes."""
    min_spot: int = 0
    max_spot: int = 0
    dedicated_share: float = 0.2
    """The part of all nodes that are dedicated at least, as far as `max_nodes` allows."""

    @property
    def least(self) -> int:
        """The nodes of both kinds that the pool always has."""
        return self.min_nodes + self.min_spot

    @property
    def most(self) -> int:
        """The nodes of both kinds that the pool has at most."""
        return self.max_nodes + self.max_spot

    def __str__(self) -> str:
        spot = f" and {self.min_spot} to {self.max_spot} spot nodes" if self.max_spot else ""
        return f"{self.min_nodes} to {self.max_nodes} nodes{spot}"


@frozen
class PoolManifest(Document):
    """The manifest of a pool: what makes a Batch pool a pool of batchflow."""

    pool: str
    prefix: str
    task_queues: tuple[QueueRef, ...]
    results_queues: tuple[QueueRef, ...]
    """The names of the queues, one each by default."""
    agents_job: str
    """The Batch job that hosts the agents."""
    created_at: float
    owned: bool
    """Whether batchflow created the Batch pool, and so may delete it."""
    lock_duration: float
    """Lock duration of all queues, in seconds."""
    bundle: str | None = None
    """The hash of the default bundle of new sessions."""
    slots: int = 0
    """Number of slots of an agent; 0: its node's cores."""
    container: str | None = None
    """The container image that agents run in; None: on the nodes themselves."""
    identity: ManagedIdentity | None = None
    """The nodes' managed identity that agents use; None: they get restricted keys."""
    shared: bool = False
    """Whether clients without the accounts' keys read a copy of this in the control container."""
    requirements: tuple[str, ...] = ()
    """The Python packages of tasks, where neither session nor job says."""
    lock: PackageLock | None = None
    """What a file of requirements came to, in place of `requirements`."""
    share_processes: bool = False
    """Whether tasks of different sessions may run in one Python process, where the session does not say."""
    variables: str | None = None
    """The blob of the control container with the variables of all tasks of the pool."""
    budget: BudgetTerms | None = None
    """What the pool may cost over its life; None: without a limit."""
    elastic: ScalingLimits | None = None
    """The bounds of the pool's size; None: the size is fixed, or not batchflow's to choose."""
    lanes: tuple[str, ...] = ()
    """The priorities of the task queues, in their order, of a pool that shares its slots fairly."""
    python: str | None = None
    """The minor version of Python that agents run with, such as 3.12; None: it is not known."""
    tags: tuple[str, ...] = ()
    """What its nodes are called in what tasks require."""
    interpreter: str | None = None
    """The blob of the control container with that Python; None: it is the `python3` of the nodes."""

    @property
    def ctl(self) -> str:
        return f"{self.prefix}-ctl"

    @property
    def out(self) -> str:
        return f"{self.prefix}-out"

    @property
    def packages(self) -> DefaultPackages:
        """The Python packages of tasks, where neither session nor job says."""
        return DefaultPackages(self.requirements, self.lock)

    def requiring(self, packages: DefaultPackages) -> PoolManifest:
        """Return the manifest with other packages."""
        return replace(self, requirements=packages.requirements, lock=packages.lock)

    @property
    def queues(self) -> tuple[QueueRef, ...]:
        """All queues of the pool, task queues first."""
        return (*self.task_queues, *self.results_queues)

    def __post_init__(self) -> None:
        if not self.task_queues or not self.results_queues:
            raise ValueError("a pool without queues")


@frozen
class QueueAccess:
    """A queue and the restricted key to it; none where the managed identity opens it."""

    queue: QueueRef
    connection_string: str | None = field(default=None, repr=False)


@frozen
class ContainerAccess:
    """A container and the signature that opens it; none where the managed identity does."""

    url: str
    signature: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class AgentConnections(Document):
    """The services that an agent connects to, with their keys."""

    pool: str
    task_queues: tuple[QueueAccess, ...]
    results_queues: tuple[QueueAccess, ...]
    ctl: ContainerAccess
    out: ContainerAccess
    lock_duration: float
    slots: int = 0
    """Number of slots; 0: the node's cores."""
    identity: str | None = None
    """The client id of the nodes' managed identity, for the services without a key here."""
    ca_file: str | None = None
    """Certificates to trust besides the system's, for Service Bus."""
    storage_ca_file: str | None = None
    """Certificates to trust besides the system's, for Storage."""
    websockets: bool = False
    lanes: tuple[str, ...] = ()
    """The priorities of the task queues, in their order, of a pool that shares its slots fairly."""
    tags: tuple[str, ...] = ()
    """What the node is called in what tasks require, beside what it says itself."""
    idle_exit: float | None = 1800.0
    """Seconds without a task after which the agent exits; None: never."""


@dataclass(frozen=True)
class AgentConfig(AgentLimits, AgentConnections):
    """The configuration file of an agent. It holds restricted keys, so it travels only as a resource file."""

    inline_limit: int = 128 * 1024
    """Bytes of JSON above which a result travels by reference.

    A reference costs four requests to Blob Storage and a tenth of the speed. A large message costs up to
    three credits and room in the results queue.
    """
    leave_at: float | None = None
    """The time in seconds since the epoch at which the agent drains and exits. Its signatures end soon after.

    None: its signatures do not end by the clock.
    """
    bundle: str | None = None
    """The hash of the pool's default bundle, which an agent fetches before a task asks for it."""
    budget: BudgetTerms | None = None
    """What the pool may cost over its life; None: without a limit."""
    agents: int = 1
    """Number of agents that may spend of a budget at the same time, when this was written."""
    brought: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The bundle's embedded files (`batchflow.pools.embedded_files`): contents in base64, by SHA-256."""


AgentState = Literal["starting", "ready", "draining", "exiting"]


@frozen
class DrainOrder(Document):
    """Orders agents to finish their running tasks, to hand back the rest, and to exit."""

    job: str
    """The Batch job of the agents that this order is for."""
    grace: float
    """Maximum number of seconds that their tasks may still run."""
    nodes: tuple[str, ...] = ()
    """The Batch ids of their nodes; empty: all."""
    agents: tuple[str, ...] = ()
    """Their incarnations; empty: all on these nodes. An agent that starts there later is not meant."""


@frozen
class Running:
    """A task that an agent runs at this moment."""

    uid: str
    task_id: str
    client: str
    job: str
    command: str
    since: float


@frozen
class Usage:
    """What an agent has used of its node since its start."""

    dedicated: bool = True
    """Whether its node is a dedicated one; else it is a spot node."""
    seconds: float = 0.0
    """Node-seconds."""
    busy: float = 0.0
    """Node-seconds in which tasks ran: that of a slot is its share of the node."""
    tasks: int = 0
    """Number of tasks ended."""


@frozen
class UsageRecord(Document):
    """What an agent has used, kept as long as the pool. Heartbeats are newer, and are removed."""

    agent: str
    node: str
    usage: Usage


@frozen
class Heartbeat(Document):
    """An agent's heartbeat, every few seconds. Times are seconds since the epoch, by the node's clock."""

    agent: str
    """The agent's incarnation: new at every start of its process."""
    node: str
    """The node's id in Batch."""
    host: str
    boot_id: str
    pid: int
    state: AgentState
    slots: int
    started_at: float
    beat_at: float
    interval: float
    running: tuple[Running, ...] = ()
    completed: int = 0
    """Number of tasks ended since the start."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions of python and batchflow, and of java if there is one."""
    load: float | None = None
    """The one-minute load average."""
    memory_available: int | None = None
    disk_free: int | None = None
    """Bytes of memory that are available."""
    clock_skew: float | None = None
    """Seconds that the node's clock is ahead of the broker's."""
    trouble: str | None = None
    """The problem that keeps it from working, in words; None without one."""
    failed: int = 0
    """Number of the completed tasks that did not succeed."""
    cancelled: int = 0
    """Number of these that were cancelled."""
    usage: Usage | None = None
    """What it has used of its node; None from agents of earlier versions."""
    takes_wheels: bool = False
    """Whether it installs environments from wheels; False from agents of earlier versions."""
    accepts: tuple[str, ...] = ()
    """What it does with a task that agents of earlier versions do not, such as `passed.VALUES`."""
    memory: int | None = None
    """Bytes of memory that the node has; None where that is not known."""
    gpus: int = 0
    """GPUs that the node has."""
    tags: tuple[str, ...] = ()
    """What it is called in what tasks require."""


@frozen
class Presence(Document):
    """The holder of a mailbox."""

    holder: str
    """Host and process, for people."""
    nonce: str
    """The incarnation of the holding session."""
    beat_at: float
    interval: float
    counts: Mapping[str, int] = field(default_factory=dict)
    """Numbers of its tasks by state: the fields of `Counts`, by name."""
    starts_nodes: bool = False
    """Whether its client starts nodes of an elastic pool, also for clients without rights on Batch."""
    lane: int | None = None
    """The task queue that it sends to, by its index, in a pool that shares its slots fairly."""


@frozen
class JobDocument(Document):
    """A job: a named group of tasks."""

    name: str
    created_at: float
    state: Literal["open", "closed", "deleted"] = "open"
    variables: str | None = None
    """The blob of the control container with the variables of the job's tasks."""
    packages: DefaultPackages | None = None
    """The Python packages of its tasks, where the session does not say; None: the pool's."""


@frozen
class Cancellation(Document):
    """The cancelled tasks of a session: intervals of sequence numbers, both ends included."""

    intervals: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Intervals by incarnation of the session."""
    everything: bool = False
    """Whether all tasks of the client are cancelled: the job was deleted, unless `job_stays`."""
    spared: tuple[str, ...] = ()
    """Incarnations of sessions of a later job of the same name."""
    job_stays: bool = False
    """Whether `everything` cancels the tasks alone."""

    @property
    def cancels_anything(self) -> bool:
        return self.everything or bool(self.intervals)

    def covers(self, incarnation: str, sequence: int) -> bool:
        if self.everything and incarnation not in self.spared:
            return True
        return any(first <= sequence <= last for first, last in self.intervals.get(incarnation, ()))


def gone_after(interval: float) -> float:
    """Return the age in seconds of its last document at which a writer counts as gone.

    The writer writes one every `interval` seconds, so several are missing then.
    """
    return interval * _SIGNS_OF_LIFE

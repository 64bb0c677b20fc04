"""The public values: results, counts, pool specifications, events.

Plain frozen data, no I/O; importing this loads nothing but the standard library.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Generic, Literal, Protocol, final

from batchflow.errors import ConfigurationError
from batchflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from pathlib import PurePath

    from typing_extensions import TypeVar

    from batchflow.errors import TaskError

    T_co = TypeVar("T_co", covariant=True, default=Any)
    """What a task returns; of a file's task, anything."""
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)  # a default needs Python 3.13

_BUDGET: Final = re.compile(r"(-?\d+(?:\.\d+)?) *(h|node-hours|[A-Za-z]{3}|)")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


@final
class Unset(Enum):
    """The type of `UNSET`, which tells "not given" from None."""

    UNSET = "UNSET"


UNSET: Final = Unset.UNSET


class Status(Enum):
    """The state of a task. The first four are under way, the others are final."""

    WAITING = "waiting"
    """The session holds it until the tasks that it waits for have ended."""
    SENDING = "sending"
    """Waiting to be sent: the broker does not have it yet."""
    QUEUED = "queued"
    """The broker has it; it waits, or has begun since the agents' last heartbeat."""
    RUNNING = "running"
    """An agent ran it at its last heartbeat."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (Status.WAITING, Status.SENDING, Status.QUEUED, Status.RUNNING)


# Members are compared by identity. Enum's own is a Python function, and asked for several times a task.
Status.__hash__ = object.__hash__  # type: ignore[method-assign]


class Download(Protocol):
    """Fetches a file of a task's output folder."""

    async def __call__(self, name: str) -> BinaryIO: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """An earlier attempt that did not end its task."""

    number: int
    error: str
    node: str
    finished_at: float


class Load(Protocol):
    """Fetches an argument from its blob."""

    def __call__(self) -> Awaitable[Any]: ...


@dataclass(frozen=True, slots=True)
class StoredArgument:
    """A large argument of a task, which lies in a blob until its session closes.

    The argument of a failed task lies there for `session.retention` seconds.
    """

    kind: str
    """The name of its type."""
    size: int
    """Bytes."""
    load: Load = field(repr=False, compare=False)

    async def fetch(self) -> Any:
        """Return the argument. Raises `StorageError`, `ProtocolError` if it is no value. Safe to cancel."""
        return await self.load()


@dataclass(frozen=True, slots=True)
class Result(Generic[T_co]):
    """A task's frozen outcome. Times are seconds since the epoch, by the clock of the recording machine.

    Its value is of the type that the function returns; of a file's task, of any.
    """

    task_id: str
    job_id: str
    client: str
    command: str
    status: Status
    index: int
    """The task's place in its session (or, from `map`, among its inputs), from 0."""
    value: T_co = None  # type: ignore[assignment]  # so it is only where the task did not succeed
    """The return value of the task; of a jar or another executable, the lines of its stdout.

    None of a task that did not succeed, whatever the function's type."""
    error: str | None = None
    kind: str | None = None
    """The name of the `TaskError` that awaiting the task raises; None on success."""
    traceback: str | None = None
    raised: str | None = None
    """The class of the exception that the task raised, `module:name`; None where it raised none."""
    original: Exception | None = field(default=None, repr=False, compare=False)
    """That exception, rebuilt without running code of a task; None where this cannot be done safely."""
    tag: Any = None
    args: list[Any] | None = None
    """The arguments of the task, a large one as a `StoredArgument`; None for a task of an earlier holder of
    the mailbox."""
    node: str | None = None
    """The host name of the node that ran it; None when no node did."""
    attempt: int = 1
    attempts: tuple[Attempt, ...] = ()
    """The earlier attempts."""
    stdout: str = ""
    stderr: str = ""
    submitted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    files: tuple[str, ...] = ()
    """The names of the files that the task left in its output folder."""
    repeated: bool = False
    """An earlier holder of the mailbox may have shown it in the last second of its life."""
    download: Download | None = field(default=None, repr=False, compare=False)
    """Downloads the files for `open`; None without files."""

    async def open(self, name: str) -> BinaryIO:
        """Open a file of the task's output folder for reading. The local copy is deleted when it is closed.

        Raises `ConfigurationError` for a name that is not in `files`, `StorageError`. Safe to cancel.
        """

        if name not in self.files or self.download is None:
            left = ", ".join(self.files) or "none"
            raise ConfigurationError(f"task {self.task_id} left no file {name!r}; it left: {left}")
        return await self.download(name)

    @property
    def ok(self) -> bool:
        return self.status is Status.SUCCEEDED

    def exception(self) -> TaskError | None:
        """Return the error that this outcome stands for; None for a success."""
        if self.ok:
            return None
        from batchflow.errors import TaskError, TaskFailed

        return TaskError.by_kind.get(self.kind or "", TaskFailed)(self)

    def unwrap(self) -> T_co:
        """Return the value, or raise the outcome's `TaskError`."""
        if (error := self.exception()) is not None:
            raise error
        return self.value

    def __repr__(self) -> str:
        from batchflow.display.result_text import result_line

        return result_line(self)

    def _repr_html_(self) -> str:
        from batchflow.display.html import result_card

        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        return result_card(shown | {"status": self.status.value})


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of a session's tasks by state.

    `waiting`, `sending`, `queued` and `running` are under way.
    """

    sending: int = 0
    queued: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    """Tasks that wait for others."""
    running: int = 0
    """Tasks that the agents ran at their last heartbeats; those that began later are among `queued`."""

    @property
    def submitted(self) -> int:
        return self.waiting + self.sending + self.queued + self.running + self.done

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.cancelled

    def _repr_html_(self) -> str:
        from batchflow.display.html import task_counts

        return task_counts(asdict(self))


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The numbers of a job's tasks by state, as its sessions and the agents report them.

    How the tasks of a closed session ended is kept for 14 days. Those that it left waiting are known only
    while they run.
    """

    sessions: int = 0
    """Number of open sessions, on all hosts."""
    waiting: int = 0
    """Tasks being sent, or sent and not running."""
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.cancelled


BROKEN: Final = ("starttaskfailed", "unusable", "preempted", "offline", "unknown")
"""The states of a node that does not work, and does not recover by itself or not soon."""
AGENT_GONE: Final = frozenset({*BROKEN, "rebooting", "reimaging", "leavingpool"})
"""The states of a node whose agent is gone, although its last heartbeat may be fresh."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a pool, as Batch and its agent's heartbeat describe it."""

    id: str
    state: str
    """Batch's state: creating, starting, idle, running, starttaskfailed, unusable, preempted, ..."""
    host: str | None = None
    """The host name, once an agent runs there."""
    dedicated: bool = True
    slots: int = 0
    """Places for running tasks; 0 without an agent."""
    running: int = 0
    agent: str | None = None
    """The state of its agent: ready, draining, exiting; None without one."""


@dataclass(frozen=True, slots=True)
class Image:
    """A virtual machine image of the Azure marketplace and the node agent that goes with it."""

    publisher: str = "canonical"
    offer: str = "ubuntu-24_04-lts"
    sku: str = "server"
    version: str = "latest"
    node_agent: str | None = None
    """The agent's SKU id; None: the one that Batch names for the image."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a pool may cost over its life, or that the tasks of a session may cost.

    Either `node_hours`, or `amount` and `currency`. Raises `ConfigurationError` for anything else.
    """

    node_hours: float | None = None
    """Hours of one node; of a session: of the share of a node that its tasks have, by their slots."""
    amount: float | None = None
    """Money, by the prices of the price file (the setting `pool.prices`)."""
    currency: str | None = None
    """The currency of `amount` by its three letters, such as "EUR". It is that of the price file."""

    def __post_init__(self) -> None:
        if (self.node_hours is None) == (self.amount is None):
            given = "both" if self.amount is not None else "neither"
            raise ConfigurationError(f"budget: one of node_hours and amount is needed, not {given}")
        for key in ("node_hours", "amount"):
            if (value := getattr(self, key)) is not None and not _is_limit(value):
                raise ConfigurationError(f"budget.{key} is {value!r}; a number above 0 is needed")
        if self.amount is not None and not _is_currency(self.currency):
            raise ConfigurationError(
                f'budget.currency is {self.currency!r}; three capital letters are needed, such as "EUR"'
            )
        if self.node_hours is not None and self.currency is not None:
            raise ConfigurationError(
                f"budget.currency is {self.currency!r}; it goes with amount, not with node_hours"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget as the command line has it: "12" (node-hours) or "20 EUR".

        Raises `ConfigurationError`.
        """
        if (found := _BUDGET.fullmatch(text.strip())) is None:
            raise ConfigurationError(
                f'budget: {text!r} is neither node-hours, such as 12, nor money, "20 EUR"'
            )
        number, unit = float(found[1]), found[2]
        if unit in ("", "h", "node-hours"):
            return cls(node_hours=number)
        return cls(amount=number, currency=unit.upper())

    def __str__(self) -> str:
        return budget_text(self.limit, self.currency)

    @property
    def limit(self) -> float:
        """The number: node-hours without a currency, else an amount of it."""
        value = self.node_hours if self.amount is None else self.amount
        assert value is not None
        return float(value)


def budget_text(value: float, currency: str | None) -> str:
    """Return node-hours (`currency` is None) or an amount in words."""
    return f"{value:.4g} node-hours" if currency is None else f"{value:,.2f} {currency}"


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_currency(value: Any) -> bool:
    return isinstance(value, str) and _CURRENCY.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class ManagedIdentity:
    """A user-assigned managed identity of a pool's nodes."""

    resource_id: str
    client_id: str


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The specification of a new pool. Errors in it are refused before anything is created."""

    id: str
    nodes: int | None = None
    """Dedicated nodes of a pool of a fixed size; None: the settings' default."""
    min_nodes: int | None = None
    """The least dedicated nodes of an elastic pool, 0 by default. It goes with `max_nodes`."""
    max_nodes: int | None = None
    """The most dedicated nodes of an elastic pool, which grows with its work and shrinks without it.

    None: the pool has a fixed size.
    """
    spot: int | tuple[int, int] = 0
    """Spot nodes: cheap, taken away at any time; their tasks run again elsewhere.

    In an elastic pool the least and the most of them, or the most alone.
    """
    dedicated_share: float = 0.2
    """The part of an elastic pool's nodes, from 0 to 1, that is dedicated as far as `max_nodes` allows."""
    slots: int | None = None
    """Tasks that run at once on a node; None: the settings' default, there 0 means the node's cores."""
    shards: int | None = None
    """Task queues, and results queues, that share the load; None: the settings' default."""
    vm_size: str | None = None
    image: Image | str | None = None
    """One of those that Batch supports, also as "publisher:offer:sku" or "publisher:offer:sku:version"."""
    files: tuple[Any, ...] = ()
    """The default bundle of the pool's sessions."""
    apt: tuple[str, ...] = ()
    """Debian packages, each "name" or "name=version", that the start task installs.

    The local cloud installs nothing on your machine: its nodes fail, and say which are missing there.
    """
    pip: tuple[str, ...] = ()
    """Another name of `requirements`, for a list."""
    requirements: str | PurePath | Sequence[str] | None = None
    """The Python packages of tasks, where neither session nor job names them: a list such as ["numpy>=2"], a
    requirements file, a pyproject.toml, or "current". None: none, or those that an existing pool has."""
    python: str | None = None
    """The minor version of Python of the nodes, such as "3.12". It chooses the image, or says what is in the
    `image` or `container` that is named. What no image has, agents bring (setting `agent.python_mirror`).
    None: the version of this program, where Batch has an image with it."""
    env: Mapping[str, str] | None = None
    """Environment variables of all tasks, whatever they run; Azure Batch does not see them. None: none, or
    those that a pool which is there has."""
    secrets: Mapping[str, str] | None = field(default=None, repr=False)
    """Environment variables of all tasks, whose values stay out of logs, errors and every `repr`. None: as
    for `env`."""
    java: bool | int = False
    """A headless Java runtime: True for the distribution's own version, or the version: 17, 21, ...
    The local cloud checks for this version, or a newer one, and does not install it."""
    start_command: str | None = None
    """Run on each node before it takes work, at every boot, after the packages: it must be idempotent.
    Bash runs it, with `set -e`: its first command that fails ends it, and the node takes no work."""
    start_user: Literal["admin", "user"] = "admin"
    """The account that runs the start task. Packages need "admin"."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the start task alone; tasks get those of `env`. Never secrets: anyone who reads the Batch
    pool reads them."""
    subnet: str | None = None
    """The resource id of the virtual network's subnet that the nodes are in. Needs Entra ID: Batch takes no
    account key for it."""
    container: str | None = None
    """A container image that agents, and so all tasks, run in. It needs `python3`, and an `image` for nodes
    that can run containers."""
    identity: str | None = None
    """Which user-assigned managed identity of a pool that is there its agents use instead of keys: its client
    id or its resource id. Batch gives a pool identities only when it is made through Azure's management."""
    share_processes: bool = False
    """Whether tasks of different sessions may run in one Python process, where the session does not say."""
    budget: Budget | None = None
    """What the pool may cost over its life. Then nothing new begins, and the agents leave."""
    sharing: Literal["fifo", "fair"] = "fifo"
    """How sessions share the slots: "fifo", first come, first served; "fair", each gets its share of them."""
    tags: Sequence[str] = ()
    """What its nodes are called in what tasks require, such as ["ssd"]; see `Session.submit`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How the program got its pool, and why."""

    choice: Literal["created", "reused", "repurposed", "attached"]
    why: str

    def __str__(self) -> str:
        return f"{self.choice}: {self.why}"


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why nothing happens, and its remedy."""

    what: str
    remedy: str
    severity: Literal["blocking", "slow", "note"] = "blocking"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The state of a pool or a session in one line, and the reasons for it."""

    summary: str
    causes: tuple[Cause, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self.summary]
        lines += [f"- {cause.what}\n  what to do: {cause.remedy}" for cause in self.causes]
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        from batchflow.display.html import cause_list

        causes = [(cause.severity, cause.what, cause.remedy) for cause in self.causes]
        return cause_list(self.summary, causes)


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a session reports besides results."""

    kind: Literal["stdout", "stderr", "log", "progress", "warning", "info"]
    message: str
    at: float
    """Seconds since the epoch."""
    task_id: str | None = None
    data: Any = None

"""All errors that batchflow raises.

::

    BatchflowError
    ├─ ConfigurationError           names the file, the key and what was expected
    │  ├─ ArgumentNotSerializable   an argument that cannot travel, and where it is
    │  └─ InvalidDependency         a task that another one cannot wait for
    ├─ ServiceError                 .retryable, .setting; __cause__ is the SDK's error
    │  ├─ BrokerError
    │  │  ├─ LeaseLost              a lock ran out or was taken by another client
    │  │  ├─ MailboxInUse           another client holds the mailbox
    │  │  ├─ MailboxNotFound
    │  │  ├─ QueueNotFound
    │  │  ├─ MessageTooLarge
    │  │  ├─ Backpressure           throttled, or the queue is full
    │  │  └─ NoAgents               tasks wait and no agent is alive
    │  ├─ StorageError
    │  │  ├─ BlobNotFound
    │  │  └─ BlobConflict           a condition (ETag, "must not exist") did not hold
    │  └─ PoolError
    │     ├─ PoolNotFound  PoolExists  QuotaExceeded
    │     └─ AllocationFailed  StartTaskFailed  NodeUnusable
    ├─ JobNotFound  JobExists  JobClosed
    ├─ TaskNotFound                 the session has no task of that label
    ├─ ProtocolError                a message or document that is not what it should be
    ├─ SessionClosed                .reason
    ├─ TasksLeftWaiting             the session closed while tasks of it waited for others
    ├─ WrongEventLoop               used outside of the event loop, thread or process that opened it
    ├─ JournalError                 a session's journal cannot be written
    └─ TaskError                    .result
       ├─ TaskFailed  TaskTimeout  TaskCancelled  WorkerDied  TaskPoisoned  TaskRejected
       ├─ TaskOutOfMemory  TaskTooManyProcesses  BudgetExceeded  TaskExpired
       ├─ ResultTooLarge  ResultNotSerializable  TaskImportError  SubmitFailed
       └─ DependencyFailed          a task that it waited for failed

    for code inside do_action: Retry(delay), Permanent
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from batchflow.printable import printable

if TYPE_CHECKING:
    from batchflow.model import Result


class BatchflowError(Exception):
    """The base of all errors that batchflow raises. As text it holds no control characters."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigurationError(BatchflowError):
    """Something that the user wrote cannot be used: the text names where, what, and what is allowed."""


class ArgumentNotSerializable(ConfigurationError):
    """An argument cannot travel to a node: the text names the input and the place in it. Nothing was sent."""


class InvalidDependency(ConfigurationError):
    """A task that another one cannot wait for: of another session, or of a closed one. Nothing was sent."""


class EnvironmentFailed(ConfigurationError):
    """The packages that tasks require cannot be had; the text has the resolver's own words."""


class ServiceError(BatchflowError):
    """A service of Azure (or of the local cloud) refused or failed. `__cause__` is the SDK's error."""

    def __init__(self, message: str, *, retryable: bool = False, setting: str | None = None) -> None:
        if setting is not None:
            message = f"{message} (setting: {setting})"
        super().__init__(message)
        self.retryable = retryable
        """Whether the same call may succeed later without anybody changing anything."""
        self.setting = setting
        """The setting at fault, as it is named in the configuration file; None when it is none."""


class BrokerError(ServiceError):
    """Service Bus refused or failed."""


class LeaseLost(BrokerError):
    """The lock of a message or of a mailbox is no longer ours."""


class MailboxInUse(BrokerError):
    """Another client holds this mailbox."""


class MailboxNotFound(BrokerError):
    """The results queue that should hold the mailbox is gone."""


class QueueNotFound(BrokerError):
    """A queue that the pool's manifest names does not exist."""


class MessageTooLarge(BrokerError):
    """A message is above what the broker takes (256 KB in the Standard tier)."""


class Backpressure(BrokerError):
    """The broker throttles, or the queue is full. Nothing was accepted; try again later."""


class NoAgents(BrokerError):
    """Tasks wait, and no agent of the pool shows a fresh heartbeat."""


class StorageError(ServiceError):
    """Blob Storage refused or failed."""


class BlobNotFound(StorageError):
    """The blob, or its container, does not exist."""


class BlobConflict(StorageError):
    """The blob was changed by another writer, or exists although it must not."""


class PoolError(ServiceError):
    """Azure Batch refused or failed."""


class PoolNotFound(PoolError):
    """No such pool in the Batch account, or it is not one that batchflow can use."""


class PoolExists(PoolError):
    """A pool of that id is there already."""


class QuotaExceeded(PoolError):
    """The account's quota of cores, pools, jobs or queues is used up."""


class AllocationFailed(PoolError):
    """Batch could not allocate the nodes that were asked for."""


class StartTaskFailed(PoolError):
    """The pool's start task failed on a node."""


class NodeUnusable(PoolError):
    """A node is in a state from which it does not recover by itself."""


class JobNotFound(BatchflowError):
    """The pool has no job of that name."""


class JobExists(BatchflowError):
    """The pool has a job of that name already."""


class JobClosed(BatchflowError):
    """The job takes no new tasks."""


class TaskNotFound(BatchflowError):
    """The session knows no task of that label."""


class ProtocolError(BatchflowError):
    """A message or a document that cannot be understood."""


class SessionClosed(BatchflowError):
    """The session is closed; what was pending is resolved with this."""

    def __init__(self, reason: str = "closed") -> None:
        super().__init__(f"the session is closed: {reason}")
        self.reason = reason


class TasksLeftWaiting(BatchflowError):
    """The session was closed while tasks of it waited for others: these never run."""


class WrongEventLoop(BatchflowError):
    """A client, or what came from it, was used outside of the event loop that opened the client.

    Also raised in another thread, in a forked child, and in a second `asyncio.run()`.
    """


class JournalError(BatchflowError):
    """A session's journal cannot be written, so the result is not delivered yet. `__cause__`: the OSError.

    The result stays: the same call delivers it when the disk has space again.
    """


class TaskError(BatchflowError):
    """A task ended without success. `result` is its frozen outcome."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.error or result.status.value)
        self.result = result

    def __str__(self) -> str:
        text = f"task {self.result.task_id} ({self.result.command}): {super().__str__()}"
        return printable(f"{text}\n{self.result.traceback}" if self.result.traceback else text)

    @property
    def original(self) -> Exception | None:
        """The exception that the task raised, rebuilt here; None where that cannot be done safely.

        Builtin exceptions are rebuilt, and those of classes in the session's files that this program has
        imported, when their arguments can travel. The text has type, message and traceback in any case.
        """
        return self.result.original

    by_kind: ClassVar[dict[str, type[TaskError]]] = {}
    """The classes by their name on the wire."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        TaskError.by_kind[cls.__name__] = cls


class TaskFailed(TaskError):
    """`do_action` raised or returned an error, or the program's exit code was not 0."""


class TaskTimeout(TaskError):
    """The task ran longer than its limit and was killed."""


class TaskCancelled(TaskError):
    """The task was cancelled."""


class WorkerDied(TaskError):
    """The process that ran the task ended: a signal, a segmentation fault, `os._exit`."""


class TaskOutOfMemory(TaskError):
    """The task went past its memory limit and was killed."""


class TaskTooManyProcesses(TaskError):
    """The task had more processes and threads than `agent.process_limit` allows, and was killed."""


class TaskPoisoned(TaskError):
    """The task took its agent down each time it was tried."""


class TaskRejected(TaskError):
    """The task was refused before it ran: a command that is no file of the bundle, a bad limit."""


class ResultTooLarge(TaskError):
    """What the task returned is above the cap."""


class ResultNotSerializable(TaskError):
    """What the task returned cannot travel, or cannot be read here: the text names the place in it."""


class TaskImportError(TaskError):
    """The task's file does not import, or has no `do_action`."""


class BudgetExceeded(TaskError):
    """The budget of the pool or of the session was spent before the task began."""


class TaskExpired(TaskError):
    """The task had not begun when the time of its `expires` was over, and never will."""


class SubmitFailed(TaskError):
    """The broker did not take the task, for good."""


class NodeUnreached(TaskError):
    """A node gave no result in a broadcast: it has no agent that takes the task, or its agent has left."""


class DependencyFailed(TaskError):
    """A task that it waited for failed, so it never ran. The text names the first that failed, and why."""


class Retry(Exception):
    """Raised inside `do_action`: run this task again, not before `delay` seconds from now."""

    def __init__(self, delay: float = 0.0, message: str = "the task asked for a retry") -> None:
        super().__init__(message)
        self.delay = delay


class Permanent(Exception):
    """Raised inside `do_action`: this failure is final, and the retry policy is ignored."""

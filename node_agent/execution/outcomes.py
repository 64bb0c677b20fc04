"""What a slot is given to run, and what it says of it: plain data, and the words for each way to end.

They do not change once they have left the slot. They are not frozen all the same: each task has one of
each, and a frozen one takes six times as long to make.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from batchflow.model import Status
from batchflow.protocol.values.encoding import container_size, is_container
from batchflow.protocol.values.misfits import Undecodable
from node_agent.child import frames
from node_agent.child.runner import start_failure
from node_agent.execution.startable import failed_start
from node_agent.execution.warm_workers import Key
from node_agent.system.process_groups import signal_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from batchflow.protocol.bundle import Bundle
    from batchflow.protocol.wire import Reference
    from node_agent.bundles.stored_file import StoredFile
    from node_agent.bundles.values import StoredValue

_TAIL: Final = 2000
NULL: Final = b"null"
SHARED: Final[Key] = ("",)
"""The key of all tasks that may share a process; no session has it."""


@dataclass(slots=True)
class FunctionCall:
    """How a task calls its function."""

    pickle: Path | None
    """The file that has the function by value; None: it is imported by its name."""
    keywords: bool
    """Whether the last of the arguments holds those by keyword."""


@dataclass(slots=True)
class Execution:
    """One try of one task."""

    uid: str
    task_id: str
    client: str
    job: str
    command: str
    """The name of a file of the bundle, or `module:qualname` of a function."""
    args: list[Any] | bytes
    """Bytes: a container, which the child opens."""
    bundle: Bundle
    attempt: int
    timeout: float | None = None
    """Seconds; None: no limit."""
    memory_limit: int | None = None
    """Bytes of resident memory of all the task's processes together; None: no limit."""
    stream_output: bool = False
    function: FunctionCall | None = None
    """None: the command is a file."""
    environment: str | None = None
    """The hash of the environment's bundle."""
    packages: Path | None = None
    """The folder of the environment's packages."""
    variables_blob: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The environment variables of the task, besides those that the tasks of all sessions have."""
    share_processes: bool = False
    """Whether tasks of other sessions that have this as well may run in the same process."""
    pickles: bool = False
    """Whether the session opens pickles in results."""
    trace: str | None = None
    """The W3C `traceparent` of a task that is traced."""
    inputs: list[StoredValue] = field(default_factory=list)
    """The values that the arguments have numbers for, as other tasks left them: JSON or containers."""

    files: Mapping[str, StoredFile] = field(default_factory=dict)
    """Files of other tasks, by their paths in the working directory."""

    @property
    def process_key(self) -> Key:
        """What tells apart the tasks that never run in one process."""
        holder = SHARED if self.share_processes else (self.job, self.client)
        if self.environment is None and self.variables_blob is None:
            return holder
        return (*holder, self.environment or "", self.variables_blob or "")


@dataclass(slots=True)
class Outcome:
    """How a try ended."""

    status: Status
    """SUCCEEDED, FAILED or CANCELLED."""
    value: bytes | Reference | None = None
    """JSON or a container as the child wrote it, or where it was stored; None: null."""
    error: str | None = None
    kind: str | None = None
    """The name of the `TaskError`; None on success."""
    traceback: str | None = None
    exception: str | None = None
    """The name of the type of what was raised."""
    raised: str | None = None
    raised_data: str | None = None
    """What was raised, as `batchflow.protocol.values.raised` tells it."""
    exit_code: int | None = None
    """Of a process that ended; negative: the number of the signal."""
    request: Literal["retry", "permanent"] | None = None
    """What the task's code asked for, by raising `Retry` or `Permanent`."""
    delay: float = 0.0
    """Seconds, with `request="retry"`."""
    stdout: str = ""
    stderr: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    """Seconds since the epoch."""
    outputs: tuple[Path, ...] = ()
    """Files that the task left in its `outputs` folder, in a folder of their own until `Slot.clean`."""
    output_folder: Path | None = None
    """What the names of `outputs` are relative to; None without any."""
    spans: list[dict[str, Any]] | None = None
    """What a traced task has added to its trace."""
    files: tuple[str, ...] = ()
    """The names of what was uploaded of `outputs`."""
    folder: str = ""
    """Where it was uploaded to; see `ResultItem.folder`."""

    @property
    def size(self) -> int:
        """Bytes of a value that is not stored yet, as a message has it: a container in base64."""
        if not isinstance(self.value, bytes):
            return 0
        size = len(self.value)
        return -(-size // 3) * 4 if is_container(self.value) else size

    def output_names(self) -> tuple[str, ...]:
        """Return the names of `outputs` as the task knew them, relative to its `outputs` folder."""
        folder = self.output_folder
        return () if folder is None else tuple(path.relative_to(folder).as_posix() for path in self.outputs)


def failed(kind: str, error: str, **more: Any) -> Outcome:
    return Outcome(Status.FAILED, kind=kind, error=error, **more)


def rejected(reason: str) -> Outcome:
    """Return the outcome of a task that was refused before it ran."""
    return failed("TaskRejected", reason)


def ended_now(outcome: Outcome) -> Outcome:
    """Set the times of an outcome that took no time."""
    outcome.started_at = outcome.finished_at = time.time()
    return outcome


def too_large(outcome: Outcome, size: int, limit: int) -> Outcome:
    """Return the outcome of a task whose result is above the limit."""
    error = f"the result has {size} bytes, the limit is {limit} (setting: result_limit)"
    return replace(outcome, status=Status.FAILED, kind="ResultTooLarge", error=error, value=None)


def answered(
    kind: int, payload: bytes, *, stdout: str, stderr: str, started_at: float, finished_at: float
) -> Outcome:
    """Return the outcome that a worker answered, with what is known besides."""
    if kind == frames.VALUE:
        outcome = Outcome(Status.SUCCEEDED, None if payload == NULL else payload)
        if is_container(payload) and not _is_whole(payload):
            outcome = failed("WorkerDied", "what the child answered cannot be read: a container cut off")
    else:
        outcome = _failure(payload)
    outcome.stdout, outcome.stderr = stdout, stderr
    outcome.started_at, outcome.finished_at = started_at, finished_at
    return outcome


def _is_whole(value: bytes) -> bool:
    try:
        return container_size(value) <= len(value)
    except Undecodable:
        return False


def _failure(payload: bytes) -> Outcome:
    """Read a failure as the worker writes it: the length of what it says of it, that, and a value."""
    try:
        length = int.from_bytes(payload[:4], "big")
        fields: dict[str, Any] = orjson.loads(payload[4 : 4 + length])
        value = payload[4 + length :]
        if is_container(value) and not _is_whole(value):
            raise ValueError("a container cut off")
        return failed(value=None if value == NULL else value, **fields)
    except (ValueError, TypeError) as error:
        return failed("WorkerDied", f"what the child answered cannot be read: {error!r}")


def died(exit_code: int, stderr: str) -> Outcome:
    """Return the outcome of a task whose worker ended without an answer."""
    how = _how(exit_code)
    if exit_code == -9:
        how += " (which is also how the kernel ends a process when the node is out of memory)"
    return failed("WorkerDied", f"the process that ran the task {how}{_said(stderr)}", exit_code=exit_code)


def timed_out(limit: float, used: float) -> Outcome:
    return failed("TaskTimeout", f"the task's limit is {limit:g} s; it was ended after {used:.2f} s")


def out_of_memory(limit: int, used: int) -> Outcome:
    text = f"the task's memory limit is {_mib(limit)}; its processes held {_mib(used)} and were killed"
    return failed("TaskOutOfMemory", text)


def too_many_processes(limit: int, used: int) -> Outcome:
    text = (
        f"the task had {used} processes and threads and was killed with all of them; "
        f"the limit is {limit} (setting: agent.process_limit)"
    )
    return failed("TaskTooManyProcesses", text)


def not_started(argv: Sequence[str], error: OSError) -> Outcome | None:
    """Return the outcome of a program that its arguments keep from starting; None where the node does."""
    return rejected(start_failure(argv, error)) if error.errno == errno.E2BIG else None


def ended(command: str, exit_code: int, stderr: str) -> Outcome:
    """Return the outcome of a program that ended by itself, not with 0."""
    if (reason := failed_start(exit_code, stderr)) is not None:
        return failed("TaskFailed", f"{command} cannot be started: {reason}", exit_code=exit_code)
    text = f"{command} {_how(exit_code)}{_said(stderr)}"
    return failed("WorkerDied" if exit_code < 0 else "TaskFailed", text, exit_code=exit_code)


def _how(exit_code: int) -> str:
    if exit_code < 0:
        return f"was ended by {signal_name(-exit_code)}"
    return f"ended with exit code {exit_code}"


def _said(stderr: str) -> str:
    said = stderr[-_TAIL:].strip()
    return f": {said}" if said else ""


def _mib(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"

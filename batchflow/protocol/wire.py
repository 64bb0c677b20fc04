"""What travels: tasks, results and events as JSON, one or more to a message.

A message is a pack: ``{"v": 1, "type": "tasks" | "results" | "events", "items": [...]}``. A task carries the
five names of azure_realtime_batch (`id` of the client, `jobid`, `taskid`, `command`, `params`), a result its
own five (`result`, `id` as the host name of the node, `jobid`, `taskid`, `error`); the others are ours. A
field that has its default is left out.

Each item is encoded once, when it comes into being, and packs are joined from encoded items: no item is
encoded twice, and the size of a message is known before it is made.

Rules:

- `uid` names one task and never another: incarnation of the session, a colon, the sequence number. Outcomes
  are told apart by it alone.
- An unknown field is ignored, an unknown `type` or another `v` is a `ProtocolError`: newer writers may add
  fields, not change them.
- Whatever comes in, `decode` returns items whose fields have the types that are written here, or raises
  `ProtocolError`, never anything else.
- A value that JSON does not hold travels as `values` encodes it: in the field of the reference, so that an
  earlier version says that it cannot have it. A result has its nearest JSON as well, where it is short.
- An item does not change once it is made: `replace` makes another. Those that each task has are not frozen
  all the same, because a frozen one takes six times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, get_args

import orjson

from batchflow.errors import ProtocolError
from batchflow.model import Attempt, Status
from batchflow.protocol.fields import (
    ANY,
    HISTORY,
    LIST,
    NUMBER,
    TABLE,
    TEXT,
    TEXTS,
    TRUTH,
    UID,
    UID_PATTERN,
    WHOLE,
    Codec,
    FieldError,
    Reference,
    always,
    carried,
    choice,
    from_base64,
    optional,
    record,
)

__all__ = ["EventItem", "Item", "PackType", "Reference", "ResultItem", "TaskItem", "carried"]

VERSION: Final = 1
PackType = Literal["tasks", "results", "events"]

PACK_OVERHEAD: Final = 64
"""Bytes that a pack adds around its items, at most; each item adds one comma."""
NO_ERROR: Final = "no error"
"""How azure_realtime_batch spells success."""
EventKind = Literal["stdout", "stderr", "log", "progress", "warning", "info"]

_DUMP_OPTIONS: Final = orjson.OPT_PASSTHROUGH_SUBCLASS

_SUCCEEDED: Final = Status.SUCCEEDED
"""A member is looked up in its class by Python code, which takes 0.1 µs."""
OUTCOME: Final = choice("an outcome", {status.value: status for status in Status if status.final})
EVENT_KIND: Final = choice("a known kind of event", {kind: kind for kind in get_args(EventKind)})


@record
class TaskItem:
    """A task on its way to an agent."""

    client: str = always("id", TEXT)
    job: str = always("jobid", TEXT)
    task_id: str = always("taskid", TEXT)
    command: str = always("command", TEXT)
    params: list[Any] | Reference = always("params", LIST, reference="params_ref")
    uid: str = always("uid", UID)
    bundle: str = always("bundle", TEXT)
    submitted_at: float = always("submitted", NUMBER, default=0.0)
    tag: Any = optional("tag", ANY, default=None)
    timeout: float | None = optional("timeout", NUMBER, default=None)
    memory_limit: int | None = optional("memory", WHOLE, default=None)
    """Bytes."""
    retry: Mapping[str, Any] | None = optional("retry", TABLE, default=None)
    stream_output: bool = optional("stream", TRUTH, default=False)
    attempt: int = optional("attempt", WHOLE, default=1)
    hop: int = optional("hop", WHOLE, default=0)
    """How often it was handed back."""
    history: tuple[Attempt, ...] = optional("history", HISTORY, default=())
    trace: str | None = optional("trace", TEXT, default=None)
    """A W3C `traceparent`."""
    share_processes: bool = optional("shared", TRUTH, default=False)
    """Whether it may run in a process with tasks of other sessions that have this as well."""
    execution_folders: bool = optional("folders", TRUTH, default=False, usual=True)
    """Whether its session finds the files that it leaves in a folder of their own for each execution."""
    function: bool = optional("function", TRUTH, default=False, frequent=True)
    """Whether the command is a function, `module:qualname`, and no file."""
    pickle: str | None = optional("pickle", TEXT, default=None)
    """The hash of the bundle that has the function by value; None: it is imported by its name."""
    environment: str | None = optional("environment", TEXT, default=None)
    """The hash of the bundle that has the Python packages it runs with."""
    variables: str | None = optional("variables", TEXT, default=None)
    """The blob of the control container with its environment variables; None: it has none of its own."""
    keywords: bool = optional("keywords", TRUTH, default=False)
    """Whether the last of the arguments holds the function's arguments by keyword."""
    pickles: bool = optional("pickles", TRUTH, default=False)
    """Whether the session opens pickles in results."""
    budget: Mapping[str, Any] | None = optional("budget", TABLE, default=None)
    """The session's budget, as `budgets.BudgetTerms` has it; None: it has none."""
    expires: float | None = optional("expires", NUMBER, default=None)
    """Seconds from the moment that its message was enqueued, after which it does not begin; None: it does."""
    requires: Mapping[str, Any] | None = optional("requires", TABLE, default=None)
    """What it requires of its node, as `needs.Needs` has it; None: one slot."""
    inputs: list[Any] | None = optional("inputs", LIST, default=None)
    """Where the values lie that its arguments have numbers for, as `passed` has it; None: they are here."""

    files: list[Any] | None = optional("files", LIST, default=None)
    """Where the files lie that it takes from other tasks, as `passed` has it; None: it takes none."""
    places: str | None = optional("places", TEXT, default=None)
    """The blob of the control container that has `inputs` and `files`; None: they are here."""

    @property
    def carries_arguments(self) -> bool:
        """Whether all that it takes is here, and nothing in a blob."""
        return self.inputs is None and self.files is None and self.places is None and self._has_arguments

    @property
    def _has_arguments(self) -> bool:
        return type(self.params) is list or self.params.data is not None  # type: ignore[union-attr]

    @property
    def mailbox(self) -> str:
        return mailbox_id(self.job, self.client)


@record
class ResultItem:
    """An outcome on its way to a mailbox."""

    value: Any | Reference = always("result", ANY, reference="result_ref")
    host: str | None = always("id", TEXT, absent=None)
    job: str = always("jobid", TEXT)
    task_id: str = always("taskid", TEXT)
    error: str | None = always("error", TEXT, absent=None, source="error_text")
    client: str = always("client", TEXT)
    command: str = always("command", TEXT)
    uid: str = always("uid", UID)
    status: Status = always("status", OUTCOME, source="status._value_")
    submitted_at: float = always("submitted", NUMBER, default=0.0)
    kind: str | None = optional("kind", TEXT, default=None)
    traceback: str | None = optional("traceback", TEXT, default=None)
    tag: Any = optional("tag", ANY, default=None)
    attempt: int = optional("attempt", WHOLE, default=1)
    history: tuple[Attempt, ...] = optional("history", HISTORY, default=())
    stdout: str = optional("stdout", TEXT, default="")
    stderr: str = optional("stderr", TEXT, default="")
    started_at: float | None = optional("started", NUMBER, default=None, usual=True)
    finished_at: float | None = optional("finished", NUMBER, default=None, usual=True)
    files: tuple[str, ...] = optional("files", TEXTS, default=())
    folder: str = optional("folder", TEXT, default="")
    """The folder of the execution, below the task's, that these files are in; empty: the task's itself."""
    encoded: str | None = optional("result_data", TEXT, default=None)
    """The value as a container in base64, when `value` is only its nearest JSON. None once it was read."""
    raised: str | None = optional("raised", TEXT, default=None)
    """The class of the exception that the task raised, `module:name`."""
    raised_data: str | None = optional("raised_data", TEXT, default=None)
    """What the exception is rebuilt from, in base64; see `values.raised`."""
    spans: Any = optional("spans", ANY, default=None)
    """The spans that a traced task has added to its trace, as `engine.span` tells them."""

    @property
    def error_text(self) -> str:
        """The error as the wire has it."""
        return NO_ERROR if self.status is _SUCCEEDED else self.error or self.status.value


@record
class EventItem:
    """An event that a task reports while it runs."""

    uid: str = always("uid", UID)
    task_id: str = always("taskid", TEXT)
    kind: EventKind = always("kind", EVENT_KIND)
    message: str = always("message", TEXT)
    at: float = always("at", NUMBER)
    data: Any = optional("data", ANY, default=None)


Item = TaskItem | ResultItem | EventItem


def mailbox_id(job: str, client: str) -> str:
    """Return the Service Bus session that a client's results come to."""
    return f"{job}/{client}"


def make_uid(incarnation: str, sequence: int) -> str:
    return f"{incarnation}:{sequence}"


def split_uid(uid: str) -> tuple[str, int]:
    """Return the incarnation and the sequence number. Raises `ProtocolError`."""
    if (found := UID_PATTERN.fullmatch(uid)) is None:
        raise ProtocolError(f"not a uid: {uid[:80]!r}")
    return found[1], int(found[2])


def dumps(value: Any) -> bytes:
    """Encode as JSON. Raises TypeError for what JSON cannot hold."""
    return orjson.dumps(value, option=_DUMP_OPTIONS)


def encode(item: Item) -> bytes:
    """Encode one item. Raises TypeError when a value in it is not JSON."""
    return orjson.dumps(_WRITERS[type(item)](item), option=_DUMP_OPTIONS)


def join(kind: PackType, items: Iterable[bytes]) -> bytes:
    """Join encoded items to a message."""
    return b'{"v":%d,"type":"%s","items":[%s]}' % (VERSION, kind.encode(), b",".join(items))


def decode(body: bytes) -> list[TaskItem] | list[ResultItem] | list[EventItem]:
    """Decode the items of a message, all of one type, at least one. Raises `ProtocolError`."""
    try:
        pack = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"a message that is not JSON: {error}") from error
    if not isinstance(pack, dict) or not isinstance(pack.get("items"), list) or not pack["items"]:
        raise ProtocolError("a message that is not a pack of batchflow")
    if pack.get("v") != VERSION:
        raise ProtocolError(f"a message of version {str(pack.get('v'))[:40]}; this batchflow reads {VERSION}")
    kind = pack.get("type")
    codec = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if codec is None:
        raise ProtocolError(f"a message of unknown type {str(kind)[:40]!r}")
    read = codec.read
    items: list[Any] = []
    try:
        for fields in pack["items"]:
            items.append(read(fields))  # noqa: PERF401 - its length is the place of a fault
    except FieldError as error:
        raise ProtocolError(
            f"a malformed item in a message of {kind}: {error.below(f'items[{len(items)}]')}"
        ) from None
    return items


def result_of(
    task: TaskItem,
    *,
    status: Status,
    host: str | None,
    value: Any | Reference = None,
    error: str | None = None,
    kind: str | None = None,
    traceback: str | None = None,
    stdout: str = "",
    stderr: str = "",
    started_at: float | None = None,
    finished_at: float | None = None,
    files: tuple[str, ...] = (),
    folder: str = "",
) -> ResultItem:
    """Make the result of a task from what the task itself says."""
    # By position, in the order of the table: 20 keywords take 1 µs longer, and each result is made here.
    return ResultItem(
        value,
        host,
        task.job,
        task.task_id,
        error,
        task.client,
        task.command,
        task.uid,
        status,
        task.submitted_at,
        kind,
        traceback,
        task.tag,
        task.attempt,
        task.history,
        stdout,
        stderr,
        started_at,
        finished_at,
        files,
        folder,
    )


def handed_back(
    task: TaskItem,
    *,
    attempt: int | None = None,
    history: tuple[Attempt, ...] = (),
    expires: float | None = None,
) -> TaskItem:
    """Copy a task that is returned without an outcome. `expires`: seconds that are left of that field."""
    return replace(
        task,
        hop=task.hop + 1,
        attempt=task.attempt if attempt is None else attempt,
        history=task.history + history,
        expires=expires,
    )


def with_expiry(item: bytes, seconds: float) -> bytes:
    """Add the field `expires` to a task that is encoded."""
    return item[:-1] + b',"expires":%.3f}' % max(0.001, seconds)


def _settle_result(result: ResultItem) -> None:
    """Drop the error of a success, and require one of a failure. A container replaces its nearest JSON."""
    if result.encoded is not None:
        try:
            result.value = carried(from_base64(result.encoded))
        except FieldError as error:
            raise error.below(".result_data") from None
        result.encoded = None
    if result.status is _SUCCEEDED:
        result.error = None
    elif result.error is None:
        raise FieldError("missing", ".error")


_TASKS: Final = Codec(TaskItem)
_RESULTS: Final = Codec(ResultItem, _settle_result)
_EVENTS: Final = Codec(EventItem)
_WRITERS: Final[Mapping[type[Item], Callable[[Any], dict[str, Any]]]] = {
    TaskItem: _TASKS.write,
    ResultItem: _RESULTS.write,
    EventItem: _EVENTS.write,
}
_BY_TYPE: Final[Mapping[str, Codec[Any]]] = {"tasks": _TASKS, "results": _RESULTS, "events": _EVENTS}

"""What travels: tasks, results and events as JSON, one or more to a message.

A message is a pack: ``{"v": 1, "type": "tasks" | "results" | "events", "items": [...]}``. A task carries the
five names of azure_realtime_batch (`id` of the client, `jobid`, `taskid`, `command`, `params`), a result its
own five (`result`, `id` as the host name of the node, `jobid`, `taskid`, `error`); the others are ours. A
field that has its default is left out.

Each item is encoded once, when it comes into being, and packs are joined from encoded items: nobody encodes
twice, and the size of a message is known before it is made.

Rules:

- `uid` names a task for ever: incarnation of the session, a colon, the sequence number. Outcomes are told
  apart by it alone.
- An unknown field is ignored, an unknown `type` or another `v` is a `ProtocolError`: newer writers may add
  fields, not change them.
- Whatever comes in, `decode` returns items whose fields have the types that are written here, or raises
  `ProtocolError`, never anything else.
- Nobody changes an item once it is made: `replace` makes another. Those that each task has are not frozen all
  the same, for a frozen one takes six times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final, Literal, TypeVar, get_args

import orjson

from batchflow.errors import ProtocolError
from batchflow.model import Attempt, Status
from batchflow.support.frozen import frozen

VERSION: Final = 1
PackType = Literal["tasks", "results", "events"]
T = TypeVar("T")

PACK_OVERHEAD: Final = 64
"""Bytes that a pack adds around its items, at most; each item adds one comma."""
NO_ERROR: Final = "no error"
"""How azure_realtime_batch spells success."""
EventKind = Literal["stdout", "stderr", "log", "progress", "warning", "info"]

_STATUS: Final = {status: status.value for status in Status}
_OUTCOMES: Final = {status.value: status for status in Status if status.final}
_DUMP_OPTIONS: Final = orjson.OPT_PASSTHROUGH_SUBCLASS
_MOST_DIGITS: Final = 19
"""Of a sequence number."""


@frozen
class Reference:
    """A value that is too large for a message and lies in a blob instead."""

    blob: str
    size: int
    """Bytes of JSON."""


@dataclass(slots=True)
class TaskItem:
    """A task on its way to an agent."""

    client: str
    job: str
    task_id: str
    command: str
    params: list[Any] | Reference
    uid: str
    bundle: str
    submitted_at: float = 0.0
    timeout: float | None = None
    memory_limit: int | None = None
    """Bytes."""
    retry: Mapping[str, Any] | None = None
    stream_output: bool = False
    tag: Any = None
    attempt: int = 1
    hop: int = 0
    """How often it was handed back."""
    history: tuple[Attempt, ...] = ()
    trace: str | None = None
    """A W3C `traceparent`."""

    @property
    def mailbox(self) -> str:
        return mailbox_id(self.job, self.client)


@dataclass(slots=True)
class ResultItem:
    """An outcome on its way to a mailbox."""

    uid: str
    client: str
    job: str
    task_id: str
    command: str
    status: Status
    host: str | None
    value: Any | Reference = None
    error: str | None = None
    kind: str | None = None
    traceback: str | None = None
    tag: Any = None
    attempt: int = 1
    history: tuple[Attempt, ...] = ()
    stdout: str = ""
    stderr: str = ""
    submitted_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    files: tuple[str, ...] = ()


@frozen
class EventItem:
    """Something that a task tells while it runs."""

    uid: str
    task_id: str
    kind: EventKind
    message: str
    at: float
    data: Any = None


Item = TaskItem | ResultItem | EventItem


def mailbox_id(job: str, client: str) -> str:
    """The Service Bus session that a client's results come to."""
    return f"{job}/{client}"


def make_uid(incarnation: str, sequence: int) -> str:
    return f"{incarnation}:{sequence}"


def split_uid(uid: str) -> tuple[str, int]:
    """The incarnation and the sequence number. Raises `ProtocolError`."""
    incarnation, colon, number = uid.rpartition(":")
    if not colon or len(number) > _MOST_DIGITS or not (number.isascii() and number.isdecimal()):
        raise ProtocolError(f"not a uid: {uid[:80]!r}")
    return incarnation, int(number)


def dumps(value: Any) -> bytes:
    """JSON. Raises TypeError for what JSON cannot hold."""
    return orjson.dumps(value, option=_DUMP_OPTIONS)


def encode(item: Item) -> bytes:
    """One item. Raises TypeError when a value in it is not JSON."""
    return dumps(_FIELDS[type(item)](item))


def join(kind: PackType, items: Iterable[bytes]) -> bytes:
    """A message of encoded items."""
    return b'{"v":%d,"type":"%s","items":[%s]}' % (VERSION, kind.encode(), b",".join(items))


def decode(body: bytes) -> list[TaskItem] | list[ResultItem] | list[EventItem]:
    """The items of a message, all of one type, at least one. Raises `ProtocolError`."""
    try:
        pack = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"a message that is not JSON: {error}") from error
    if not isinstance(pack, dict) or not isinstance(pack.get("items"), list) or not pack["items"]:
        raise ProtocolError("a message that is not a pack of batchflow")
    if pack.get("v") != VERSION:
        raise ProtocolError(f"a message of version {str(pack.get('v'))[:40]}; this batchflow reads {VERSION}")
    kind = pack.get("type")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ProtocolError(f"a message of unknown type {str(kind)[:40]!r}")
    try:
        return [reader(fields) for fields in pack["items"]]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ProtocolError(f"a malformed item in a message of {kind}: {error!r}") from error


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
) -> ResultItem:
    """What became of a task, with what the task itself says."""
    return ResultItem(
        task.uid,
        task.client,
        task.job,
        task.task_id,
        task.command,
        status,
        host,
        value,
        error,
        kind,
        traceback,
        task.tag,
        task.attempt,
        task.history,
        stdout,
        stderr,
        task.submitted_at,
        started_at,
        finished_at,
        files,
    )


def handed_back(task: TaskItem, *, attempt: int | None = None, history: tuple[Attempt, ...] = ()) -> TaskItem:
    """The copy of a task that is returned without an outcome."""
    return replace(
        task,
        hop=task.hop + 1,
        attempt=task.attempt if attempt is None else attempt,
        history=task.history + history,
    )


def _task_fields(task: TaskItem) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": task.client,
        "jobid": task.job,
        "taskid": task.task_id,
        "command": task.command,
        "params": task.params if isinstance(task.params, list) else None,
        "uid": task.uid,
        "bundle": task.bundle,
        "submitted": task.submitted_at,
    }
    if isinstance(task.params, Reference):
        fields["params_ref"] = _reference_fields(task.params)
    if task.tag is not None:
        fields["tag"] = task.tag
    if task.timeout is not None:
        fields["timeout"] = task.timeout
    if task.memory_limit is not None:
        fields["memory"] = task.memory_limit
    if task.retry is not None:
        fields["retry"] = dict(task.retry)
    if task.stream_output:
        fields["stream"] = True
    if task.attempt != 1:
        fields["attempt"] = task.attempt
    if task.hop:
        fields["hop"] = task.hop
    if task.history:
        fields["history"] = _history_fields(task.history)
    if task.trace is not None:
        fields["trace"] = task.trace
    return fields


def _read_task(fields: dict[str, Any]) -> TaskItem:
    client, job, task_id, command, uid, bundle = _checked(_task_texts(fields), _TASK_TEXTS)
    split_uid(uid)
    params = _read_reference(fields.get("params_ref"))
    if params is None and not isinstance(params := fields["params"], list):
        raise ValueError("params is not a list")
    submitted_at = _number(fields.get("submitted", 0.0))
    task = TaskItem(client, job, task_id, command, params, uid, bundle, submitted_at)
    if fields.keys() != _PLAIN_TASK:
        _read_rest_of_task(task, fields)
    return task


def _read_rest_of_task(task: TaskItem, fields: dict[str, Any]) -> None:
    task.timeout = _optional(_number, fields.get("timeout"))
    task.memory_limit = _optional(_whole, fields.get("memory"))
    task.retry = _optional(_table, fields.get("retry"))
    task.stream_output = bool(fields.get("stream", False))
    task.tag = fields.get("tag")
    task.attempt = _whole(fields["attempt"]) if "attempt" in fields else 1
    task.hop = _whole(fields["hop"]) if "hop" in fields else 0
    task.history = _read_history(fields)
    task.trace = _optional_text(fields, "trace")


def _result_fields(result: ResultItem) -> dict[str, Any]:
    status = _STATUS[result.status]
    reference = result.value if isinstance(result.value, Reference) else None
    fields: dict[str, Any] = {
        "result": result.value if reference is None else None,
        "id": result.host,
        "jobid": result.job,
        "taskid": result.task_id,
        "error": NO_ERROR if result.status is Status.SUCCEEDED else result.error or status,
        "client": result.client,
        "command": result.command,
        "uid": result.uid,
        "status": status,
        "submitted": result.submitted_at,
    }
    if reference is not None:
        fields["result_ref"] = _reference_fields(reference)
    if result.kind is not None:
        fields["kind"] = result.kind
    if result.traceback is not None:
        fields["traceback"] = result.traceback
    if result.tag is not None:
        fields["tag"] = result.tag
    if result.attempt != 1:
        fields["attempt"] = result.attempt
    if result.history:
        fields["history"] = _history_fields(result.history)
    if result.stdout:
        fields["stdout"] = result.stdout
    if result.stderr:
        fields["stderr"] = result.stderr
    if result.started_at is not None:
        fields["started"] = result.started_at
    if result.finished_at is not None:
        fields["finished"] = result.finished_at
    if result.files:
        fields["files"] = result.files
    return fields


def _read_result(fields: dict[str, Any]) -> ResultItem:
    uid, client, job, task_id, command, told = _checked(_result_texts(fields), _RESULT_TEXTS)
    split_uid(uid)
    status = _OUTCOMES.get(told)
    if status is None:
        raise ValueError("its status is no outcome")
    value = _read_reference(fields.get("result_ref"))
    result = ResultItem(
        uid,
        client,
        job,
        task_id,
        command,
        status,
        _optional_text(fields, "id"),
        fields["result"] if value is None else value,
        None if status is Status.SUCCEEDED else _text(fields, "error"),
        submitted_at=_number(fields.get("submitted", 0.0)),
        started_at=_optional(_number, fields.get("started")),
        finished_at=_optional(_number, fields.get("finished")),
    )
    if fields.keys() != _PLAIN_RESULT:
        _read_rest_of_result(result, fields)
    return result


def _read_rest_of_result(result: ResultItem, fields: dict[str, Any]) -> None:
    result.kind = _optional_text(fields, "kind")
    result.traceback = _optional_text(fields, "traceback")
    result.tag = fields.get("tag")
    result.attempt = _whole(fields["attempt"]) if "attempt" in fields else 1
    result.history = _read_history(fields)
    result.stdout = _text(fields, "stdout") if "stdout" in fields else ""
    result.stderr = _text(fields, "stderr") if "stderr" in fields else ""
    result.files = tuple(map(_string, fields["files"])) if "files" in fields else ()


def _event_fields(event: EventItem) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "uid": event.uid,
        "taskid": event.task_id,
        "kind": event.kind,
        "message": event.message,
        "at": event.at,
    }
    if event.data is not None:
        fields["data"] = event.data
    return fields


def _read_event(fields: dict[str, Any]) -> EventItem:
    kind = fields["kind"]
    if kind not in get_args(EventKind):
        raise ValueError("no known kind of event")
    return EventItem(
        uid=_uid(fields),
        task_id=_text(fields, "taskid"),
        kind=kind,
        message=_text(fields, "message"),
        at=_number(fields["at"]),
        data=fields.get("data"),
    )


_FIELDS: Final[Mapping[Any, Callable[[Any], dict[str, Any]]]] = {
    TaskItem: _task_fields,
    ResultItem: _result_fields,
    EventItem: _event_fields,
}
_READERS: Final[Mapping[Any, Any]] = {"tasks": _read_task, "results": _read_result, "events": _read_event}

# Nearly all items have the fields that each has, and no others: nobody looks for the others in these.
_TASK_TEXTS: Final = ("id", "jobid", "taskid", "command", "uid", "bundle")
_task_texts: Final = itemgetter(*_TASK_TEXTS)
_PLAIN_TASK: Final = frozenset((*_TASK_TEXTS, "params", "submitted"))
_RESULT_TEXTS: Final = ("uid", "client", "jobid", "taskid", "command", "status")
_result_texts: Final = itemgetter(*_RESULT_TEXTS)
_PLAIN_RESULT: Final = frozenset(
    (*_RESULT_TEXTS, "result", "id", "error", "submitted", "started", "finished")
)
_ALL_TEXT: Final = {str}


def _checked(texts: tuple[Any, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Several fields together, in half the time that it takes to ask for each."""
    if set(map(type, texts)) != _ALL_TEXT:
        wrong = next(name for name, text in zip(names, texts, strict=True) if type(text) is not str)
        raise TypeError(f"{wrong} is not a string")
    return texts


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string")
    return value


def _optional_text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} is not a string")
    return value


def _uid(fields: dict[str, Any]) -> str:
    uid = _text(fields, "uid")
    split_uid(uid)
    return uid


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is not a string")
    return value


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is not a number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is not a whole number")
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} is not an object")
    return value


def _optional(read: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else read(value)


def _reference_fields(value: Reference) -> dict[str, Any]:
    return {"blob": value.blob, "size": value.size}


def _read_reference(fields: dict[str, Any] | None) -> Reference | None:
    return None if fields is None else Reference(_text(fields, "blob"), _whole(fields["size"]))


def _history_fields(history: tuple[Attempt, ...]) -> list[list[Any]]:
    return [[past.number, past.error, past.node, past.finished_at] for past in history]


def _read_history(fields: dict[str, Any]) -> tuple[Attempt, ...]:
    if "history" not in fields:
        return ()
    return tuple(
        Attempt(_whole(number), _string(error), _string(node), _number(finished_at))
        for number, error, node, finished_at in fields["history"]
    )

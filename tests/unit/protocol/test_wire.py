"""The wire: what is written is what is read, and nothing that comes in can do more than be refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ProtocolError
from batchflow.model import Attempt, Status
from batchflow.protocol import wire
from batchflow.protocol.wire import EventItem, Item, Reference, ResultItem, TaskItem
from batchflow.sessions.records.submission import Submission

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
MOMENTS = st.floats(0, 4e9, allow_nan=False)
UIDS = st.builds(wire.make_uid, TEXT, st.integers(0, 2**40))
REFERENCES = st.builds(Reference, blob=TEXT, size=st.integers(0, 2**40))
HISTORY = st.lists(st.builds(Attempt, st.integers(1, 99), TEXT, TEXT, MOMENTS), max_size=3).map(tuple)

TASKS = st.builds(
    TaskItem,
    client=TEXT,
    job=TEXT,
    task_id=TEXT,
    command=TEXT,
    params=st.lists(JSON, max_size=4) | REFERENCES,
    uid=UIDS,
    bundle=TEXT,
    submitted_at=MOMENTS,
    timeout=st.none() | st.floats(0, 1e6),
    memory_limit=st.none() | st.integers(0, 2**50),
    retry=st.none() | st.dictionaries(TEXT, JSON, min_size=1, max_size=3),
    stream_output=st.booleans(),
    tag=JSON,
    attempt=st.integers(1, 99),
    hop=st.integers(0, 99),
    history=HISTORY,
    trace=st.none() | TEXT,
)
_ANY_RESULT = st.builds(
    ResultItem,
    uid=UIDS,
    client=TEXT,
    job=TEXT,
    task_id=TEXT,
    command=TEXT,
    status=st.just(Status.SUCCEEDED),
    error=st.none(),
    host=st.none() | TEXT,
    value=JSON | REFERENCES,
    kind=st.none() | TEXT,
    traceback=st.none() | TEXT,
    tag=JSON,
    attempt=st.integers(1, 99),
    history=HISTORY,
    stdout=TEXT,
    stderr=TEXT,
    submitted_at=MOMENTS,
    started_at=st.none() | MOMENTS,
    finished_at=st.none() | MOMENTS,
    files=st.lists(TEXT, max_size=3).map(tuple),
)
RESULTS = _ANY_RESULT | st.builds(
    lambda result, status, error: replace(result, status=status, error=error),
    _ANY_RESULT,
    st.sampled_from([Status.FAILED, Status.CANCELLED]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
EVENTS = st.builds(
    EventItem,
    uid=UIDS,
    task_id=TEXT,
    kind=st.sampled_from(["stdout", "stderr", "log", "progress", "warning", "info"]),
    message=TEXT,
    at=MOMENTS,
    data=JSON,
)

TASK = TaskItem("client", "job", "7", "x.py", [1], "abc:7", "f" * 64)
RESULT = ResultItem(
    uid="abc:7", client="client", job="job", task_id="7", command="x.py", status=Status.SUCCEEDED,
    host="host", value=42, error=None,
)  # fmt: skip
EVENT = EventItem("abc:7", "7", "stdout", "a line", 1.0)
PACKS: dict[wire.PackType, Item] = {"tasks": TASK, "results": RESULT, "events": EVENT}


def pack(kind: str, *items: Any, version: Any = 1) -> bytes:
    return orjson.dumps({"v": version, "type": kind, "items": items})


def fields_of(item: Item) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(wire.encode(item))
    return fields


@given(st.lists(TASKS, min_size=1, max_size=4))
def test_tasks_come_back_as_they_left(tasks: list[TaskItem]) -> None:
    """Every field of every task survives the road, references included."""
    assert wire.decode(wire.join("tasks", map(wire.encode, tasks))) == tasks


@given(st.lists(RESULTS, min_size=1, max_size=4))
def test_results_come_back_as_they_left(results: list[ResultItem]) -> None:
    """Every field of every result survives the road."""
    assert wire.decode(wire.join("results", map(wire.encode, results))) == results


@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_events_come_back_as_they_left(events: list[EventItem]) -> None:
    """Every field of every event survives the road, data that is false, zero or empty included."""
    assert wire.decode(wire.join("events", map(wire.encode, events))) == events


@given(st.lists(TASKS, min_size=1, max_size=4))
def test_the_size_of_a_message_is_known_before_it_is_made(tasks: list[TaskItem]) -> None:
    """A pack adds at most `PACK_OVERHEAD` bytes and one comma for each item."""
    items = [wire.encode(task) for task in tasks]
    assert len(wire.join("tasks", items)) <= wire.PACK_OVERHEAD + sum(len(item) + 1 for item in items)


def test_a_task_carries_the_five_names_of_the_original() -> None:
    """What azure_realtime_batch reads is there under the names that it reads."""
    fields = fields_of(TASK)
    assert {name: fields[name] for name in ("id", "jobid", "taskid", "command", "params")} == {
        "id": "client",
        "jobid": "job",
        "taskid": "7",
        "command": "x.py",
        "params": [1],
    }


def test_a_result_carries_the_five_names_of_the_original() -> None:
    """`id` is the node's host name, and success is spelled "no error"."""
    fields = fields_of(RESULT)
    assert {name: fields[name] for name in ("result", "id", "jobid", "taskid", "error")} == {
        "result": 42,
        "id": "host",
        "jobid": "job",
        "taskid": "7",
        "error": "no error",
    }


def test_defaults_are_left_out() -> None:
    """A plain task pays for no field that it does not use."""
    assert fields_of(TASK).keys() == {
        "id", "jobid", "taskid", "command", "params", "uid", "bundle", "submitted",
    }  # fmt: skip


PLAIN_RESULT = replace(RESULT, submitted_at=1.0, started_at=2.0, finished_at=3.0)
FAILURE = replace(PLAIN_RESULT, status=Status.FAILED, value=None, error="it broke")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"params": Reference("blob", 5)},
        {"submitted_at": 0.0},
        {"timeout": 1.5},
        {"memory_limit": 5},
        {"retry": {"attempts": 2}},
        {"stream_output": True},
        {"tag": 0},
        {"attempt": 2},
        {"hop": 1},
        {"history": (Attempt(1, "it broke", "host", 5.0),)},
        {"trace": "00-1-2-01"},
        {"share_processes": True},
        {"execution_folders": True},
        {"execution_folders": True, "tag": 0},
        {"execution_folders": True, "pickles": True},
    ],
)
def test_a_task_with_one_thing_beside_what_each_has(extra: dict[str, Any]) -> None:
    """Those that have nothing else are read without looking for it."""
    task = replace(TASK, **extra)
    assert wire.decode(pack("tasks", fields_of(task))) == [task]


def lines(work: Callable[[], object]) -> int:
    """How many lines of Python run during it."""
    count = 0

    def traced(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("function", [False, True])
def test_a_task_as_sessions_submit_it_is_written_and_read_without_a_look_at_each_field(
    function: bool,
) -> None:
    """Writer and reader know a field that each task has, or each of a function: they take their short way."""
    data = Submission.of("task.py", [1, "two"]).encode(
        client="client", job="job", task_id="7", uid="incarnation:7", bundle="hash", now=1.0, reference=None
    )
    assert data is not None
    (task,) = wire.decode(wire.join("tasks", [data]))
    assert isinstance(task, TaskItem)
    task = replace(task, function=function)
    rare = replace(task, hop=1)
    assert wire.decode(wire.join("tasks", [wire.encode(task)])) == [task]
    assert lines(lambda: wire.encode(task)) < lines(lambda: wire.encode(rare)) * 0.6
    plain, other = (wire.join("tasks", [wire.encode(item)]) for item in (task, rare))
    assert lines(lambda: wire.decode(plain)) < lines(lambda: wire.decode(other)) / 2


@pytest.mark.parametrize("plain", [PLAIN_RESULT, FAILURE])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"value": Reference("blob", 5)},
        {"host": None},
        {"submitted_at": 0.0},
        {"started_at": None},
        {"finished_at": None},
        {"kind": "TaskFailed"},
        {"traceback": "in x.py"},
        {"tag": 0},
        {"attempt": 2},
        {"history": (Attempt(1, "it broke", "host", 5.0),)},
        {"stdout": "a line"},
        {"stderr": "a line"},
        {"files": ("a", "b")},
    ],
)
def test_a_result_with_one_thing_beside_what_each_has(plain: ResultItem, extra: dict[str, Any]) -> None:
    """The same."""
    result = replace(plain, **extra)
    assert wire.decode(pack("results", fields_of(result))) == [result]


@pytest.mark.parametrize(
    ("kind", "item", "missing", "read"),
    [
        ("tasks", TASK, "submitted", "submitted_at"),
        ("results", PLAIN_RESULT, "submitted", "submitted_at"),
        ("results", PLAIN_RESULT, "started", "started_at"),
        ("results", PLAIN_RESULT, "id", "host"),
    ],
)
def test_an_item_with_another_field_in_the_place_of_one(
    kind: wire.PackType, item: TaskItem | ResultItem, missing: str, read: str
) -> None:
    """As many as a plain one has, and yet not plain."""
    fields = fields_of(item) | {"tag": 5}
    del fields[missing]
    (found,) = wire.decode(pack(kind, fields))
    default: Any = 0.0 if read == "submitted_at" else None
    assert found == replace(item, tag=5, **{read: default})


@pytest.mark.parametrize(("kind", "item"), [("tasks", TASK), ("results", RESULT)])
def test_fault_names_the_field_and_shows_no_value(kind: wire.PackType, item: Item) -> None:
    for name in ("uid", "jobid", "taskid", "command"):
        with pytest.raises(ProtocolError, match=rf"items\[0\]\.{name}: a list is not a string") as caught:
            wire.decode(pack(kind, fields_of(item) | {name: ["secret"]}))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("kind", "item"), PACKS.items())
def test_an_unknown_field_is_ignored(kind: wire.PackType, item: Item) -> None:
    """A newer writer may add fields."""
    assert wire.decode(pack(kind, fields_of(item) | {"a_new_field": {"x": 1}})) == [item]


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_failure_without_a_text_does_not_read_as_success(status: Status) -> None:
    """ "no error" stands for success alone, and never for a failure that has no words."""
    failure = replace(RESULT, status=status, value=None)
    assert fields_of(failure)["error"] not in ("no error", "")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {}])
def test_another_version_is_refused(version: Any) -> None:
    """What a newer writer changed must not be misread."""
    with pytest.raises(ProtocolError, match="version"):
        wire.decode(pack("tasks", fields_of(TASK), version=version))


@pytest.mark.parametrize("kind", ["", "task", "Tasks", None, 1, [], {}, ["tasks"]])
def test_an_unknown_type_is_refused(kind: Any) -> None:
    """Whatever stands where the type belongs, unhashable values included."""
    with pytest.raises(ProtocolError, match="unknown type"):
        wire.decode(pack(kind, fields_of(TASK)))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"null", b"[]", b"{}", b'"x"', b"12", b"[" * 5000, b"NaN", b'{"v":1,"type":"tasks"}',
     b'{"v":1,"type":"tasks","items":[]}', b'{"v":1,"type":"tasks","items":{}}'],
)  # fmt: skip
def test_what_is_no_pack_is_refused(body: bytes) -> None:
    """Not JSON, not an object, without items, or with none."""
    with pytest.raises(ProtocolError):
        wire.decode(body)


@given(st.binary(max_size=200) | JSON.map(orjson.dumps))
def test_noise_is_refused_and_nothing_else(body: bytes) -> None:
    """No bytes make `decode` raise anything but `ProtocolError`."""
    with pytest.raises(ProtocolError):
        wire.decode(body)


@given(st.sampled_from(["tasks", "results", "events"]), st.lists(JSON, min_size=1, max_size=3))
def test_items_that_are_none_are_refused(kind: str, items: list[Any]) -> None:
    """A well-formed pack of nonsense is a `ProtocolError` as well."""
    with pytest.raises(ProtocolError):
        wire.decode(pack(kind, *items))


OPTIONAL = ["timeout", "memory", "retry", "history", "trace", "attempt", "hop", "params_ref", "result_ref"]
OPTIONAL += ["kind", "traceback", "stdout", "started", "finished", "files", "stream"]
HOSTILE = (
    JSON
    | st.lists(st.lists(JSON, min_size=3, max_size=5), max_size=2)
    | st.fixed_dictionaries({"blob": JSON, "size": JSON})
)


def well_typed(item: Any) -> bool:
    """Whether an item holds what its annotations say, as far as others rely on them without looking."""

    def text(value: Any) -> bool:
        return isinstance(value, str)

    def maybe(value: Any, check: Any) -> bool:
        return value is None or check(value)

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def history(value: Any) -> bool:
        return isinstance(value, tuple) and all(
            type(past.number) is int and text(past.error) and text(past.node) and number(past.finished_at)
            for past in value
        )

    match item:
        case TaskItem():
            return (
                all(map(text, (item.client, item.job, item.task_id, item.command, item.bundle, item.uid)))
                and isinstance(item.params, list | Reference)
                and number(item.submitted_at)
                and maybe(item.timeout, number)
                and maybe(item.memory_limit, lambda value: type(value) is int)
                and maybe(item.retry, lambda value: isinstance(value, dict))
                and maybe(item.trace, text)
                and type(item.attempt) is int
                and type(item.hop) is int
                and history(item.history)
            )
        case ResultItem():
            return (
                all(map(text, (item.client, item.job, item.task_id, item.command, item.stdout, item.stderr)))
                and all(maybe(value, text) for value in (item.host, item.kind, item.traceback, item.error))
                and number(item.submitted_at)
                and maybe(item.started_at, number)
                and maybe(item.finished_at, number)
                and type(item.attempt) is int
                and isinstance(item.files, tuple)
                and all(map(text, item.files))
                and history(item.history)
            )
        case EventItem():
            return (
                all(map(text, (item.uid, item.task_id, item.message)))
                and number(item.at)
                and item.kind in ("stdout", "stderr", "log", "progress", "warning", "info")
            )
    return False


@given(st.data())
def test_a_field_of_another_type_is_refused_or_harmless(data: st.DataObject) -> None:
    """One field of a good item replaced by anything: refused, or read as what the annotations promise."""
    kind = data.draw(st.sampled_from(list(PACKS)))
    items: dict[str, st.SearchStrategy[Item]] = {"tasks": TASKS, "results": RESULTS, "events": EVENTS}
    fields = fields_of(data.draw(items[kind]))
    name = data.draw(st.sampled_from([*fields, *OPTIONAL]))
    fields[name] = data.draw(HOSTILE)
    try:
        (item,) = wire.decode(pack(kind, fields))
    except ProtocolError:
        return
    assert well_typed(item), (name, fields[name], item)


@pytest.mark.parametrize("status", ["sending", "queued", "done", "", None, [], {}])
def test_a_result_without_an_outcome_is_refused(status: Any) -> None:
    """Only the three final states are outcomes."""
    with pytest.raises(ProtocolError):
        wire.decode(pack("results", fields_of(RESULT) | {"status": status}))


@pytest.mark.parametrize(
    "uid", ["", "abc", "abc:", "abc:-1", "abc:x", "abc:1.0", "abc:²", ":", "a:" + "9" * 5000]
)
def test_what_is_no_uid_is_refused(uid: str) -> None:
    """Digits that `int` does not take, or too many of them, included."""
    with pytest.raises(ProtocolError):
        wire.split_uid(uid)


@given(TEXT, st.integers(0, 2**62))
def test_a_uid_comes_apart_as_it_was_joined(incarnation: str, sequence: int) -> None:
    """Even when the incarnation holds a colon."""
    assert wire.split_uid(wire.make_uid(incarnation, sequence)) == (incarnation, sequence)


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, object(), 2**64, "\ud800", b"x"])
def test_what_json_cannot_hold_is_a_type_error(value: Any) -> None:
    """The caller's mistake is told at once, not on the node."""
    with pytest.raises(TypeError):
        wire.dumps(value)


def test_a_task_that_is_handed_back_keeps_all_but_hop_attempt_and_history() -> None:
    """The copy says that it is one, and what was tried before."""
    past = Attempt(1, "it broke", "host", 5.0)
    copy = wire.handed_back(TASK, attempt=2, history=(past,))
    assert (copy.hop, copy.attempt, copy.history) == (1, 2, (past,))
    assert wire.handed_back(copy).attempt == 2
    assert wire.handed_back(copy).hop == 2
    assert copy.uid == TASK.uid

"""The documents of the control plane: names that cannot escape, documents that cannot surprise."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.ports.broker import QueueRef
from batchflow.protocol import layout
from batchflow.protocol.documents import (
    AgentConfig,
    Cancellation,
    ContainerAccess,
    Document,
    Heartbeat,
    JobDocument,
    PoolManifest,
    Presence,
    QueueAccess,
    Running,
)

QUEUE = QueueRef("ns.example:5671", "bf-demo-tasks")
DOCUMENTS: list[Document] = [
    PoolManifest(
        "demo", "bf-demo-1", (QUEUE,), (QUEUE, QUEUE), "bf-agents-1", 1.5, True, 30.0, "f" * 64, 2,
    ),
    AgentConfig(
        "demo",
        (QueueAccess(QUEUE, "Endpoint=secret"),),
        (),
        ContainerAccess("https://x/ctl", "sig=secret"),
        ContainerAccess("https://x/out", "sig=secret"),
        30.0,
        ca_file="/ca.pem",
        idle_exit=None,
    ),
    Heartbeat(
        "abc", "node-1", "host-1", "boot", 42, "ready", 2, 1.0, 2.0, 5.0,
        (Running("inc:1", "1", "c", "j", "x.py", 1.5),), 7, {"python": "3.12"}, 0.5, 10, 20, -0.1,
        "disk full",
    ),
    Presence("host, process 1", "inc", 3.0, 5.0),
    JobDocument("default", 1.0, "closed"),
    Cancellation({"inc": ((1, 2), (5, 5))}),
]  # fmt: skip
IDS = [type(document).__name__ for document in DOCUMENTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_a_document_comes_back_as_it_was_written(document: Document) -> None:
    """Nested parts included; fields of newer writers are ignored."""
    assert type(document).decode(document.encode()) == document
    newer = orjson.loads(document.encode()) | {"a_new_field": [1]}
    assert type(document).decode(orjson.dumps(newer)) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
@pytest.mark.parametrize("version", [2, "1", None])
def test_a_document_of_another_version_is_refused(document: Document, version: Any) -> None:
    """A newer writer may have changed what it means."""
    data = orjson.dumps(orjson.loads(document.encode()) | {"v": version})
    with pytest.raises(ProtocolError):
        type(document).decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", [type(document) for document in DOCUMENTS], ids=IDS)
@given(st.binary(max_size=50) | JSON.map(orjson.dumps))
def test_noise_is_refused_and_nothing_else(kind: type[Document], data: bytes) -> None:
    """A document that is none is a `ProtocolError`, whatever it holds."""
    with pytest.raises(ProtocolError):
        kind.decode(data)


@given(st.sampled_from(DOCUMENTS), st.data())
def test_a_field_of_another_type_is_refused(document: Document, data: st.DataObject) -> None:
    """Agents and other clients write these: no reader stumbles later over what they hold."""
    table = orjson.loads(document.encode())
    name = data.draw(st.sampled_from([name for name in table if name != "v"]))
    table[name] = data.draw(JSON)
    try:
        read = type(document).decode(orjson.dumps(table))
    except ProtocolError:
        return
    hint = str(next(item.type for item in fields(document) if item.name == name))  # type: ignore[arg-type]
    value = getattr(read, name)
    assert type(value) is type(getattr(document, name)) or "None" in hint
    assert type(document).decode(read.encode()) == read


def test_a_manifest_without_queues_is_refused() -> None:
    """Nobody could tell which of them to use."""
    for name in ("task_queues", "results_queues"):
        with pytest.raises(ProtocolError):
            PoolManifest.decode(orjson.dumps(orjson.loads(DOCUMENTS[0].encode()) | {name: []}))


@pytest.mark.parametrize(
    "change",
    [{"slots": "2"}, {"slots": 1.5}, {"slots": True}, {"beat_at": None}, {"beat_at": "now"},
     {"interval": [5]}, {"state": "sleeping"}, {"host": 5}, {"running": [{"uid": 1}]},
     {"running": [["inc:1"]]}, {"running": 3}, {"versions": []},
     {"versions": {"python": 3}}, {"trouble": {"a": 1}}],
)  # fmt: skip
def test_a_heartbeat_that_says_something_else_is_refused(change: dict[str, Any]) -> None:
    """Code on a node can write what it likes there: no session computes with it."""
    table = orjson.loads(DOCUMENTS[2].encode()) | change
    with pytest.raises(ProtocolError):
        Heartbeat.decode(orjson.dumps(table))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"slots": "2"}, "slots: a string is not int"),
        ({"running": [{"uid": 1}]}, r"running\[0\]\.uid: a whole number is not str"),
        ({"versions": {"python": 3}}, r"versions\.python: a whole number is not str"),
    ],
)
def test_fault_of_a_document_names_the_field(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ProtocolError, match=f"a Heartbeat that cannot be read: {fault}"):
        Heartbeat.decode(orjson.dumps(orjson.loads(DOCUMENTS[2].encode()) | change))


def test_secrets_are_in_no_repr_and_no_error() -> None:
    """An agent's configuration can be logged by mistake, its keys cannot; nor when it is malformed."""
    assert "secret" not in repr(DOCUMENTS[1])
    table = orjson.loads(DOCUMENTS[1].encode())
    table["ctl"]["signature"] = ["sig=secret"]
    with pytest.raises(ProtocolError) as caught:
        AgentConfig.decode(orjson.dumps(table))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "client_1", "Job-2.b", "0", "x" * 60])
def test_a_plain_name_is_taken(name: str) -> None:
    """Letters, digits, dots, underscores, dashes."""
    assert layout.check_name("job", name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "_a", "a/b", "a b", "ä", "x" * 61, "a\n", "..", "a\0", "job/../x"]
)
def test_a_name_that_could_mean_something_else_is_refused(name: str) -> None:
    """It becomes part of a mailbox's id and of blob names."""
    with pytest.raises(ConfigurationError, match="client name"):
        layout.check_name("client name", name)


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a b", "x" * 65, "a\n", "ä"])
def test_a_pool_id_that_batch_would_refuse_is_refused(name: str) -> None:
    """Before anything is made."""
    with pytest.raises(ConfigurationError, match="pool id"):
        layout.check_pool_id(name)


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_the_names_of_a_pools_parts_fit_everywhere(pool_id: str) -> None:
    """Container names: 3 to 63 lower-case letters, digits and single dashes; Batch job ids up to 64."""
    prefix = layout.name_prefix(pool_id, "0123abcd")
    for name in (f"{prefix}-ctl", f"{prefix}-out", f"{prefix}-results"):
        assert 3 <= len(name) <= 63
        assert "--" not in name
        assert name.strip("-") == name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(f"{prefix}-agents-99999") <= 64


def test_pool_ids_are_not_told_apart_by_case() -> None:
    """As in Azure Batch."""
    assert layout.manifest_blob("Demo") == layout.manifest_blob("dEMO")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10)), max_size=6), st.integers(0, 70))
def test_a_cancellation_covers_its_intervals(rows: list[tuple[int, int]], number: int) -> None:
    """Both ends included, of that incarnation and no other."""
    intervals = tuple((first, first + length) for first, length in rows)
    document = Cancellation({"inc": intervals})
    assert document.covers("inc", number) is any(first <= number <= last for first, last in intervals)
    assert not document.covers("other", number)
    assert Cancellation(everything=True).covers("other", number)


def test_a_mailbox_is_served_by_the_same_queue_for_everybody() -> None:
    """And many mailboxes use all queues."""
    queues = tuple(QueueRef("ns", f"q{number}") for number in range(3))
    chosen = [layout.queue_for(queues, f"job/client_{number}") for number in range(60)]
    assert chosen == [layout.queue_for(queues, f"job/client_{number}") for number in range(60)]
    assert set(chosen) == set(queues)

"""The tables of Log Analytics: what is sent has the columns that the template declares."""

from __future__ import annotations

import json
import re
from pathlib import Path

from batchflow.model import Status
from batchflow.pools.monitoring.rows import NodeEvents, agent_log_row, client_log_row, task_row
from batchflow.pools.monitoring.tables import LOGS, NODES, TABLES, TASKS, template
from batchflow.protocol.documents import Heartbeat
from batchflow.protocol.wire import ResultItem

DOCS = Path(__file__).parents[4] / "docs" / "observability.md"


def beat(agent: str, *, state: str = "ready", trouble: str | None = None) -> Heartbeat:
    fields = {"agent": agent, "node": "n", "host": "h", "boot_id": "b", "pid": 1, "state": state, "slots": 2}
    times = {"started_at": 1.0, "beat_at": 2.0, "interval": 5.0}
    document = {"v": Heartbeat.VERSION, **fields, **times, "completed": 3, "failed": 1, "trouble": trouble}
    return Heartbeat.decode(json.dumps(document).encode())


def test_rows_have_the_columns_of_their_tables() -> None:
    item = ResultItem(
        1, "host", "job", "7", "no", "me", "x.py", "0a0a0a0a0a0a:1", Status.FAILED, 10.0, "TaskFailed"
    )
    item.started_at, item.finished_at = 12.0, 12.5
    row = task_row("demo", item, 13.0, "ab" * 16)
    assert (row["QueueSeconds"], row["RunSeconds"], row["Outcome"]) == (2.0, 0.5, "failed")
    assert row.keys() == TABLES[TASKS].keys()
    (node,) = NodeEvents().rows("demo", [beat("a")], 1.0)
    assert node.keys() == TABLES[NODES].keys()
    line = '{"at": "2026-11-30T12:00:00+00:00", "level": "INFO", "event": "drain", "grace": 3}'
    for log in (agent_log_row("demo", "n", line), client_log_row("INFO", "x", {}, 1.0)):
        assert log is not None
        assert log.keys() == TABLES[LOGS].keys()
    assert agent_log_row("demo", "n", "no JSON") is None


def test_a_log_line_of_a_traced_task_has_its_trace_in_a_column() -> None:
    """As the row of the task has, so that both are found by it."""
    told = {"at": "2026-11-30T12:00:00+00:00", "level": "INFO", "event": "hand_back"}
    fields = {"uid": "0a0a0a0a0a0a:1", "trace_id": "ab" * 16, "span_id": "cd" * 8}
    for log in (
        agent_log_row("demo", "n", json.dumps(told | fields)),
        client_log_row("INFO", "task_log", fields, 1.0),
    ):
        assert log is not None
        assert log["TraceId"] == "ab" * 16
        assert log["Fields"] == {"uid": "0a0a0a0a0a0a:1", "span_id": "cd" * 8}


def test_changes_of_nodes_are_rows_and_what_stays_is_none() -> None:
    events = NodeEvents()

    def seen(*beats: Heartbeat) -> list[str]:
        return [row["Event"] for row in events.rows("demo", beats, 1.0)]

    assert seen(beat("a"), beat("b")) == ["came", "came"]
    assert seen(beat("a"), beat("b")) == []
    assert seen(beat("a", state="draining"), beat("b", trouble="disk full")) == ["changed", "trouble"]
    assert seen(beat("b")) == ["recovered", "gone"]


def test_template_declares_each_stream_and_table_once() -> None:
    made = json.loads(json.dumps(template(30)))
    (rule,) = [each for each in made["resources"] if each["type"].endswith("dataCollectionRules")]
    assert made["outputs"]["streams"]["value"].split() == list(rule["properties"]["streamDeclarations"])
    names = [each["properties"]["schema"]["name"] for each in made["resources"] if "tables" in each["type"]]
    assert names == [f"{name}_CL" for name in TABLES]


def test_queries_of_the_page_name_columns_that_are_there() -> None:
    """Ten questions, each about one of the tables."""
    queries = re.findall(r"```kusto\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(queries) == 10
    columns = {column for table in TABLES.values() for column in table}
    for query in queries:
        assert re.match(r"Batchflow(Tasks|Nodes|Logs)_CL\n", query), query
        own = set(re.findall(r"\b([A-Z][a-z]\w*) *=[^=~]", query))
        text = re.sub(r'"[^"]*"', "", query)
        named = set(re.findall(r"(?<![\w.])([A-Z][a-z]\w*)\b", text)) - {"Batchflow"}
        named = {name for name in named if not name.endswith("_CL")}
        assert named <= columns | own, (query, named - columns - own)

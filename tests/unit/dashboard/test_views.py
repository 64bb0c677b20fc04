"""The plain values that the page shows."""

from __future__ import annotations

from dataclasses import replace

from batchflow.dashboard.timeline import Timeline
from batchflow.dashboard.views import MOST_RUNNING, node_rows, now_view
from batchflow.model import BROKEN
from batchflow.ports.compute import NodeInfo
from batchflow.protocol.documents import Heartbeat, Running

BEAT = Heartbeat("agent", "node-1", "host", "boot", 1, "ready", 200, 0.0, 0.0, 5.0)


def test_all_running_tasks_of_a_node_count_and_some_are_named() -> None:
    """A node with many slots runs more than its row names."""
    running = tuple(Running(str(each), str(each), "c", "j", "x.py", 0.0) for each in range(150))
    nodes = [NodeInfo("node-1", "running", True), NodeInfo("node-2", "starting", True)]
    rows = node_rows(nodes, [replace(BEAT, running=running)])
    assert (rows["node-1"]["busy"], len(rows["node-1"]["running"])) == (150, MOST_RUNNING)
    session = {"counts": {"running": 150, "queued": 10}}
    now = now_view(Timeline(), rows, [session], [], 1000.0)
    assert (now["running"], now["waiting"]) == (150, 10)


def test_a_node_is_broken_by_its_state_or_by_what_its_agent_says() -> None:
    """The page shows both alike, and counts them."""
    nodes = [NodeInfo(state, state, True) for state in (*BROKEN, "running")]
    rows = node_rows([*nodes, NodeInfo("node-1", "running", True)], [replace(BEAT, trouble="no disk")])
    assert {name for name, row in rows.items() if row["broken"]} == {*BROKEN, "node-1"}
    assert now_view(Timeline(), rows, [], [], 1000.0)["trouble"] == len(BROKEN) + 1

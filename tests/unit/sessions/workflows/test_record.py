"""What is remembered of a workflow, and its picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from batchflow.display.workflow import WorkflowGraph, WorkflowNode
from batchflow.model import Status
from batchflow.pool import Pool
from batchflow.sessions.workflows.record import MOST, WorkflowRecord
from tests.support.agent import Agent, failure_of
from tests.support.waiting import eventually
from tests.unit.sessions.workflows.test_graph import entry_of


async def test_a_session_draws_its_workflow(pool: Pool, agent: Agent, tmp_path: Path) -> None:
    """Tasks that wait, and what they wait for; each with its state. Others are left out."""
    async with pool.session() as session:
        await session.submit("x.py", task_id="alone")
        first = await session.submit("x.py", task_id="<first>")
        second = await session.submit("x.py", first, task_id="second")
        await session.submit("x.py", [first, second], task_id="third")
        _, item = await agent.take(2)
        graph = session.graph()
        assert graph.nodes == (
            WorkflowNode("<first>", "x.py", "queued", ()),
            WorkflowNode("second", "x.py", "waiting", (0,)),
            WorkflowNode("third", "x.py", "waiting", (0, 1)),
        )
        await agent.post([failure_of(item)])
        await eventually(lambda: session.counts.failed == 3)
        assert [node.status for node in session.graph().nodes] == ["failed"] * 3
        path = tmp_path / "graph.svg"
        session.graph().save(path)
        picture = ElementTree.fromstring(path.read_text("utf-8"))
        assert len(picture.findall("{*}g")) == 3
        assert len(picture.findall("{*}path")) == 3
        assert repr(graph) == "<WorkflowGraph of 3 tasks and 3 dependencies>"


def test_the_oldest_tasks_are_forgotten() -> None:
    """The picture says how many."""
    record = WorkflowRecord()
    first = entry_of(0)
    for number in range(1, MOST + 10):
        record.add(entry_of(number), [first])
    assert len(record.nodes()) == MOST
    assert record.forgotten >= 10
    assert "earlier tasks are not shown" in WorkflowGraph(record.nodes(), record.forgotten).svg
    assert "no task waits for another one" in WorkflowGraph([]).svg


def test_values_are_not_kept() -> None:
    """A task that has ended is remembered by its label."""
    record = WorkflowRecord()
    first, second = entry_of(0), entry_of(1)
    record.add(second, [first])
    first.status = Status.SUCCEEDED
    record.ended(first)
    first.status = Status.FAILED
    assert [node.status for node in record.nodes()] == ["succeeded", "sending"]

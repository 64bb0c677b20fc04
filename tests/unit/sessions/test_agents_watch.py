"""What a session makes of the agents' heartbeats."""

from __future__ import annotations

from batchflow.model import Counts, Status
from batchflow.protocol.documents import Running
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def test_a_running_task_has_its_node_and_since_when(session: Session, agent: Agent) -> None:
    """As the last heartbeat says; what is not in it any more is queued again, or has ended."""
    tasks = await session.submit_many("x.py", [1, 2])
    items = await agent.take(2)
    await eventually(lambda: session.counts.queued == 2)
    runs = [Running(item.uid, item.task_id, item.client, item.job, item.command, 50.0) for item in items]
    uids = ("other:0", "nonsense", ":")
    strangers = [Running(uid, "0", "client_1", "default", "x.py", 1.0) for uid in uids]
    await agent.beat(running=(*runs, *strangers))
    meet = parts_of(session).agents.meet
    await meet()
    assert session.counts == Counts(running=2)
    assert [task.status for task in tasks] == [Status.RUNNING] * 2
    assert (tasks[0].node, tasks[0].started_at) == ("host-1", 50.0)
    await agent.beat(running=runs[:1])
    await meet()
    assert session.counts == Counts(running=1, queued=1)
    assert (tasks[1].node, tasks[1].started_at) == (None, None)
    await agent.answer(*items, value=1)
    assert [await within(task) for task in tasks] == [1, 1]
    assert session.counts == Counts(succeeded=2)
    assert (tasks[0].node, tasks[0].started_at) == ("host-1", 100.0)
    await meet()
    assert session.counts == Counts(succeeded=2)

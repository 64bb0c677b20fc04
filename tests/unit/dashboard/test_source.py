"""What the page reads of a pool: only what has changed, and every record once."""

from __future__ import annotations

from batchflow.dashboard.dead_letters import replay
from batchflow.dashboard.source import PoolSource
from batchflow.pool import Pool
from batchflow.ports.broker import OutgoingMessage
from batchflow.protocol import activity, layout, wire
from batchflow.protocol.activity import ActivityBatch, SlotRun
from batchflow.protocol.documents import Presence
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.agent_world import task
from tests.support.services import Doubles


def line(number: int, at: float) -> bytes:
    run = SlotRun(f"u:{number}", str(number), "x.py", "job", "alice", at, at, at, "succeeded")
    return activity.encode(ActivityBatch("a1", "n", "h", number, at, 1, 0, 0, [run]))


async def test_each_line_of_the_record_is_read_once(doubles: Doubles, pool: Pool) -> None:
    """Also when a blob of the ring begins anew, and when a task has written what is no record."""
    source, out, now = PoolSource(pool), pool.runtime.out, doubles.clock()
    name = activity.segment_blob("a1", now)
    await out.append(name, line(0, now))
    await out.append(name, b"not a record\n" + line(1, now))
    assert [each.number for each in await source.activity()] == [0, 1]
    assert await source.activity() == []
    await out.append(name, line(2, now))
    assert [each.number for each in await source.activity()] == [2]
    await out.append(name, line(3, now), anew=True)
    assert [each.number for each in await source.activity()] == [3]


async def test_records_that_are_too_old_are_removed(doubles: Doubles, pool: Pool) -> None:
    """Those of agents that have left; the agents have no right to delete."""
    source, out = PoolSource(pool), pool.runtime.out
    await out.append(activity.segment_blob("gone", 0.0), line(0, 0.0))
    doubles.clock.ahead += activity.RETENTION + activity.SEGMENT + 1
    assert await source.activity() == []
    assert [info async for info in out.list(layout.ACTIVITY)] == []


async def test_a_heartbeat_that_has_not_changed_is_not_read_again(
    doubles: Doubles, pool: Pool, agent: Agent
) -> None:
    """A thousand agents write one every few seconds, and the page looks every second."""
    source = PoolSource(pool)
    assert [beat.node for beat in await source.beats()] == ["node-1"]
    before = doubles.storage.calls.count(("get", layout.heartbeat_blob(agent.name)))
    assert [beat.node for beat in await source.beats()] == ["node-1"]
    assert doubles.storage.calls.count(("get", layout.heartbeat_blob(agent.name))) == before


async def test_sessions_of_this_program_are_told_as_they_are_now(pool: Pool, session: Session) -> None:
    """Those of others as they told last."""
    await session.submit("x.py", args=[1])
    (told,) = await PoolSource(pool).sessions()
    assert (told["name"], told["here"], told["counts"]["succeeded"]) == ("client_1", True, 0)
    assert sum(told["counts"].values()) == 1


async def test_a_dead_letter_is_told_with_its_reason_and_runs_again(doubles: Doubles, pool: Pool) -> None:
    """It stays where it is until then."""
    (queue,) = pool.runtime.manifest.task_queues
    sender = await doubles.broker.sender(queue)
    body = wire.join("tasks", [wire.encode(task(1, task_id="lost"))])
    await sender.send(OutgoingMessage(body, "m1"))
    receiver = await doubles.broker.receiver(queue)
    delivery = await receiver.receive(1.0)
    assert delivery is not None
    await receiver.dead_letter(delivery, "MaxDeliveryCountExceeded", "")
    source = PoolSource(pool)
    (told,) = await source.dead_letters()
    assert [row[1] for row in told["tasks"]] == ["lost"]
    assert "no agent got to the end of it" in told["reason"]
    assert not await replay(pool.runtime, queue.entity, told["number"] + 1)
    assert await replay(pool.runtime, queue.entity, told["number"])
    assert await source.dead_letters() == []
    again = await receiver.receive(1.0)
    assert again is not None
    assert again.body == body
    await receiver.aclose()


async def test_a_session_of_another_program_is_read_once_until_it_tells_more(
    doubles: Doubles, pool: Pool
) -> None:
    """There may be hundreds, and the page looks every three seconds."""
    name = layout.session_blob("nightly", "bob")
    await pool.runtime.ctl.put(name, Presence("build-7", "n", doubles.clock(), 15.0, {"queued": 4}).encode())
    source = PoolSource(pool)
    for _ in range(2):
        (told,) = await source.sessions()
        assert (told["job"], told["name"], told["here"]) == ("nightly", "bob", False)
        assert (told["holder"], told["counts"]) == ("build-7", {"queued": 4})
    assert doubles.storage.calls.count(("get", name)) == 1

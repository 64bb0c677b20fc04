"""What a session has asked of the broker."""

from __future__ import annotations

from batchflow.pool import Pool
from batchflow.session import Session
from batchflow.sessions.records.stats import LinkCounter
from tests.support.agent import Agent, argument_of
from tests.support.waiting import eventually


async def test_a_session_counts_what_it_asks_of_the_broker(session: Session, agent: Agent) -> None:
    """Messages in both directions, with their sizes, settling, and the state of the mailbox."""
    assert session.stats.broker_operations_per_task == 0.0
    await session.submit_many("x.py", range(5))
    for item in await agent.take(5):
        await agent.answer(item, value=argument_of(item))
    assert [result.value async for result in session.results()] == [0, 1, 2, 3, 4]
    await eventually(lambda: session.stats.messages_settled == session.stats.messages_received)
    stats = session.stats
    assert (stats.tasks_submitted, stats.results_received) == (5, 5)
    assert 1 <= stats.messages_sent <= 5
    assert stats.messages_received == 5
    assert stats.state_operations >= 1
    assert stats.bytes_sent > 5 * 50
    assert stats.bytes_received > 5 * 50
    assert stats.credits == stats.messages_sent + stats.messages_received
    rest = stats.messages_settled + stats.renewals + stats.state_operations
    assert stats.broker_operations == stats.credits + rest
    assert stats.broker_operations_per_task == stats.broker_operations / 5


async def test_each_session_counts_for_itself(pool: Pool, agent: Agent) -> None:
    """What another one of the same client does is not among it."""
    async with pool.session("one") as one, pool.session("two") as two:
        await one.submit("x.py")
        await one.flush()
        assert one.stats.messages_sent == 1
        assert two.stats.messages_sent == 0


def test_a_counter_starts_with_nothing() -> None:
    """And tells of no task's share then."""
    stats = LinkCounter().stats(submitted=3, done=0)
    assert (stats.broker_operations, stats.broker_operations_per_task) == (0, 0.0)

"""The agent against queues and blobs in memory."""

from __future__ import annotations

from batchflow.model import Status
from tests.agent.support_agent import World, task


async def test_a_task_runs_and_its_result_comes_back() -> None:
    """One task in, one result out, and nothing is left in the queue."""
    world = await World.make()
    async with world.agent():
        await world.submit(task(0))
        (result,) = await world.results(1)
        await world.empty()
    assert (result.status, result.value, result.uid) == (Status.SUCCEEDED, "ok", "abc123:0")

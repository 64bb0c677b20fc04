"""The agent's record of what its slots did, as a client finds it after the agent has left."""

from __future__ import annotations

from batchflow.model import Status
from batchflow.protocol import activity, layout
from node_agent.execution.outcomes import Execution, Outcome
from tests.support.agent_world import World, task


async def test_an_agent_that_leaves_has_recorded_the_tasks_that_ended() -> None:
    """Who, what, when, how, and the first line of the error; no argument and no value."""

    def fail(execution: Execution) -> Outcome:
        text = "ValueError: no such table\n  in line 7"
        return Outcome(Status.FAILED, b'"secret"', text, "TaskFailed", started_at=2.0, finished_at=3.5)

    world = await World.make(fail=fail)
    async with world.agent():
        await world.submit(task(0), task(1, "fail", "a secret", task_id="seven"))
        await world.results(2)
    names = [info.name async for info in world.out.list(layout.ACTIVITY)]
    data = b"".join([(await world.out.get(name)).data for name in names])
    batches = list(activity.decode(data))
    assert (sum(each.ended for each in batches), sum(each.failed for each in batches)) == (2, 1)
    runs = {run.uid: run for batch in batches for run in batch.runs}
    failed = runs["abc123:1"]
    assert (failed.task_id, failed.command, failed.job, failed.client) == ("seven", "fail", "job", "client")
    assert (failed.status, failed.error) == ("failed", "ValueError: no such table")
    assert (failed.started_at, failed.finished_at) == (2.0, 3.5)
    assert runs["abc123:0"].status == "succeeded"
    assert b"secret" not in data

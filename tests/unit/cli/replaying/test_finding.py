"""Which task is run again: the latest of its id or label, whatever else is written there."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from batchflow.cli.replaying import finding
from batchflow.cli.replaying.finding import failed_tasks, find_task
from batchflow.pool import Pool
from batchflow.ports.broker import OutgoingMessage
from batchflow.protocol import wire
from batchflow.protocol.failed_tasks import FAILED, FailedTask
from tests.support.agent_world import task
from tests.support.services import Doubles


def failed(number: int, attempt: int, error: str, label: str = "one") -> FailedTask:
    item = replace(task(number, task_id=label), attempt=attempt)
    return FailedTask(item, "TaskFailed", error, "node", 5.0)


async def test_the_last_attempt_is_found_by_number_and_what_is_forged_is_passed_over(
    doubles: Doubles, pool: Pool
) -> None:
    """The tenth comes after the ninth. Code on a node may have written the eleventh."""
    out, ctl = pool.runtime.out, pool.runtime.ctl
    for container, attempt in ((ctl, 10), (out, 9), (out, 2)):
        kept = failed(1, attempt, f"attempt {attempt}")
        await container.put(kept.blob, kept.encode())
    uid = kept.task.uid
    await out.put(kept.blob.replace("-2.json", "-11.json"), b"not a task")
    await out.put(kept.blob.replace("-2.json", "-many.json"), b"not a task")
    before = [call for call in doubles.storage.calls if call == ("list", FAILED)]
    found = await find_task(pool, uid)
    assert found is not None
    assert found.error == "attempt 10"
    assert [call for call in doubles.storage.calls if call == ("list", FAILED)][len(before) :] == [
        ("list", FAILED),
        ("list", FAILED),
    ]
    assert await find_task(pool, "nobody") is None
    assert len(await failed_tasks(pool)) == 3


async def test_a_letter_that_expired_tells_its_age(
    doubles: Doubles, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays among the dead letters."""
    (queue,) = pool.runtime.manifest.task_queues
    sender = await doubles.broker.sender(queue)
    body = wire.join("tasks", [wire.encode(task(1, task_id="late"))])
    await sender.send(OutgoingMessage(body, "m1"))
    receiver = await doubles.broker.receiver(queue)
    delivery = await receiver.receive(1.0)
    assert delivery is not None
    await receiver.dead_letter(delivery, "TTLExpiredException", "")
    await receiver.aclose()
    monkeypatch.setattr(finding, "time", SimpleNamespace(time=lambda: time.time() + 500))
    for _ in range(2):
        found = await find_task(pool, "late")
        assert found is not None
        assert found.error is not None
        assert re.search(r"it expired in the queue, 5\d\d s old", found.error)

"""The record of an agent on its way to its blobs."""

from __future__ import annotations

from batchflow.errors import StorageError
from batchflow.model import Status
from batchflow.protocol import activity, layout
from batchflow.testing import MemoryContainer, MemoryStorage
from node_agent.control.activity import ActivityWriter
from tests.support.agent_world import task


class Out(MemoryContainer):
    """A container whose appends can fail."""

    error: Exception | None = None

    async def append(self, name: str, data: bytes, *, anew: bool = False) -> int:
        if self.error is not None:
            raise self.error
        return await super().append(name, data, anew=anew)


async def made() -> tuple[Out, ActivityWriter, list[float]]:
    storage, now = MemoryStorage(), [1000.0]
    await storage.create_container("out")
    out = Out(storage, "out")
    return out, ActivityWriter(out, "a1", 1.0, clock=lambda: now[0]), now


def end(writer: ActivityWriter, number: int) -> None:
    writer.record.ended(task(number), Status.SUCCEEDED, None, 1.0, 2.0)


async def read(out: Out) -> list[activity.ActivityBatch]:
    names = [info.name async for info in out.list(layout.ACTIVITY)]
    found = [batch for name in names for batch in activity.decode((await out.get(name)).data)]
    return sorted(found, key=lambda batch: batch.number)


async def test_nothing_is_written_when_no_task_has_ended() -> None:
    """An idle agent makes no request."""
    out, writer, _ = await made()
    await writer.write()
    assert [info async for info in out.list()] == []


async def test_the_record_of_an_old_segment_is_replaced() -> None:
    """The ring has as many blobs as it has segments, however long the agent lives."""
    out, writer, now = await made()
    for number in range(activity.SEGMENTS * 2 + 1):
        end(writer, number)
        await writer.write()
        end(writer, number)
        await writer.write()
        now[0] += activity.SEGMENT
    assert len([info async for info in out.list(layout.ACTIVITY)]) == activity.SEGMENTS
    assert len(await read(out)) == 2 * activity.SEGMENTS


async def test_what_cannot_be_written_is_counted_with_the_next() -> None:
    """Its runs are lost, and the count says so."""
    out, writer, _ = await made()
    end(writer, 1)
    out.error = StorageError("away", retryable=True)
    await writer.write()
    out.error = None
    end(writer, 2)
    await writer.write()
    (batch,) = await read(out)
    assert (batch.ended, len(batch.runs), batch.dropped, batch.number) == (2, 1, 1, 0)

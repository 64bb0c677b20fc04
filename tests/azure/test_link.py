"""Turns on a link: who receives, who settles, and in which order."""

from __future__ import annotations

import asyncio

from batchflow.azure.amqp_link import Link


class Recorder:
    """Stands for an SDK handler; every call on it is over when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._changed = asyncio.Condition()
        self._allowed = 0

    async def __aenter__(self) -> Recorder:
        return self

    async def close(self) -> None:
        pass

    async def work(self, name: str) -> str:
        async with self._changed:
            self.begun.append(name)
            self._changed.notify_all()
            turn = len(self.begun)
            await self._changed.wait_for(lambda: self._allowed >= turn)
        return name

    async def allow(self, turns: int) -> None:
        async with self._changed:
            self._allowed += turns
            self._changed.notify_all()

    async def until_begun(self, count: int) -> list[str]:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.begun) >= count)
        return self.begun


async def test_a_receive_comes_after_one_of_many_calls_not_after_all() -> None:
    """Else a result would wait for the settlements of all those before it."""
    recorder = Recorder()
    link = Link(lambda: recorder, "results", None)
    calls = [
        asyncio.create_task(link.call(lambda sdk, name=f"settle {n}": sdk.work(name), "cannot settle"))
        for n in range(4)
    ]
    assert await recorder.until_begun(1) == ["settle 0"]
    receive = await link.wait_for(lambda sdk, wanted: sdk.work(f"receive, {wanted}"), "cannot receive")
    await recorder.allow(1)
    await recorder.until_begun(2)
    await recorder.allow(10)
    assert await asyncio.gather(*calls) == [f"settle {n}" for n in range(4)]
    assert await receive.wait(10)
    assert recorder.begun[:3] == ["settle 0", "receive, True", "settle 1"]
    await link.aclose()


async def test_a_receive_that_nobody_disturbs_may_wait() -> None:
    """It is told that nobody else wants the link."""
    recorder = Recorder()
    link = Link(lambda: recorder, "results", None)
    await recorder.allow(1)
    receive = await link.wait_for(lambda sdk, wanted: sdk.work(f"wanted: {wanted}"), "cannot receive")
    assert await receive.wait(10)
    assert link.finish(receive) == "wanted: False"
    await link.aclose()

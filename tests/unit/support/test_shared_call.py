"""Callers of one key share one call while it is under way."""

from __future__ import annotations

import asyncio

import pytest

from batchflow.support.shared_call import SharedCalls


class Service:
    """Answers when it is told to, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked = list[str]()
        self.answering = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, key: str) -> str:
        self.asked.append(key)
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return f"{key} {len(self.asked)}"


async def _callers(shared: SharedCalls[str, str], *keys: str) -> list[asyncio.Task[str | None]]:
    calls = [asyncio.create_task(shared.get(key)) for key in keys]
    await asyncio.sleep(0)
    return calls


async def test_callers_of_a_key_share_a_call_until_it_is_over() -> None:
    service = Service()
    shared = SharedCalls(service.ask)
    calls = await _callers(shared, "a", "a", "b", "a")
    service.answering.set()
    assert await asyncio.gather(*calls) == ["a 2", "a 2", "b 2", "a 2"]
    assert await shared.get("a") == "a 3"


async def test_a_failure_is_raised_where_the_call_was_made() -> None:
    service = Service()
    service.error = OSError("away")
    shared = SharedCalls(service.ask)
    first, second = await _callers(shared, "a", "a")
    service.answering.set()
    with pytest.raises(OSError, match="away"):
        await first
    assert await second is None


async def test_a_cancelled_caller_leaves_the_others_without_an_answer() -> None:
    """So they ask by themselves; one that only waited changes nothing."""
    service = Service()
    shared = SharedCalls(service.ask)
    first, second, third = await _callers(shared, "a", "a", "a")
    second.cancel()
    await asyncio.wait({second})
    assert not first.done()
    first.cancel()
    assert await third is None
    service.answering.set()
    assert await shared.get("a") == "a 2"

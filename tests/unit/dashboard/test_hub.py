"""The watchers of a page: what one costs, and what a slow one costs the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from batchflow.dashboard import hub as module
from batchflow.dashboard.hub import Hub, event


async def next_of(stream: AsyncIterator[bytes]) -> bytes:
    return await asyncio.wait_for(anext(stream), 5)


async def test_fifty_watchers_get_the_same_bytes_once_encoded() -> None:
    """First everything, then what changes."""
    hub = Hub(lambda: [event({"all": True})])
    watchers = [hub.watch() for _ in range(50)]
    for watcher in watchers:
        assert (await next_of(watcher)).startswith(b"retry:")
        assert await next_of(watcher) == event({"all": True})
    waiting = [asyncio.ensure_future(next_of(watcher)) for watcher in watchers]
    await asyncio.sleep(0)
    data = event({"some": 1})
    hub.send(data)
    assert all(got is data for got in await asyncio.gather(*waiting))
    hub.close()
    for watcher in watchers:
        with pytest.raises(StopAsyncIteration):
            await next_of(watcher)
    assert len(hub) == 0


async def test_a_watcher_that_reads_nothing_holds_a_bounded_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It begins anew when it reads again."""
    monkeypatch.setattr(module, "_MOST_PENDING", 1000)
    state = {"number": 0}
    hub = Hub(lambda: [event(dict(state))])
    watcher = hub.watch()
    await next_of(watcher)
    assert await next_of(watcher) == event({"number": 0})
    for _ in range(100):
        hub.send(b"x" * 100)
    state["number"] = 7
    assert await next_of(watcher) == event({"number": 7})
    await watcher.aclose()  # type: ignore[attr-defined]
    assert len(hub) == 0


async def test_a_watcher_without_events_is_told_that_the_server_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that both ends find a dead connection."""
    monkeypatch.setattr(module, "KEEP_ALIVE", 0.01)
    watcher = Hub(list).watch()
    await next_of(watcher)
    assert await next_of(watcher) == b": here\n\n"
    await watcher.aclose()  # type: ignore[attr-defined]


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    """A line break in a task's label would end the event."""
    data = event({"label": "a\nb\r\n\ndata: c\u2028"})
    assert data.count(b"\n") == 2
    assert orjson.loads(data.removeprefix(b"data: "))["label"] == "a\nb\r\n\ndata: c\u2028"

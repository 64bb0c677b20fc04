"""Opening and closing, whoever does it, in whatever order."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest

from batchflow.errors import BatchflowError, ConfigurationError, SessionClosed
from batchflow.support.supervised import Supervised


class Thing(Supervised):
    """Notes what happens to it; waits where it is told to."""

    def __init__(self) -> None:
        super().__init__("thing")
        self.close_timeout = 5.0
        self.told: list[str] = []
        self.happened = defaultdict[str, asyncio.Event](asyncio.Event)
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.breaks = asyncio.Event()
        self.fails_to_open: Exception | None = None

    def tell(self, word: str) -> None:
        self.told.append(word)
        self.happened[word].set()

    async def _serve(self) -> None:
        self.tell("opening")
        try:
            await self.may_open.wait()
            if self.fails_to_open is not None:
                raise self.fails_to_open
            self.tell("open")
            self._ready()
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._break())
                await self._closing.wait()
                watch.cancel()
            await self.may_close.wait()
        finally:
            self.tell("closed")

    async def _break(self) -> None:
        await self.breaks.wait()
        raise ConfigurationError("it broke")


async def until(thing: Thing, word: str) -> None:
    async with asyncio.timeout(20):
        await thing.happened[word].wait()


async def test_opened_and_closed_by_async_with() -> None:
    """It is open inside, closed outside."""
    async with Thing() as thing:
        assert thing.told == ["opening", "open"]
        assert not thing.closed
    assert thing.told == ["opening", "open", "closed"]
    assert thing.closed


async def test_opened_by_await_and_closed_by_another_task() -> None:
    """As in two cells of a notebook."""
    thing = await asyncio.create_task(_open(Thing()))
    assert not thing.closed
    await asyncio.create_task(thing.aclose())
    assert thing.told[-1] == "closed"


async def _open(thing: Thing) -> Thing:
    return await thing


@pytest.fixture
async def opened() -> AsyncIterator[Thing]:
    async with Thing() as thing:
        yield thing


async def test_opened_and_closed_by_the_halves_of_a_fixture(opened: Thing) -> None:
    """Which run in tasks of their own."""
    assert opened.told == ["opening", "open"]


async def test_opening_is_idempotent() -> None:
    """Two who open it at once get the same open thing."""
    thing = Thing()
    thing.may_open.clear()
    openers = [asyncio.create_task(_open(thing)) for _ in range(3)]
    await until(thing, "opening")
    thing.may_open.set()
    assert await asyncio.gather(*openers) == [thing] * 3
    assert thing.told == ["opening", "open"]
    await thing.aclose()


async def test_closing_is_idempotent() -> None:
    """Twice, at once, and before it was ever opened."""
    thing = await Thing()
    await asyncio.gather(thing.aclose(), thing.aclose())
    await thing.aclose()
    assert thing.told.count("closed") == 1
    await Thing().aclose()


async def test_what_was_closed_does_not_open_again() -> None:
    """Nobody is handed a closed thing as an open one."""
    thing = await Thing()
    await thing.aclose()
    with pytest.raises(SessionClosed):
        await thing
    never = Thing()
    await never.aclose()
    with pytest.raises(SessionClosed):
        await never
    assert never.told == []


async def test_a_failed_opening_raises_its_error_and_leaves_nothing() -> None:
    """To each who waits for it, and to each who tries again; closing it afterwards is no error."""
    thing = Thing()
    thing.fails_to_open = ConfigurationError("no such thing")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no such thing"):
            await thing
    assert thing.told == ["opening", "closed"]
    await thing.aclose()


async def test_a_cancelled_opening_takes_back_what_it_began() -> None:
    """And is cancelled, not failed."""
    thing = Thing()
    thing.may_open.clear()
    opener = asyncio.create_task(_open(thing))
    await until(thing, "opening")
    opener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opener
    assert thing.told == ["opening", "closed"]


async def test_an_opening_that_runs_out_of_time_is_taken_back() -> None:
    """`asyncio.timeout` around it gives TimeoutError."""
    thing = Thing()
    thing.may_open.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await thing
    assert thing.told == ["opening", "closed"]


async def test_closed_by_another_while_it_opens() -> None:
    """The opener is told so; nobody cancelled it."""
    thing = Thing()
    thing.may_open.clear()
    opener = asyncio.create_task(_open(thing))
    await until(thing, "opening")
    await thing.aclose()
    with pytest.raises(SessionClosed, match="while it was opening"):
        await opener
    assert thing.told == ["opening", "closed"]


async def test_a_failure_while_open_closes_it_and_is_told_at_closing() -> None:
    """The error itself, not a group of it."""
    thing = await Thing()
    thing.breaks.set()
    await until(thing, "closed")
    assert thing.closed
    with pytest.raises(ConfigurationError, match="it broke"):
        await thing.aclose()


async def test_a_failure_while_open_is_raised_when_the_block_is_left() -> None:
    """Even if its body ended well."""

    async def open_and_break() -> None:
        async with Thing() as thing:
            thing.breaks.set()
            await until(thing, "closed")

    with pytest.raises(ConfigurationError, match="it broke"):
        await open_and_break()


async def test_a_failure_that_nobody_asks_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By us, not by the event loop when the garbage is collected."""
    thing = await Thing()
    thing.breaks.set()
    await until(thing, "closed")
    await asyncio.sleep(0)
    del thing
    gc.collect()
    assert [record.name for record in caplog.records] == ["batchflow.support.supervised"]


async def test_closing_is_bounded() -> None:
    """What does not end in time is cancelled, and that is said."""
    thing = await Thing()
    thing.close_timeout = 0.01
    thing.may_close.clear()
    with pytest.raises(BatchflowError, match="did not close"):
        await thing.aclose()
    assert thing.told[-1] == "closed"


async def test_a_closer_that_is_cancelled_does_not_stop_the_closing() -> None:
    """It goes on in the background, and whoever closes next waits for it."""
    thing = await Thing()
    thing.may_close.clear()
    closer = asyncio.create_task(thing.aclose())
    await asyncio.sleep(0)
    closer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closer
    assert thing.closed
    assert thing.told[-1] == "open"
    thing.may_close.set()
    await thing.aclose()
    assert thing.told[-1] == "closed"

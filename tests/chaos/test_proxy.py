"""The relay itself: whenever it ends, nothing of it is left open."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import warnings

import pytest

from tests.chaos.proxy import Relay


@pytest.mark.parametrize("turns", range(12))
def test_relay_closes_every_connection_when_it_ends(turns: int) -> None:
    """The connections are in every state."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(_end_after(turns))
        gc.collect()
    assert [str(each.message) for each in told] == []


async def test_a_stalled_connection_passes_nothing_on_until_it_goes_on() -> None:
    """Nothing that was sent meanwhile is lost."""
    accepted = list[asyncio.StreamWriter]()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        while data := await reader.read(100):
            writer.write(data)

    target = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay("127.0.0.1", target.sockets[0].getsockname()[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", await relay.start())
    writer.write(b"a")
    assert await reader.read(1) == b"a"
    assert relay.stall(5, random.Random(0), 0.2) == 1
    began = time.monotonic()
    writer.write(b"b")
    assert await reader.read(1) == b"b"
    assert time.monotonic() - began >= 0.15
    await relay.aclose()
    target.close()
    for each in (writer, *accepted):
        each.transport.abort()


async def _end_after(turns: int) -> None:
    greeted = list[asyncio.StreamWriter]()

    def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.append(writer)
        writer.write(b"hello")

    target = await asyncio.start_server(greet, "127.0.0.1", 0)
    relay = Relay("127.0.0.1", target.sockets[0].getsockname()[1])
    port = await relay.start()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(turns):
        await asyncio.sleep(0)
    await relay.aclose()
    target.close()
    for each in (writer, *greeted):
        each.transport.abort()

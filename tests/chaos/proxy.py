"""A relay before the Service Bus, so that connections can be cut, or stand still, as a network would."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends a reset."""
_TURNS_TO_ACCEPT = 4
"""Of the loop, until `_accept` knows of a socket that asyncio has taken: there is nothing to wait for."""


class Relay:
    """Passes on what comes, until a connection is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._served: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """Each connection, and the writer to the one who came, not to the service."""
        self._flows: dict[asyncio.Task[None], asyncio.Event] = {}
        """By connection: whether it passes anything on."""
        self._closed = False

    async def start(self) -> int:
        """The port to connect to."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        """Reset what is open. Nothing of it is left afterwards."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for _ in range(_TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        served = [*self._served]
        self.cut(len(served), random.Random(0))
        for each in served:
            each.cancel()
        await asyncio.gather(*served, return_exceptions=True)

    def cut(self, most: int, chance: random.Random) -> int:
        """Cut so many connections, by chance; how many were."""
        open_ones = [writer for writer in self._served.values() if not writer.is_closing()]
        chosen = chance.sample(sorted(open_ones, key=id), min(most, len(open_ones)))
        for writer in chosen:
            end: socket.socket = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        return len(chosen)

    def stall(self, most: int, chance: random.Random, seconds: float) -> int:
        """Let so many connections pass nothing on for a while, by chance; how many do so."""
        chosen = chance.sample(sorted(self._flows.values(), key=id), min(most, len(self._flows)))
        for flow in chosen:
            flow.clear()
            asyncio.get_running_loop().call_later(seconds, flow.set)
        return len(chosen)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Not a coroutine, so that no connection is ever without its place in the books."""
        if self._closed:
            writer.transport.abort()
            return
        flow = asyncio.Event()
        flow.set()
        task = asyncio.create_task(self._serve(reader, writer, flow))
        self._served[task], self._flows[task] = writer, flow
        task.add_done_callback(self._served.pop)
        task.add_done_callback(self._flows.pop)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            other_reader, other = await asyncio.open_connection(*self._target)
            with contextlib.closing(other):
                await asyncio.gather(_pass_on(reader, other, flow), _pass_on(other_reader, writer, flow))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event) -> None:
    """Until one of the two ends."""
    try:
        while data := await reader.read(_CHUNK):
            await flow.wait()
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    finally:
        writer.close()

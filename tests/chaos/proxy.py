"""A relay before the Service Bus, so that connections can be cut as a network would."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends a reset."""


class Relay:
    """Passes on what comes, until a connection is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        """Of those who came, not of the service."""

    async def start(self) -> int:
        """The port to connect to."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
            self.cut(len(self._writers), random.Random(0))

    def cut(self, most: int, chance: random.Random) -> int:
        """Cut so many connections, by chance; how many were."""
        chosen = chance.sample(sorted(self._writers, key=id), min(most, len(self._writers)))
        for writer in chosen:
            end: socket.socket = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                other_reader, other = await asyncio.open_connection(*self._target)
                await asyncio.wait(
                    [
                        asyncio.create_task(_pass_on(reader, other)),
                        asyncio.create_task(_pass_on(other_reader, writer)),
                    ]
                )
        finally:
            self._writers.discard(writer)
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one of the two ends."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    finally:
        writer.close()

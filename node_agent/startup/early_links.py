"""Opens the agent's links while the rest of the agent is still being imported.

Opening a link is mostly waiting for some ten answers of the broker, and the first task needs two links. The
Blob SDK takes longer to import than a link to Service Bus takes to open. Neither needs the other. So the
agent opens its links first, and the first request to the container waits for the import.

Gain: 70 ms until the links are open and the agent is imported, the median of 28 pairs of starts on two busy
cores. An idle core gains more, because the opening mostly waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from os import PathLike

    from batchflow.ports.broker import Broker, Mailbox, QueueRef, Receiver, Sender
    from batchflow.ports.storage import Blob, BlobInfo, Container


class EarlyContainer(Closes):
    """A container that can be used before its SDK is imported.

    When `load` has ended, `make` is called in the event loop and returns the real container. Each request
    waits for that, and raises what `load` or `make` raised. A request that a task may wait for calls `hurry`.
    A `put` that overwrites does not: the agent puts heartbeats so, for which no task waits.
    """

    def __init__(
        self,
        url: str,
        load: asyncio.Future[None],
        make: Callable[[], Container],
        hurry: Callable[[], None],
    ) -> None:
        self.url = url
        self.name = url.rpartition("/")[2]
        self._load = load
        self._hurry = hurry
        self._make = make
        self._container: Container | None = None

    async def _made(self, *, hurry: bool = True) -> Container:
        if self._container is None:
            if hurry:
                self._hurry()
            await asyncio.shield(self._load)
        if self._container is None:
            self._container = self._make()
        return self._container

    async def get(self, name: str) -> Blob:
        return await (await self._made()).get(name)

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        return await (await self._made()).get_if_changed(name, etag)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        container = await self._made(hurry=create or if_match is not None)
        return await container.put(name, data, if_match=if_match, create=create)

    async def get_from(self, name: str, start: int) -> bytes:
        return await (await self._made()).get_from(name, start)

    async def append(self, name: str, data: bytes, *, anew: bool = False) -> int:
        return await (await self._made()).append(name, data, anew=anew)

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        await (await self._made()).upload(name, path, create=create)

    async def download(self, name: str, path: str | PathLike[str], *, signature: str | None = None) -> None:
        await (await self._made()).download(name, path, signature=signature)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        return await (await self._made()).delete(name, if_match=if_match)

    async def get_signed(self, name: str, signature: str) -> bytes:
        return await (await self._made()).get_signed(name, signature)

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        async for info in (await self._made()).list(prefix):
            yield info

    async def aclose(self) -> None:
        if self._container is not None:
            await self._container.aclose()


class EarlyLinks(Closes):
    """A broker that opens links in advance: receivers of the queues `receive`, senders to those of `send`.

    The first request for a link gets the one opened in advance, or its error. The next request opens a new
    link. To be created in the event loop.
    """

    def __init__(self, broker: Broker, *, receive: Iterable[QueueRef], send: Iterable[QueueRef]) -> None:
        self._broker = broker
        self._receivers = {
            queue: asyncio.ensure_future(broker.receiver(queue)) for queue in dict.fromkeys(receive)
        }
        self._senders = {queue: asyncio.ensure_future(broker.sender(queue)) for queue in dict.fromkeys(send)}

    async def sender(self, queue: QueueRef) -> Sender:
        opening = self._senders.pop(queue, None)
        return await (opening or self._broker.sender(queue))

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> Receiver:
        opening = None if prefetch or dead_letters else self._receivers.pop(queue, None)
        return await (opening or self._broker.receiver(queue, prefetch=prefetch, dead_letters=dead_letters))

    async def mailbox(self, queue: QueueRef, session_id: str, *, prefetch: int = 50) -> Mailbox:
        return await self._broker.mailbox(queue, session_id, prefetch=prefetch)

    async def aclose(self) -> None:
        await _drop([*self._receivers.values(), *self._senders.values()])
        await self._broker.aclose()


async def _drop(openings: list[asyncio.Future[Sender] | asyncio.Future[Receiver]]) -> None:
    """Cancel openings that were not used. Links that are open already are closed with the broker."""
    for opening in openings:
        opening.cancel()
    await asyncio.gather(*openings, return_exceptions=True)

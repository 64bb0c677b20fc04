"""A container whose SDK is still being imported while it is already in use.

The Blob SDK takes longer to import than a link to Service Bus to open, and neither needs the other: whoever
needs both imports this module, opens its links, and lets the first request to the container wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchflow.azure.closing import Closes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from os import PathLike

    from batchflow.storage import Blob, BlobInfo, Container


class LateContainer(Closes):
    """Stands for the container that `make` returns, which is called in the event loop after `load` has ended.

    Each request waits for that, and raises what `load` or `make` raised.
    """

    def __init__(self, url: str, load: asyncio.Future[None], make: Callable[[], Container]) -> None:
        self.url = url
        self.name = url.rpartition("/")[2]
        self._load = load
        self._make = make
        self._container: Container | None = None

    async def _made(self) -> Container:
        if self._container is None:
            await asyncio.shield(self._load)
        if self._container is None:
            self._container = self._make()
        return self._container

    async def get(self, name: str) -> Blob:
        return await (await self._made()).get(name)

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        return await (await self._made()).get_if_changed(name, etag)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        return await (await self._made()).put(name, data, if_match=if_match, create=create)

    async def append(self, name: str, data: bytes) -> None:
        await (await self._made()).append(name, data)

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        await (await self._made()).upload(name, path, create=create)

    async def download(self, name: str, path: str | PathLike[str]) -> None:
        await (await self._made()).download(name, path)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        return await (await self._made()).delete(name, if_match=if_match)

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        async for info in (await self._made()).list(prefix):
            yield info

    async def aclose(self) -> None:
        if self._container is not None:
            await self._container.aclose()

"""The pools of a client that is opened when a page asks for them: most local clouds are never looked at."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from batchflow.dashboard.app import ClientPools
from batchflow.dashboard.handlers import PagePools

if TYPE_CHECKING:
    from batchflow.dashboard.source import Source
    from batchflow.settings import Settings


class LatePools(PagePools):
    """Opens its client at the first question. To be opened by `async with`, which closes the client."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._pools: ClientPools | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> LatePools:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def names(self) -> list[str]:
        """Return the ids of the pools."""
        return await (await self._opened()).names()

    async def source(self, pool_id: str) -> Source:
        """Return a pool's source. Raises `PoolNotFound`."""
        return await (await self._opened()).source(pool_id)

    async def _opened(self) -> ClientPools:
        async with self._opening:
            if self._pools is None:
                from batchflow.client import Client

                client = await self._stack.enter_async_context(Client(self._settings))
                self._pools = ClientPools(client, None)
            return self._pools

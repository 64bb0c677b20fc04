"""The page of a client's pools: in a web application of your own, or on a server of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from batchflow.dashboard.handlers import PageHandlers, PagePools
from batchflow.dashboard.source import PoolSource
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from batchflow.dashboard.asgi import AsgiPage
    from batchflow.dashboard.source import Source
    from batchflow.pool import Pool


class DashboardClient(Protocol):
    """The client, as the page sees it."""

    @property
    def connections(self) -> object:
        """Raises `SessionClosed` when the client is not open."""

    async def pool(self, pool_id: str) -> Pool: ...

    def pools(self) -> AsyncIterator[Pool]: ...


class ClientPools(PagePools):
    """The pools of a client."""

    def __init__(self, client: DashboardClient, only: str | None) -> None:
        """`only`: the one pool that is shown; None: all."""
        self._client = client
        self._only = only

    async def names(self) -> list[str]:
        """Return the ids of the pools."""
        if self._only is not None:
            return [self._only]
        return sorted([pool.id async for pool in self._client.pools()])

    async def source(self, pool_id: str) -> Source:
        """Return a pool's source. Raises `PoolNotFound`."""
        return PoolSource(await self._client.pool(pool_id))


class Dashboard(Closes):
    """The live page, to be mounted into a web application.

    FastAPI and Starlette: ``app.mount("/pools", Dashboard(client).asgi())``; aiohttp:
    ``app.add_subapp("/pools", Dashboard(client).aiohttp())``. The application decides who may see it.
    """

    def __init__(
        self,
        client: DashboardClient,
        *,
        pool: str | None = None,
        control: bool = False,
        token: str | None = None,
    ) -> None:
        """`pool`: the only pool that is shown. `control`: whether the page may act.

        `token`: the first step of every path below the page's, where the application has no login of its own.
        """
        self.handlers: PageHandlers = PageHandlers(
            ClientPools(client, pool), token=token, control=control, only=pool
        )

    def aiohttp(self) -> web.Application:
        """Return it for `add_subapp` of an aiohttp application."""
        from batchflow.dashboard.aiohttp_page import application

        return application(self.handlers)

    def asgi(self) -> AsgiPage:
        """Return it for `mount` of FastAPI or Starlette."""
        from batchflow.dashboard.asgi import AsgiPage

        return AsgiPage(self.handlers)

    async def aclose(self) -> None:
        """End all streams. The client closes on its own."""
        await self.handlers.aclose()

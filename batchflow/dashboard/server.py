"""A server of its own for the page: on loopback, behind a token in the address."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import secrets
from typing import TYPE_CHECKING, Final, TypedDict

from aiohttp import web

from batchflow.dashboard.aiohttp_page import application
from batchflow.dashboard.app import ClientPools
from batchflow.dashboard.handlers import PageHandlers
from batchflow.errors import ConfigurationError
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.dashboard.app import DashboardClient
    from batchflow.dashboard.handlers import PagePools

TOKEN_VARIABLE: Final = "BATCHFLOW_DASHBOARD_TOKEN"
LOOPBACK: Final = "127.0.0.1"
_SHUTDOWN: Final = 1.0
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")


class DashboardAddress(str):
    """The address of the page. It holds the token, so whoever has it may look. A notebook shows the page."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from batchflow.display.html import element

        style = "width:100%;height:640px;border:1px solid rgba(128,128,128,.35);border-radius:8px"
        link = element("a", str(self), href=str(self), target="_blank", rel="noreferrer")
        return element("div", element("iframe", src=str(self), style=style, title="batchflow"), link)


def parse_listen(text: str) -> tuple[str, int]:
    """Read "HOST" or "HOST:PORT", an IPv6 host in brackets. Raises `ConfigurationError`."""
    host, _, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "0")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"--listen {text!r}: HOST or HOST:PORT is needed, such as 0.0.0.0:8787")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class DashboardServer(Closes):
    """Serves the page until it is closed."""

    def __init__(self, handlers: PageHandlers, token: str) -> None:
        self._handlers = handlers
        self._token = token
        self._runner = web.AppRunner(application(handlers), access_log=None, shutdown_timeout=_SHUTDOWN)

    async def start(self, host: str = LOOPBACK, port: int = 0) -> DashboardAddress:
        """Listen, and return the page's address. `port`: 0 for any. Raises `ConfigurationError`."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigurationError(
                f"the dashboard cannot listen on {host}:{port}: {error.strerror}"
            ) from error
        bound = self._runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        return DashboardAddress(f"http://{shown}:{bound}/{self._token}/")

    async def aclose(self) -> None:
        """Stop listening, and end all streams. Idempotent."""
        await self._handlers.aclose()
        await self._runner.cleanup()


def token_of(environment: Mapping[str, str]) -> str:
    """Return the token that the environment names, or a new one. Raises `ConfigurationError` for a short one.

    A token of one's own stays the same when the server starts anew, and can stand in Prometheus's settings.
    """
    given = environment.get(TOKEN_VARIABLE)
    if given is None:
        return secrets.token_urlsafe(18)
    if not _TOKEN.fullmatch(given):
        raise ConfigurationError(
            f"{TOKEN_VARIABLE}: 16 to 128 letters, digits, '-' or '_' are needed, for it stands in an address"
        )
    return given


async def serve(
    pools: PagePools,
    *,
    only: str | None = None,
    host: str = LOOPBACK,
    port: int = 0,
    control: bool = False,
    token: str | None = None,
) -> tuple[DashboardServer, DashboardAddress]:
    """Start a server. Returns it, to be closed, and the page's address. `only`: the only pool that is shown.

    Raises `ConfigurationError`.
    """
    secret = token_of(os.environ) if token is None else token
    handlers = PageHandlers(pools, token=secret, control=control, only=only)
    server = DashboardServer(handlers, secret)
    return server, await server.start(host, port)


class PageOptions(TypedDict, total=False):
    """The options of `client.dashboard`."""

    pool: str | None
    """The only pool that is shown; None: all."""
    host: str
    """What to listen on. With another than the default, anyone on the network who has the address can look,
    unencrypted."""
    port: int
    """0: any that is free."""
    control: bool
    """Whether the page may cancel, retry, resize and drain."""
    token: str | None
    """What stands in the address; None: `BATCHFLOW_DASHBOARD_TOKEN`, or a new one."""


class ClientPages(Closes):
    """The pages that a client serves. The same options give the same page."""

    def __init__(self, client: DashboardClient) -> None:
        self._client = client
        self._servers: dict[object, tuple[DashboardServer, DashboardAddress]] = {}
        self._opening = asyncio.Lock()

    async def open(self, options: PageOptions) -> DashboardAddress:
        """Serve a page, and return its address. Raises `ConfigurationError`, `SessionClosed`."""
        key = tuple(sorted(options.items()))
        async with self._opening:
            self._client.connections  # noqa: B018  raises when the client is not open
            if key not in self._servers:
                pool = options.get("pool")
                self._servers[key] = await serve(
                    ClientPools(self._client, pool),
                    only=pool,
                    host=options.get("host", LOOPBACK),
                    port=options.get("port", 0),
                    control=options.get("control", False),
                    token=options.get("token"),
                )
            return self._servers[key][1]

    async def aclose(self) -> None:
        """End all pages."""
        async with self._opening:
            for server, _ in self._servers.values():
                await server.aclose()

"""HTTPS that trusts the certificates of a file besides the system's: a proxy's, or the local cloud's own."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.core.pipeline.transport import AioHttpTransport


def trusting(ca_file: str) -> ssl.SSLContext:
    """TLS with those certificates."""
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def transport(ca_file: str | None, *, connect: float, read: float = 300.0) -> AioHttpTransport | None:
    """As the SDKs make it, but for the certificates; told their file, it would read it at each request.

    `connect`, `read`: seconds. None without a file: the SDK makes its own.
    """
    if ca_file is None:
        return None
    import aiohttp
    from azure.core.pipeline.transport import AioHttpTransport

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusting(ca_file)),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=True,
    )
    return AioHttpTransport(session=session, connection_timeout=connect, read_timeout=read)

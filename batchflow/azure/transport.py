"""HTTP as all adaptors have it. Over TLS it may trust the certificates of a file besides the system's: a
proxy's, or the local cloud's own."""

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


def transport(ca_file: str | None, *, connect: float, read: float = 300.0) -> AioHttpTransport:
    """As the SDKs make it, but for its certificates and its patience with a service that never answers.

    `connect`, `read`: seconds. The SDKs, told the file of certificates, would read it at each request.
    """
    from batchflow.azure.firstanswer import FirstAnswerTransport

    limits = {"connection_timeout": connect, "read_timeout": read}
    if ca_file is None:
        return FirstAnswerTransport(**limits)
    import aiohttp

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusting(ca_file)),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=True,
    )
    return FirstAnswerTransport(session=session, **limits)

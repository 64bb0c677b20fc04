"""HTTP as all adaptors have it. Over TLS it may trust the certificates of a file besides the system's: a
proxy's, or the local cloud's own.

Proxies are used as ever. But aiohttp, told to look for them, does so for each request, in two jobs for other
threads: one for a proxy, one for a password in `~/.netrc`, which no request to Azure can use, for it is
signed. So it is told only where there is a proxy.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.core.pipeline.transport import AioHttpTransport


def trusting(ca_file: str) -> ssl.SSLContext:
    """TLS with those certificates. Reads the system's for 20 ms, in which it leaves other threads alone."""
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def transport(trust: str | ssl.SSLContext | None, *, connect: float, read: float = 300.0) -> AioHttpTransport:
    """As the SDKs make it, but for its certificates and its patience with a service that never answers.

    `trust`: the file of certificates, or TLS with them. `connect`, `read`: seconds. The SDKs, told the file,
    would read it at each request.
    """
    from batchflow.azure.first_answer import FirstAnswerTransport

    limits = {"connection_timeout": connect, "read_timeout": read}
    if trust is None:
        return FirstAnswerTransport(use_env_settings=_is_there_a_proxy(), **limits)
    import aiohttp

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusting(trust) if isinstance(trust, str) else trust),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=_is_there_a_proxy(),
    )
    return FirstAnswerTransport(session=session, **limits)


def _is_there_a_proxy() -> bool:
    """For whatever kind of address: in the environment, or, where aiohttp asks for these too, in the system's
    settings."""
    from urllib.request import getproxies

    return bool(getproxies())

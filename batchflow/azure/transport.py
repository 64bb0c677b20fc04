"""The HTTP transport of all adaptors.

Over TLS it may trust the certificates of a file besides the system's: a proxy's, or the local cloud's own.

Proxies are used as ever, but not for an address of this machine: a proxy elsewhere does not reach the local
cloud. aiohttp with `trust_env` looks for proxies at each request, in two jobs for other threads: one for a
proxy, one for a password in `~/.netrc`. No request to Azure can use that password, because it is signed. So
`trust_env` is set only if there is a proxy.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from azure.core.pipeline.transport import AioHttpTransport


def trusting(ca_file: str) -> ssl.SSLContext:
    """Return a TLS context with those certificates. It reads the system's for 20 ms, without the GIL."""
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def transport(
    address: str, trust: str | ssl.SSLContext | None, *, connect: float, read: float = 300.0
) -> AioHttpTransport:
    """Make the SDKs' transport with our certificates and a short limit for a service that never answers.

    `address`: the service's URL or host, empty for one of Azure's own. `trust`: the file of certificates, or
    a TLS context with them. `connect`, `read`: seconds. The SDKs would read the file at each request.
    """
    from batchflow.azure.first_answer import FirstAnswerTransport

    limits = {"connection_timeout": connect, "read_timeout": read}
    if trust is None:
        return FirstAnswerTransport(use_env_settings=_is_there_a_proxy(address), **limits)
    import aiohttp

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusting(trust) if isinstance(trust, str) else trust),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=_is_there_a_proxy(address),
    )
    return FirstAnswerTransport(session=session, **limits)


def proxies() -> dict[str, str]:
    """Return the proxies by the kind of address that they are for.

    They are configured in the environment or, where aiohttp reads them too, in the system's settings.
    """
    from urllib.request import getproxies

    found = getproxies()
    found.pop("no", None)  # NO_PROXY, which names hosts and no proxy
    return found


def _is_there_a_proxy(address: str) -> bool:
    return not _is_loopback(address) and bool(proxies())


def _is_loopback(address: str) -> bool:
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

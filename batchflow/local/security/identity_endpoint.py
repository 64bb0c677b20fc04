"""Where programs and nodes of the local cloud get their tokens: azure-identity's own credentials ask here.

The protocol is that of the managed identities of Azure App Service, which `ManagedIdentityCredential` speaks
when `IDENTITY_ENDPOINT` and `IDENTITY_HEADER` are in the environment: the header is a secret, so that on a
machine of many users only those get a token who have it. (On Azure, nodes ask the instance metadata service.)
"""

from __future__ import annotations

import secrets
import time
import uuid
from typing import TYPE_CHECKING, Final

from aiohttp import web

from batchflow.local.http.http_server import HttpServer, is_text
from batchflow.local.security.entra import AUDIENCES, Directory, Principal
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from batchflow.local.security.entra import Assignment

_PATH: Final = "/msi/token"


@frozen
class Entra:
    """Entra ID as the services of a cloud use it."""

    directory: Directory
    endpoint: IdentityEndpoint
    served: ssl.SSLContext
    """The services' side of TLS: tokens travel over nothing else."""
    trusted: ssl.SSLContext
    """The other side, for what the cloud itself downloads."""
    identities: Mapping[str, Principal]
    """The managed identities of nodes, by the id of their pool in lower case."""

    def of_pool(self, pool_id: str) -> Principal | None:
        """Return the managed identity of a pool's nodes."""
        return self.identities.get(pool_id.lower())

    def environment(self, pool_id: str) -> dict[str, str]:
        """Return the environment by which a pool's nodes find their identity."""
        identity = self.of_pool(pool_id)
        return {} if identity is None else self.endpoint.environment(identity)

    def authorization(self, pool_id: str, resource_id: str, audience: str) -> str | None:
        """Return the header that opens to a pool's nodes what an identity may; None when it is not theirs."""
        identity = self.of_pool(pool_id)
        if identity is None or identity.resource_id.lower() != resource_id.lower():
            return None
        return f"Bearer {self.directory.issue(identity, audience, time.time())}"


def principal(name: str, assignments: Sequence[Assignment]) -> Principal:
    """Create a principal with new ids and a new secret."""
    return Principal(
        name, str(uuid.uuid4()), str(uuid.uuid4()), tuple(assignments), secrets.token_urlsafe(32)
    )


class IdentityEndpoint:
    """Gives tokens to callers that know a principal's secret, over plain HTTP on loopback."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._server: HttpServer | None = None
        self._runner: web.ServerRunner | None = None
        self._url = ""

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 is any free one."""
        self._server = HttpServer(self._handle, access_log=None)
        runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, host, port).start()
        self._url = f"http://{host}:{runner.addresses[0][1]}{_PATH}"

    async def aclose(self) -> None:
        """Close the endpoint. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def environment(self, of: Principal) -> dict[str, str]:
        """Return the environment of a process that is this principal."""
        return {"IDENTITY_ENDPOINT": self._url, "IDENTITY_HEADER": of.secret}

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if not is_text(request):
            return _refused(400, "the request must be UTF-8")
        asked, query = request.headers.get("X-IDENTITY-HEADER", ""), request.rel_url.query
        found = self._directory.by_secret(asked)
        audience = query.get("resource", "").removesuffix("/.default")
        if request.path != _PATH or found is None:
            return _refused(401, "no principal here has this X-IDENTITY-HEADER")
        if self._server is not None:
            self._server.known(request)
        if query.get("client_id", found.client_id) != found.client_id:
            return _refused(400, "no managed identity of that client id is assigned here")
        if audience.rstrip("/") not in AUDIENCES:
            return _refused(400, f"the resource must be one of {', '.join(AUDIENCES)}")
        now = time.time()
        token = self._directory.issue(found, audience, now)
        expires = int(self._directory.check(token, audience.rstrip("/"), now).expires_at)
        body = {
            "access_token": token,
            "expires_on": str(expires),
            "resource": audience,
            "token_type": "Bearer",
            "client_id": found.client_id,
        }
        return web.json_response(body)


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"statusCode": status, "message": message}, status=status)

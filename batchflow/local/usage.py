"""What a running local cloud has counted, in place of what Azure Monitor and the bill tell of a real one.

    before = await operations(client.settings)
    ...
    print((await operations(client.settings) - before).billed)

Azure has no such request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp

from batchflow.errors import BrokerError, ConfigurationError
from batchflow.local.servicebus.admin import OPERATIONS_PATH
from batchflow.local.servicebus.core.operations import Operations

if TYPE_CHECKING:
    from batchflow.settings import Settings

_TOKEN_SECONDS = 300


async def operations(settings: Settings) -> Operations:
    """Return all operations on all queues that exist, since each was made; read it twice and subtract.

    Raises `ConfigurationError` for settings that are not a local cloud's, `BrokerError` when it refuses.
    """
    bus = settings.servicebus
    if settings.target != "local" or not (bus.connection_string and bus.ca_file):
        raise ConfigurationError("operations are counted by the local cloud only: its client must be open")
    found = Operations()
    context = ssl.create_default_context(cafile=bus.ca_file)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http:
        for connection_string in bus.connection_string.split():
            found += await _of_namespace(http, connection_string)
    return found


async def _of_namespace(http: aiohttp.ClientSession, connection_string: str) -> Operations:
    fields = dict(field.partition("=")[::2] for field in connection_string.split(";"))
    url = fields["Endpoint"].strip("/").replace("sb://", "https://", 1)
    token = _token(url, fields["SharedAccessKeyName"], fields["SharedAccessKey"])
    async with http.get(f"{url}/{OPERATIONS_PATH}", headers={"Authorization": token}) as response:
        if response.status != 200:
            raise BrokerError(f"{url} does not tell its operations: {await response.text()}")
        return Operations(**await response.json())


def _token(url: str, rule: str, key: str) -> str:
    """Return a shared access signature of the namespace."""
    resource, expiry = quote(url, safe=""), int(time.time()) + _TOKEN_SECONDS
    digest = hmac.digest(key.encode(), f"{resource}\n{expiry}".encode(), hashlib.sha256)
    signature = quote(base64.b64encode(digest), safe="")
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={rule}"

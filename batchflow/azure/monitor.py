"""The port to logs on Azure Monitor's Logs Ingestion API, by Azure's own client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from batchflow.azure.errors import what_of
from batchflow.azure.identity import check_https
from batchflow.azure.transport import transport
from batchflow.errors import ConfigurationError
from batchflow.ports.ingestion import UploadAnswer
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from batchflow.azure.identity import Credential

_CONNECT: Final = 10.0
_READ: Final = 30.0
"""Seconds."""
_TOO_LARGE: Final = 413
_THROTTLED: Final = 429
_REFUSALS: Final = range(400, 500)
_TRANSIENT: Final = (408, _THROTTLED)


class MonitorIngestion(Closes):
    """One data collection rule, reached with a token of Entra ID."""

    def __init__(self, endpoint: str, rule: str, credential: Credential, ca_file: str | None = None) -> None:
        """Make no request. Raises `ConfigurationError` where the extra `monitor` is not installed."""
        check_https(endpoint, "monitor.endpoint")
        try:
            from azure.monitor.ingestion.aio import LogsIngestionClient
        except ImportError as error:
            what = "monitor.endpoint needs azure-monitor-ingestion: pip install 'batchflow-azure[monitor]'"
            raise ConfigurationError(what) from error
        self._rule = rule
        self._client = LogsIngestionClient(
            endpoint,
            credential,
            transport=transport(endpoint, ca_file, connect=_CONNECT, read=_READ),
            retry_total=0,
        )

    async def upload(self, stream: str, rows: Sequence[dict[str, Any]]) -> UploadAnswer:
        """Send rows in one request: see `LogIngestion`."""
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        try:
            await self._client.upload(self._rule, stream, list(rows))
        except ClientAuthenticationError as error:
            return UploadAnswer("refused", what_of(error))
        except HttpResponseError as error:
            return _answer(error.status_code or 0, error)
        except AzureError as error:
            return UploadAnswer("later", what_of(error))
        return UploadAnswer("taken")

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._client.close()


def _answer(status: int, error: Any) -> UploadAnswer:
    if status == _TOO_LARGE:
        return UploadAnswer("too large", what_of(error))
    if status in _REFUSALS and status not in _TRANSIENT:
        return UploadAnswer("refused", what_of(error))
    headers = {} if error.response is None else error.response.headers
    asked = headers.get("Retry-After", "")
    return UploadAnswer("later", what_of(error), float(asked) if asked.isdecimal() else None)

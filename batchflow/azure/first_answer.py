"""An HTTP transport that gives up early on a service that has never answered.

A peer may accept connections and never answer (a wrong port, a proxy that swallows requests). Without this
transport a request to it would take the whole timeout for an answer, and would then be retried.
"""

from __future__ import annotations

from typing import Any, Final

from azure.core.exceptions import ServiceResponseTimeoutError
from azure.core.pipeline.transport import AioHttpTransport

FIRST_ANSWER: Final = 8.0
"""Seconds that a service has to answer for the first time."""


class FirstAnswerTransport(AioHttpTransport):  # type: ignore[misc]
    """The SDK's own transport, which gives up early on a service that has never answered.

    It raises `ConnectionError`, which no retry policy of the SDKs tries again.
    """

    _answered = False

    async def send(self, request: Any, **config: Any) -> Any:
        if self._answered:
            return await super().send(request, **config)
        try:
            answer = await super().send(request, **{**config, "read_timeout": FIRST_ANSWER})
        except ServiceResponseTimeoutError as error:
            raise ConnectionError(f"connected, but there is no answer in {FIRST_ANSWER:.0f} s") from error
        self._answered = True
        return answer

"""The port to a log service: takes rows for a stream, and says what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from batchflow.ports.broker import Closable
from batchflow.support.frozen import frozen


@frozen
class UploadAnswer:
    """What the service said to some rows."""

    state: Literal["taken", "later", "too large", "refused"]
    """`later`: the same rows may be taken after a while. `refused`: none will, until its settings change."""
    reason: str = ""
    wait: float | None = None
    """Seconds that the service asks for before the next try."""


class LogIngestion(Closable, Protocol):
    """One data collection rule."""

    async def upload(self, stream: str, rows: Sequence[dict[str, Any]]) -> UploadAnswer:
        """Send rows in one request. Never raises for what the service says. Safe to cancel."""

"""Closing what a cancelled service holds open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
from anyio import CancelScope

if TYPE_CHECKING:
    from batchflow.ports.broker import Closable

_BOUND: Final = 5.0


async def close(link: Closable | None) -> None:
    """Close it although we are cancelled: what it holds goes back to the broker. None: nothing to close."""
    if link is not None:
        with CancelScope(shield=True), anyio.move_on_after(_BOUND):
            await link.aclose()

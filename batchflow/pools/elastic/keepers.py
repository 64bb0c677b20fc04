"""Whether a client lives that may act on Batch, and so starts nodes for those that may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.protocol.documents import Presence, gone_after

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

_SESSIONS: Final = "sessions/"
_MOST: Final = 64
"""Sessions that are looked at, those first that gave a sign of life last."""
_LONGEST: Final = 3600.0
"""Seconds after which the document of any session is too old to be looked at."""


async def keeper_lives(ctl: Container) -> bool:
    """Tell whether a session of such a client shows signs of life in the pool. Raises `StorageError`."""
    listed = [info async for info in ctl.list(_SESSIONS) if info.age < _LONGEST]
    for info in sorted(listed, key=lambda info: info.age)[:_MOST]:
        try:
            presence = Presence.decode((await ctl.get(info.name)).data)
        except (BlobNotFound, ProtocolError):
            continue  # it closed meanwhile
        if presence.starts_nodes and info.age < gone_after(presence.interval):
            return True
    return False

"""The documents by which the clients of an elastic pool tell each other how many agents they want."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.pools.scaling.wishes import Wish
from batchflow.protocol import layout

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

_MOST: Final = 64
"""Wishes that are read at a look, the newest first: each client has one."""
_DAY: Final = 86400.0


class WishStore:
    """Reads the wishes of all clients of a pool, and writes those of one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Wish | None]] = {}
        """The ETag and the content of each document that was read, by its name; None: it cannot be read."""

    async def write(self, ctl: Container, wish: Wish) -> None:
        """Replace this client's wish. It is not read again by this client."""
        name = layout.wish_blob(wish.who)
        self._known[name] = await ctl.put(name, wish.encode()), wish

    async def read_all(self, ctl: Container) -> list[Wish]:
        """Return the wishes of the last day. One that has not changed is not read again."""
        listed = [info async for info in ctl.list(layout.WISHES) if info.age < _DAY]
        newest = sorted(listed, key=lambda info: info.age)[:_MOST]
        known, self._known = self._known, {}
        for info in newest:
            etag, wish = known.get(info.name, ("", None))
            if etag != info.etag:
                wish = await _read(ctl, info.name)
            self._known[info.name] = info.etag, wish
        return [wish for _, wish in self._known.values() if wish is not None]


async def _read(ctl: Container, name: str) -> Wish | None:
    try:
        return Wish.decode((await ctl.get(name)).data)
    except (BlobNotFound, ProtocolError):
        return None  # gone meanwhile, or of a version that this one does not know

"""The manifests of an account's pools: the only reader and writer of them.

A manifest makes a Batch pool a pool of batchflow. It lies in the container `batchflow`, which all clients of
the account share. A client of one pool alone does not see that container: for such clients a pool that is
shared keeps a copy of its manifest in its own control container.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobConflict, BlobNotFound, PoolExists, PoolNotFound
from batchflow.protocol import layout
from batchflow.protocol.documents import PoolManifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from batchflow.ports.storage import Container

_CHANGE_TRIES: Final = 10
_FOLDER: Final = "pools/"


class ManifestStore:
    """Reads, publishes, changes and withdraws the manifests of an account."""

    def __init__(self, index: Container) -> None:
        self.index = index
        """The container that holds the manifests."""

    async def read(self, pool_id: str) -> PoolManifest | None:
        """Read the pool's manifest; None when batchflow does not know the pool."""
        try:
            blob = await self.index.get(layout.manifest_blob(pool_id))
        except BlobNotFound:
            return None
        return PoolManifest.decode(blob.data)

    async def pool_ids(self) -> list[str]:
        """List the ids of all pools that have a manifest; none when the account has no container for it."""
        try:
            names = [info.name async for info in self.index.list(_FOLDER)]
        except BlobNotFound:
            return []
        return [name.removeprefix(_FOLDER).removesuffix(".json") for name in names]

    async def read_all(self) -> AsyncIterator[PoolManifest]:
        """Read the manifests of all pools; one that is withdrawn meanwhile is left out."""
        for pool_id in await self.pool_ids():
            if (manifest := await self.read(pool_id)) is not None:
                yield manifest

    async def publish(self, manifest: PoolManifest) -> None:
        """Write the manifest of a new pool. Raises `PoolExists` when there is one of that id."""
        try:
            await self.index.put(layout.manifest_blob(manifest.pool), manifest.encode(), create=True)
        except BlobConflict as error:
            raise PoolExists(f"another client created pool {manifest.pool!r} at this moment") from error

    async def withdraw(self, manifest: PoolManifest) -> None:
        """Remove the manifest, unless it belongs to another pool of that id by now. Idempotent."""
        name = layout.manifest_blob(manifest.pool)
        while True:
            try:
                blob = await self.index.get(name)
                if PoolManifest.decode(blob.data).prefix == manifest.prefix:
                    await self.index.delete(name, if_match=blob.etag)
            except BlobConflict:
                continue
            except BlobNotFound:
                pass
            return

    async def refresh(self, known: PoolManifest) -> tuple[PoolManifest, str]:
        """Read the manifest and its ETag again. Raises `PoolNotFound` when that pool was deleted."""
        try:
            blob = await self.index.get(layout.manifest_blob(known.pool))
        except BlobNotFound as error:
            raise PoolNotFound(f"pool {known.pool!r} was deleted") from error
        manifest = PoolManifest.decode(blob.data)
        if manifest.prefix != known.prefix:
            raise PoolNotFound(f"pool {known.pool!r} was deleted; there is another one of that name now")
        return manifest, blob.etag

    async def change(
        self, known: PoolManifest, ctl: Container, change: Callable[[PoolManifest], PoolManifest]
    ) -> PoolManifest:
        """Write what `change` makes of the current manifest, again when another client changed it meanwhile.

        `ctl`: the pool's control container, which gets the copy when the pool is shared. Raises
        `PoolNotFound`, and `BlobConflict` when other clients change the manifest all the time.
        """
        for _ in range(_CHANGE_TRIES):
            current, etag = await self.refresh(known)
            wanted = change(current)
            try:
                await self.index.put(layout.manifest_blob(known.pool), wanted.encode(), if_match=etag)
            except BlobConflict:
                continue
            if wanted.shared:
                await self._copy_to(ctl, known.pool)
            return wanted
        raise BlobConflict(f"pool {known.pool!r}: its manifest changes all the time", retryable=True)

    async def _copy_to(self, ctl: Container, pool_id: str) -> None:
        """Bring the pool's own copy up to date, also when the manifest changes at this moment."""
        name = layout.manifest_blob(pool_id)
        blob = await self.index.get(name)
        while True:
            await ctl.put(name, blob.data)
            newer = await self.index.get_if_changed(name, blob.etag)
            if newer is None:
                return
            blob = newer

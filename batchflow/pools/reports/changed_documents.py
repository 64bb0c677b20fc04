"""Documents that are looked at again and again, each read only when it has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

import anyio

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from batchflow.ports.storage import BlobInfo, Container

T = TypeVar("T")

_READS: Final = 16
"""Documents that are read at the same time."""


class ChangedDocuments(Generic[T]):
    """The documents of one kind in a container, as they were read last."""

    def __init__(
        self, container: Container, prefix: str, decode: Callable[[bytes], T], most: int | None = None
    ) -> None:
        """`decode` may raise `ProtocolError`: such a document is left out.

        `most`: documents that are read at one look, the latest first; the others are read at the next ones.
        """
        self._container = container
        self._prefix = prefix
        self._decode = decode
        self._most = most
        self._known: dict[str, tuple[str, T | None]] = {}
        """ETag and document, by the name of the blob."""

    async def read(self, without: Collection[str] = ()) -> list[tuple[BlobInfo, T]]:
        """Return what is there, in the order of the names, but for blobs of these names.

        Raises `StorageError`. Safe to cancel.
        """
        infos = [info async for info in self._container.list(self._prefix) if info.name not in without]
        names = {info.name for info in infos}
        self._known = {name: known for name, known in self._known.items() if name in names}
        changed = [info for info in infos if self._known.get(info.name, ("", None))[0] != info.etag]
        changed.sort(key=lambda info: info.modified_at, reverse=True)
        limiter = anyio.CapacityLimiter(_READS)
        async with task_group() as group:
            for info in changed[: self._most]:
                group.start_soon(self._read, info, limiter)
        found = []
        for info in infos:
            _, document = self._known.get(info.name, ("", None))
            if document is not None:
                found.append((info, document))
        return found

    async def _read(self, info: BlobInfo, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            try:
                blob = await self._container.get(info.name)
                self._known[info.name] = (blob.etag, self._decode(blob.data))
            except BlobNotFound:
                self._known.pop(info.name, None)
            except ProtocolError:  # of a later version, or forged by a task
                self._known[info.name] = (info.etag, None)

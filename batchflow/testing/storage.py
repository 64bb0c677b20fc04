"""Blob Storage in memory."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchflow.errors import (
    BlobConflict,
    BlobNotFound,
    StorageError,
)
from batchflow.ports.storage import Blob, BlobInfo
from batchflow.testing.closing import CheckedClosing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from os import PathLike

    from batchflow.ports.storage import AccessPolicy


class MemoryContainer(CheckedClosing):
    """A container in memory."""

    def __init__(self, storage: MemoryStorage, name: str) -> None:
        self._storage = storage
        self.name = name
        self.url = f"memory://{name}"

    def _blobs(self) -> dict[str, _MemoryBlob]:
        try:
            return self._storage.content[self.name]
        except KeyError:
            raise BlobNotFound(f"there is no container {self.name}") from None

    def _blob(self, name: str) -> _MemoryBlob:
        try:
            return self._blobs()[name]
        except KeyError:
            raise BlobNotFound(f"there is no blob {name} in container {self.name}") from None

    async def get(self, name: str) -> Blob:
        blob = self._blob(name)
        return Blob(blob.data, blob.etag)

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        blob = self._blob(name)
        return None if blob.etag == etag else Blob(blob.data, blob.etag)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        there = self._blobs().get(name)
        if create and there is not None:
            raise BlobConflict(f"blob {name} is there already")
        if if_match is not None and (there is None or there.etag != if_match):
            raise BlobConflict(f"blob {name} is not the version that was read")
        return self._write(name, data)

    def _write(self, name: str, data: bytes) -> str:
        blob = self._blobs()[name] = _MemoryBlob(data, self._storage.next_etag(), self._storage.now())
        return blob.etag

    async def get_from(self, name: str, start: int) -> bytes:
        return self._blob(name).data[start:]

    async def append(self, name: str, data: bytes, *, anew: bool = False) -> int:
        there = None if anew else self._blobs().get(name)
        whole = data if there is None else there.data + data
        self._write(name, whole)
        return len(whole)

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        await self.put(name, Path(path).read_bytes(), create=create)

    async def download(self, name: str, path: str | PathLike[str], *, signature: str | None = None) -> None:
        data = self._blob(name).data if signature is None else await self.get_signed(name, signature)
        Path(path).write_bytes(data)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        there = self._storage.content.get(self.name, {}).get(name)
        if there is not None and if_match not in (None, there.etag):
            raise BlobConflict(f"blob {name} is not the version that was read")
        return self._storage.content.get(self.name, {}).pop(name, None) is not None

    async def get_signed(self, name: str, signature: str) -> bytes:
        if signature != _signature(self.name, name):
            raise StorageError(f"the signature does not open blob {name}")
        return self._blob(name).data

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        for name, blob in sorted(self._blobs().items()):
            if name.startswith(prefix):
                age = self._storage.now() - blob.modified_at
                yield BlobInfo(name, len(blob.data), blob.etag, blob.modified_at, age)


@dataclass(frozen=True, slots=True)
class _MemoryBlob:
    data: bytes
    etag: str
    modified_at: float


class MemoryStorage(CheckedClosing):
    """A Storage account in memory. Policies are kept in `policies`, their signatures open nothing."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.now = clock
        self.content: dict[str, dict[str, _MemoryBlob]] = {}
        self.policies: dict[str, tuple[AccessPolicy, ...]] = {}
        self._etags = itertools.count(1)

    def next_etag(self) -> str:
        return f'"{next(self._etags):#x}"'

    def container(self, name: str) -> MemoryContainer:
        return MemoryContainer(self, name)

    async def create_container(self, name: str, policies: tuple[AccessPolicy, ...] = ()) -> bool:
        made = name not in self.content
        self.content.setdefault(name, {})
        self.policies[name] = policies
        return made

    async def delete_container(self, name: str) -> bool:
        self.policies.pop(name, None)
        return self.content.pop(name, None) is not None

    async def containers(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.content if name.startswith(prefix))

    async def signature(self, container: str, policy: AccessPolicy) -> str:
        return f"si={policy.name}&sr=c"

    async def blob_signature(self, container: str, name: str, valid: float) -> str:
        return _signature(container, name)


def _signature(container: str, name: str) -> str:
    return f"sr=b&blob={container}/{name}"

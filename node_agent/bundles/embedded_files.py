"""The files that an agent's configuration carries, before the container that has all of them."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from batchflow.errors import ProtocolError
from batchflow.ports.storage import Blob

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike


class BlobSource(Protocol):
    """Where bundles come from: a container, or what stands before it."""

    async def get(self, name: str) -> Blob: ...

    async def download(self, name: str, path: str | PathLike[str]) -> None: ...


class EmbeddedFiles:
    """A `BlobSource`: bundles' lists and contents by their hashes, and the container for all others."""

    def __init__(self, embedded: Mapping[str, str], container: BlobSource) -> None:
        """`embedded`: contents in base64, by SHA-256. Raises `ProtocolError`."""
        try:
            self._embedded = {name: b64decode(content, validate=True) for name, content in embedded.items()}
        except ValueError as error:
            raise ProtocolError(f"what the agent was given to bring along cannot be read: {error}") from error
        self._container = container

    async def get(self, name: str) -> Blob:
        """Raises what the container raises."""
        content = self._embedded.get(PurePosixPath(name).stem)
        return await self._container.get(name) if content is None else Blob(content, etag="")

    async def download(self, name: str, path: str | PathLike[str]) -> None:
        """Raises what the container raises, and OSError."""
        content = self._embedded.get(PurePosixPath(name).stem)
        if content is None:
            await self._container.download(name, path)
        else:
            Path(path).write_bytes(content)

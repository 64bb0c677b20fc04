"""The port to the blobs: what batchflow needs of Blob Storage, and nothing else.

Implemented by `batchflow.azure.blob` (the real SDK) and by `batchflow.testing` (in memory). Failures are
`StorageError`s. Every coroutine is safe to cancel: a blob is written whole or not at all.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Final, Protocol

from batchflow.ports.broker import Closable
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from os import PathLike


EXACTNESS: Final = 1.0
"""Seconds: HTTP's dates, which the service tells times with, have no fractions."""


@frozen
class Blob:
    """A blob's bytes and the ETag that names this version of it."""

    data: bytes = field(repr=False)
    etag: str


@frozen
class BlobInfo:
    """A blob as a listing tells of it. Times are the service's alone: nobody's own clock is asked."""

    name: str
    size: int
    etag: str
    modified_at: float
    """Seconds since the epoch."""
    age: float
    """Seconds from then to the listing, at least: up to twice `EXACTNESS` less than it was."""


@frozen
class AccessPolicy:
    """A stored access policy: signatures that name it end when it is removed.

    `permissions`: letters as in a SAS, of `racwdl` (read, add, create, write, delete, list).
    """

    name: str
    permissions: str
    expires_at: float
    """Seconds since the epoch."""


class Container(Closable, Protocol):
    """One container, as its credential allows."""

    name: str
    url: str
    """Without any signature."""

    async def get(self, name: str) -> Blob:
        """Raises `BlobNotFound`."""

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        """The blob, or None when its ETag is still `etag`. Raises `BlobNotFound`."""

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        """Write it whole and return its new ETag.

        `if_match`: only over that version; `create`: only where there is none. Else raises `BlobConflict`.
        """

    async def append(self, name: str, data: bytes) -> None:
        """Add to an append blob, made at the first call."""

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        """A file's content, streamed. `create`: raises `BlobConflict` where there is one already."""

    async def download(self, name: str, path: str | PathLike[str]) -> None:
        """Into a file, streamed, that appears whole under its name or not at all. Raises `BlobNotFound`."""

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        """False when there was none. `if_match`: only that version; else raises `BlobConflict`."""

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]: ...


class Storage(Closable, Protocol):
    """The Storage account."""

    def container(self, name: str) -> Container:
        """Makes no request."""

    async def create_container(self, name: str, policies: tuple[AccessPolicy, ...] = ()) -> bool:
        """False when it was there already (its policies are set all the same).

        Without the account's key no policies are stored: nothing could be signed under them.
        """

    async def delete_container(self, name: str) -> bool:
        """False when there was none."""

    async def containers(self, prefix: str = "") -> list[str]: ...

    async def signature(self, container: str, policy: AccessPolicy) -> str:
        """A SAS (the query string, without '?') with these rights: a secret.

        With the account's key it is under the container's stored policy of that name, and ends with it.
        Without, Entra ID lends a key for a week at most: no stored policy ends it, but the loss of the
        right does.
        """

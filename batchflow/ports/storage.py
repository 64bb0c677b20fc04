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
"""Seconds of precision of the service's times, because HTTP's dates have no fractions."""


@frozen
class Blob:
    """A blob's bytes and the ETag that names this version of it."""

    data: bytes = field(repr=False)
    etag: str


@frozen
class BlobInfo:
    """A blob as a listing shows it. Its times are by the service's clock alone."""

    name: str
    size: int
    etag: str
    modified_at: float
    """Seconds since the epoch."""
    age: float
    """Minimum seconds from then to the listing: up to twice `EXACTNESS` less than the real age."""


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
    """The address, without any signature."""

    async def get(self, name: str) -> Blob:
        """Read a blob. Raises `BlobNotFound`."""

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        """Read a blob; None when its ETag is still `etag`. Raises `BlobNotFound`."""

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        """Write a whole blob and return its new ETag.

        `if_match`: only over that version; `create`: only if it does not exist. Else raises `BlobConflict`.
        """

    async def get_from(self, name: str, start: int) -> bytes:
        """Read a blob from a place on; empty when it ends there or before. Raises `BlobNotFound`."""

    async def append(self, name: str, data: bytes, *, anew: bool = False) -> int:
        """Add to an append blob, which the first call creates; return where the data ends in it.

        Appends of several writers come one after the other. One whose answer got lost may be made again.
        `anew`: what the blob held is dropped first.
        """

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        """Upload a file's content, streamed. `create`: raises `BlobConflict` if the blob exists."""

    async def download(self, name: str, path: str | PathLike[str], *, signature: str | None = None) -> None:
        """Download into a file, streamed, which appears whole or not at all. Raises `BlobNotFound`.

        `signature`: of the blob's own, in place of this credential.
        """

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        """Delete a blob; False when there was none. `if_match`: that version, else raises `BlobConflict`."""

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]: ...

    async def get_signed(self, name: str, signature: str) -> bytes:
        """Read a blob by a signature of its own, in place of this credential. Raises `BlobNotFound`."""


class Storage(Closable, Protocol):
    """The Storage account."""

    def container(self, name: str) -> Container:
        """Return a container, without a request."""

    async def create_container(self, name: str, policies: tuple[AccessPolicy, ...] = ()) -> bool:
        """Create a container; False when it existed already (its policies are set all the same).

        Without the account's key no policies are stored: nothing could be signed under them.
        """

    async def delete_container(self, name: str) -> bool:
        """Delete a container; False when there was none."""

    async def containers(self, prefix: str = "") -> list[str]: ...

    async def signature(self, container: str, policy: AccessPolicy) -> str:
        """Make a SAS (the query string, without '?') with these rights: a secret.

        With the account's key it is under the container's stored policy of that name, and ends with it.
        Without, it is signed by a user delegation key, for a week at most. No stored policy ends that, but
        the loss of the right does.
        """

    async def blob_signature(self, container: str, name: str, valid: float) -> str:
        """Make a SAS that reads one blob, for so many seconds, a week at most: a secret."""

"""The values of the local Blob service's core: blobs, containers, blocks, policies, conditions.

Conditions (`Conditions`) are judged against the version at the moment of the change, as RFC 9110 and Azure's
"conditional headers" page define them: a failed condition is 304 on reads, 412 on writes, and
`If-None-Match: *` on an existing blob is 409 BlobAlreadyExists when content is put.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.support.frozen import frozen

MAX_BLOCKS = 50_000
MAX_PAGE = 5_000
MAX_POLICIES = 5
MAX_NAME = 1_024

Metadata = Mapping[str, str]


class BlobKind(StrEnum):
    """The value of x-ms-blob-type."""

    BLOCK = "BlockBlob"
    APPEND = "AppendBlob"


@frozen
class Revision:
    """When something last changed: its quoted ETag and the time in seconds since the epoch."""

    etag: str
    modified: float


@frozen
class ContentSettings:
    """The HTTP headers kept with a blob; `md5` is the raw digest."""

    content_type: str = "application/octet-stream"
    encoding: str | None = None
    language: str | None = None
    disposition: str | None = None
    cache_control: str | None = None
    md5: bytes | None = None


@frozen
class Block:
    """One committed or staged block: its id (base64, as sent) and size in bytes."""

    id: str
    size: int


@frozen
class Content:
    """Content that a shell has written: the file's name, its size, and what to keep with it."""

    kind: BlobKind
    file: str
    size: int
    settings: ContentSettings
    metadata: Metadata


@frozen
class StoredBlob:
    """One version of a blob: a block blob's committed `blocks`, an append blob's count of `appended` ones."""

    content: Content
    stamp: Revision
    created: float
    blocks: tuple[Block, ...] = ()
    appended: int = 0


@frozen
class FileRange:
    """A piece of a file to be copied into a new one."""

    file: str
    offset: int
    size: int


@frozen
class BlockPlan:
    """What a block list amounts to: the pieces in order, and the blocks as they will be committed."""

    sources: tuple[FileRange, ...]
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """The new file's size in bytes."""
        return sum(block.size for block in self.blocks)


@frozen
class Change:
    """The outcome of a write: the new version, and the files that the shell must now remove."""

    blob: StoredBlob
    dropped: tuple[str, ...] = ()


@frozen
class StoredAccessPolicy:
    """A stored access policy; the fields are as the client wrote them, None where it left them out."""

    id: str
    permissions: str | None = None
    start: str | None = None
    expiry: str | None = None


@frozen
class Conditions:
    """The conditional headers of a request; times in whole seconds since the epoch."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: float | None = None
    if_unmodified_since: float | None = None

    def check_read(self, stamp: Revision) -> None:
        """Raise NOT_MODIFIED or CONDITION_NOT_MET unless `stamp` may be read."""
        self._check_positive(stamp)
        if self._unchanged(stamp):
            raise BlobRefused(BlobErrorCode.NOT_MODIFIED)

    def check_write(
        self, stamp: Revision | None, *, existing: BlobErrorCode = BlobErrorCode.CONDITION_NOT_MET
    ) -> None:
        """Raise unless a write may replace `stamp` (None: nothing is there yet).

        `existing` is the answer to `If-None-Match: *` where something is there.
        """
        if stamp is None:
            if self.if_match is not None:
                raise BlobRefused(BlobErrorCode.CONDITION_NOT_MET)
            return
        if self.if_none_match == "*":
            raise BlobRefused(existing)
        self._check_positive(stamp)
        if self._unchanged(stamp):
            raise BlobRefused(BlobErrorCode.CONDITION_NOT_MET)

    def _check_positive(self, stamp: Revision) -> None:
        if self.if_match not in (None, "*") and not _names(self.if_match, stamp.etag):
            raise BlobRefused(BlobErrorCode.CONDITION_NOT_MET)
        if self.if_unmodified_since is not None and int(stamp.modified) > self.if_unmodified_since:
            raise BlobRefused(BlobErrorCode.CONDITION_NOT_MET)

    def _unchanged(self, stamp: Revision) -> bool:
        if self.if_none_match is not None:
            return self.if_none_match == "*" or _names(self.if_none_match, stamp.etag)
        return self.if_modified_since is not None and int(stamp.modified) <= self.if_modified_since


NO_CONDITIONS = Conditions()


@dataclass(slots=True)
class StoredContainer:
    """A container: its metadata and policies, its blobs, and the blocks staged under each blob name."""

    name: str
    stamp: Revision
    metadata: Metadata
    policies: tuple[StoredAccessPolicy, ...] = ()
    blobs: dict[str, StoredBlob] = field(default_factory=dict)
    staged: dict[str, dict[str, tuple[Block, str]]] = field(default_factory=dict)


@frozen
class Listed:
    """An entry of a listing: a blob, or with `blob` None the common prefix of several."""

    name: str
    blob: StoredBlob | None


@frozen
class BlobPage:
    """One page of a listing; `next_name` is where the next page begins, None after the last."""

    entries: tuple[Listed, ...]
    next_name: str | None


@frozen
class ContainerPage:
    """One page of a listing of containers; `next_name` is where the next page begins, None after the last."""

    containers: tuple[StoredContainer, ...]
    next_name: str | None


BlockChoice = Literal["Committed", "Uncommitted", "Latest"]


def _names(header: str | None, etag: str) -> bool:
    """Tell whether a list of ETags, quoted or not, names this one."""
    wanted = etag.strip('"')
    return any(item.strip().strip('"') == wanted for item in (header or "").split(","))

"""The operations of the local Blob service: the index decides, files hold content, threads touch the disk.

Each operation takes a `Call` and returns an `Answer`, or raises BlobRefused. The change to the index is made
synchronously, after the content is on disk and before the files that it replaced are removed; so a call that
is cancelled, or whose client goes away while sending, changes nothing and leaves no file behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import field, replace
from functools import partial

from batchflow.local.blob.core import http, xml
from batchflow.local.blob.core.auth import BlobGrant, DelegatedKey, Level
from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.index import BlobIndex, StaleSnapshot
from batchflow.local.blob.core.model import (
    BlobKind,
    Block,
    Conditions,
    Content,
    ContentSettings,
    Metadata,
    StoredBlob,
    StoredContainer,
)
from batchflow.local.blob.files import CHUNK, BlobFiles
from batchflow.support.frozen import frozen

# Azure's limits, in bytes, for service versions from 2022-11-02 on; an append block is held in memory, so
# its limit here is the older versions' one.
MAX_PUT_BLOB = 5000 * 1024 * 1024
MAX_BLOCK = 4000 * 1024 * 1024
MAX_APPEND_BLOCK = 4 * 1024 * 1024
MAX_BLOCK_LIST = 16 * 1024 * 1024
MAX_POLICIES_DOCUMENT = 64 * 1024
MAX_KEY_INFO = 4 * 1024

# How much of a blob is read before the answer begins; more than a range whose MD5 is asked for has.
READ_AHEAD = http.MAX_MD5_RANGE


@frozen
class BlobRequest:
    """An authenticated request. `body` yields its bytes once; names of headers are lower case."""

    target: http.Target
    query: http.Query
    headers: http.Headers
    original_names: http.Headers
    grant: BlobGrant
    endpoint: str
    body: AsyncIterator[bytes]

    @property
    def place(self) -> tuple[str, str]:
        """The container's and the blob's name."""
        return self.target.container, self.target.blob

    @property
    def conditions(self) -> Conditions:
        """The conditional headers."""
        return http.parse_conditions(self.headers)

    @property
    def metadata(self) -> Metadata:
        """The metadata that the request sets."""
        return http.parse_metadata(self.headers, self.original_names)

    @property
    def may_overwrite(self) -> bool:
        """Whether the caller may replace an existing blob: creating (`c`) alone does not allow it."""
        return self.grant.allows(Level.OBJECT, "w")


@frozen
class Rest:
    """The part of a response that is still in a file; the sender of the response closes `descriptor`."""

    descriptor: int
    offset: int
    size: int


@frozen
class BlobResponse:
    """An answer: `body`, then what `rest` says. `size` is the Content-Length, also where no body is sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    rest: Rest | None = None
    size: int | None = None


@frozen
class _Spooled:
    file: str
    size: int
    md5: bytes


class BlobService:
    """The operations on one account's index and files."""

    def __init__(
        self,
        index: BlobIndex,
        files: BlobFiles,
        lend_key: Callable[[BlobGrant, str, str], DelegatedKey],
    ) -> None:
        self._index = index
        self._files = files
        self._lend_key = lend_key
        # Appends write at the end of a file that the index knows: one at a time.
        self._appending = asyncio.Lock()

    async def get_user_delegation_key(self, call: BlobRequest) -> BlobResponse:
        """Get User Delegation Key, for those who came with a token of Entra ID."""
        start, expiry = xml.parse_key_info(await _read(call, MAX_KEY_INFO))
        return _document(xml.delegated_key_document(self._lend_key(call.grant, start, expiry)))

    # Containers

    async def list_containers(self, call: BlobRequest) -> BlobResponse:
        """List Containers."""
        options = http.parse_list_options(call.query)
        page = self._index.list_containers(options.prefix, options.start, options.limit)
        marker = http.write_marker(page.next_name)
        return _document(
            xml.containers_document(page, call.endpoint, options.asked, marker, options.metadata)
        )

    async def create_container(self, call: BlobRequest) -> BlobResponse:
        """Create Container."""
        _refuse_public_access(call)
        container = self._index.create_container(call.target.container, call.metadata, time.time())
        return BlobResponse(201, http.version_headers(container.stamp))

    async def get_container(self, call: BlobRequest) -> BlobResponse:
        """Get Container Properties."""
        return BlobResponse(200, http.container_headers(self._index.container(call.target.container)))

    async def delete_container(self, call: BlobRequest) -> BlobResponse:
        """Delete Container."""
        await self._remove(self._index.delete_container(call.target.container, call.conditions))
        return BlobResponse(202)

    async def get_container_metadata(self, call: BlobRequest) -> BlobResponse:
        """Get Container Metadata."""
        container = self._index.container(call.target.container)
        return BlobResponse(200, http.metadata_answer(container.stamp, container.metadata))

    async def set_container_metadata(self, call: BlobRequest) -> BlobResponse:
        """Set Container Metadata."""
        name, now = call.target.container, time.time()
        container = self._index.set_container_metadata(name, call.metadata, now, call.conditions)
        return BlobResponse(200, http.version_headers(container.stamp))

    async def get_container_acl(self, call: BlobRequest) -> BlobResponse:
        """Get Container ACL."""
        container: StoredContainer = self._index.container(call.target.container)
        return _document(xml.policies_document(container.policies), http.version_headers(container.stamp))

    async def set_container_acl(self, call: BlobRequest) -> BlobResponse:
        """Set Container ACL: the stored access policies."""
        _refuse_public_access(call)
        policies = xml.parse_policies(await _read(call, MAX_POLICIES_DOCUMENT))
        name, now = call.target.container, time.time()
        container = self._index.set_policies(name, policies, now, call.conditions)
        return BlobResponse(200, http.version_headers(container.stamp))

    async def list_blobs(self, call: BlobRequest) -> BlobResponse:
        """List Blobs."""
        options, name = http.parse_list_options(call.query), call.target.container
        page = self._index.list_blobs(name, options.prefix, options.delimiter, options.start, options.limit)
        marker = http.write_marker(page.next_name)
        return _document(
            xml.blobs_document(page, call.endpoint, name, options.asked, marker, options.metadata)
        )

    # Blobs

    async def put_blob(self, call: BlobRequest) -> BlobResponse:
        """Put Blob: a block blob with its content, or an empty append blob."""
        kind, settings = http.parse_kind(call.headers), http.parse_settings(call.headers, plain=True)
        metadata, conditions, overwrite = call.metadata, call.conditions, call.may_overwrite
        self._index.check_put(*call.place, conditions, may_overwrite=overwrite)
        limit = 0 if kind is BlobKind.APPEND else MAX_PUT_BLOB
        async with self._spool(call, limit) as spooled:
            settings = _with_md5(settings, spooled.md5 if kind is BlobKind.BLOCK else None)
            content = Content(kind, spooled.file, spooled.size, settings, metadata)
            change = self._index.put_blob(
                *call.place, content, time.time(), conditions, may_overwrite=overwrite
            )
        await self._remove(change.dropped)
        return _written(change.blob, {"Content-MD5": http.md5_header(spooled.md5)})

    async def get_blob(self, call: BlobRequest) -> BlobResponse:
        """Get Blob, or a range of it."""
        wanted, with_md5 = http.parse_range(call.headers), _wants_range_md5(call)
        while True:
            blob = self._index.blob(*call.place, call.conditions)
            offset, size = wanted.within(blob.content.size) if wanted else (0, blob.content.size)
            if with_md5 and (wanted is None or size > http.MAX_MD5_RANGE):
                raise BlobRefused(
                    BlobErrorCode.INVALID_HEADER_VALUE, "x-ms-range-get-content-md5 is for up to 4 MiB."
                )
            try:
                body, rest = await asyncio.to_thread(self._open, blob.content.file, offset, size)
                break
            except FileNotFoundError:
                # Replaced since it was looked up: look again.
                if self._index.blob(*call.place) is blob:
                    raise
        headers = http.blob_headers(blob, call.query)
        if wanted is not None:
            headers = http.range_headers(headers, offset, size, blob.content.size)
        if with_md5:
            headers["Content-MD5"] = http.md5_header(hashlib.md5(body, usedforsecurity=False).digest())
        return BlobResponse(206 if wanted else 200, headers, body, rest, size)

    async def get_properties(self, call: BlobRequest) -> BlobResponse:
        """Get Blob Properties."""
        blob = self._index.blob(*call.place, call.conditions)
        return BlobResponse(200, http.blob_headers(blob, call.query), size=blob.content.size)

    async def delete_blob(self, call: BlobRequest) -> BlobResponse:
        """Delete Blob."""
        if call.headers.get("x-ms-delete-snapshots") == "only":
            raise BlobRefused(
                BlobErrorCode.NOT_IMPLEMENTED, "The local Blob service does not have snapshots."
            )
        await self._remove(self._index.delete_blob(*call.place, call.conditions))
        return BlobResponse(202, {"x-ms-delete-type-permanent": "true"})

    async def get_metadata(self, call: BlobRequest) -> BlobResponse:
        """Get Blob Metadata."""
        blob = self._index.blob(*call.place, call.conditions)
        return BlobResponse(200, http.metadata_answer(blob.stamp, blob.content.metadata))

    async def set_metadata(self, call: BlobRequest) -> BlobResponse:
        """Set Blob Metadata."""
        blob = self._index.set_metadata(*call.place, call.metadata, time.time(), call.conditions)
        return BlobResponse(200, http.version_headers(blob.stamp))

    async def set_properties(self, call: BlobRequest) -> BlobResponse:
        """Set Blob Properties: the content settings."""
        if any(name.startswith(("x-ms-blob-content-length", "x-ms-sequence-")) for name in call.headers):
            raise BlobRefused(
                BlobErrorCode.NOT_IMPLEMENTED, "The local Blob service does not have page blobs."
            )
        settings = http.parse_settings(call.headers)
        blob = self._index.set_settings(*call.place, settings, time.time(), call.conditions)
        return BlobResponse(200, http.version_headers(blob.stamp))

    # Blocks

    async def put_block(self, call: BlobRequest) -> BlobResponse:
        """Put Block."""
        block_id = http.parse_block_id(call.query)
        self._index.container(call.target.container)
        async with self._spool(call, MAX_BLOCK) as spooled:
            block = Block(block_id, spooled.size)
            dropped = self._index.stage_block(*call.place, block, spooled.file)
        await self._remove(dropped)
        return BlobResponse(201, {"Content-MD5": http.md5_header(spooled.md5), **_ENCRYPTED})

    async def put_block_list(self, call: BlobRequest) -> BlobResponse:
        """Put Block List: joins the named blocks into the blob's new file."""
        choices = xml.parse_block_list(await _read(call, MAX_BLOCK_LIST))
        settings, metadata = http.parse_settings(call.headers), call.metadata
        plan = partial(
            self._index.plan_block_list,
            *call.place,
            choices,
            call.conditions,
            may_overwrite=call.may_overwrite,
        )
        while True:
            planned = plan()
            try:
                async with self._new_file() as file:
                    await asyncio.to_thread(self._files.join, file, planned.sources)
                    if plan() != planned:
                        raise StaleSnapshot
                    content = Content(BlobKind.BLOCK, file, planned.size, settings, metadata)
                    change = self._index.commit_block_list(*call.place, planned, content, time.time())
                    break
            except (FileNotFoundError, StaleSnapshot):
                if plan() == planned:
                    raise
        await self._remove(change.dropped)
        return _written(change.blob)

    async def get_block_list(self, call: BlobRequest) -> BlobResponse:
        """Get Block List."""
        committed, uncommitted = self._index.block_list(*call.place)
        match http.parameter(call.query, "blocklisttype").lower() or "committed":
            case "committed":
                return _document(xml.block_list_document(committed, None))
            case "uncommitted":
                return _document(xml.block_list_document(None, uncommitted))
            case "all":
                return _document(xml.block_list_document(committed, uncommitted))
            case _:
                raise BlobRefused(BlobErrorCode.INVALID_QUERY_PARAMETER_VALUE, "blocklisttype is not known.")

    async def append_block(self, call: BlobRequest) -> BlobResponse:
        """Append Block."""
        position = http.parse_size(call.headers, "x-ms-blob-condition-appendpos")
        max_size = http.parse_size(call.headers, "x-ms-blob-condition-maxsize")
        data = await _read(call, MAX_APPEND_BLOCK)
        find = partial(
            self._index.append_target,
            *call.place,
            len(data),
            call.conditions,
            position=position,
            max_size=max_size,
        )
        async with self._appending:
            while True:
                target = find()
                try:
                    file, offset = target.content.file, target.content.size
                    await asyncio.to_thread(self._files.write_at, file, offset, data)
                    blob = self._index.commit_append(*call.place, target, len(data), time.time())
                    break
                except (FileNotFoundError, StaleSnapshot):
                    if find().stamp == target.stamp:
                        raise
        return _written(
            blob,
            {
                "x-ms-blob-append-offset": str(offset),
                "x-ms-blob-committed-block-count": str(blob.appended),
            },
        )

    # Files

    @asynccontextmanager
    async def _new_file(self) -> AsyncIterator[str]:
        """Name a new file; the file is removed again when the body raises."""
        file = self._files.new_name()
        try:
            yield file
        except BaseException:
            self._files.remove((file,))
            raise

    @asynccontextmanager
    async def _spool(self, call: BlobRequest, limit: int) -> AsyncIterator[_Spooled]:
        """Receive the request's body into a new file, which is removed again when the body raises."""
        expected = _expected_size(call, limit)
        async with self._new_file() as file:
            digest, size = hashlib.md5(usedforsecurity=False), 0

            def store(data: bytes) -> None:
                digest.update(data)
                self._files.append(file, data)

            async for data in _gathered(call.body, CHUNK):
                size += len(data)
                await asyncio.to_thread(store, data)
            _check_body(call, size, expected, digest.digest())
            yield _Spooled(file, size, digest.digest())

    def _open(self, file: str, offset: int, size: int) -> tuple[bytes, Rest | None]:
        """Read the beginning of a piece of a file; what is more than `READ_AHEAD` stays open as the rest."""
        descriptor = self._files.open(file)
        ahead = min(size, READ_AHEAD)
        try:
            body = os.pread(descriptor, ahead, offset)
            if size > ahead:
                rest = Rest(os.dup(descriptor), offset + ahead, size - ahead)
                return body, rest
            return body, None
        finally:
            os.close(descriptor)

    async def _remove(self, files: tuple[str, ...]) -> None:
        if files:
            await asyncio.to_thread(self._files.remove, files)


@frozen
class Route:
    """An operation, and the permissions of which a caller needs one; none of them means the account's own
    key, and None that the operation judges itself."""

    operation: Callable[[BlobService, BlobRequest], Awaitable[BlobResponse]]
    any_of: str | None


# By level, method, and the query's `comp`; the permissions are those of Azure's tables for SAS.
ROUTES: Mapping[tuple[Level, str, str], Route] = {
    (Level.SERVICE, "POST", "userdelegationkey"): Route(BlobService.get_user_delegation_key, None),
    (Level.SERVICE, "GET", "list"): Route(BlobService.list_containers, "l"),
    (Level.CONTAINER, "PUT", ""): Route(BlobService.create_container, "cw"),
    (Level.CONTAINER, "GET", ""): Route(BlobService.get_container, "r"),
    (Level.CONTAINER, "HEAD", ""): Route(BlobService.get_container, "r"),
    (Level.CONTAINER, "DELETE", ""): Route(BlobService.delete_container, "d"),
    (Level.CONTAINER, "GET", "metadata"): Route(BlobService.get_container_metadata, "r"),
    (Level.CONTAINER, "HEAD", "metadata"): Route(BlobService.get_container_metadata, "r"),
    (Level.CONTAINER, "PUT", "metadata"): Route(BlobService.set_container_metadata, "w"),
    (Level.CONTAINER, "GET", "acl"): Route(BlobService.get_container_acl, ""),
    (Level.CONTAINER, "HEAD", "acl"): Route(BlobService.get_container_acl, ""),
    (Level.CONTAINER, "PUT", "acl"): Route(BlobService.set_container_acl, ""),
    (Level.CONTAINER, "GET", "list"): Route(BlobService.list_blobs, "l"),
    (Level.OBJECT, "PUT", ""): Route(BlobService.put_blob, "cw"),
    (Level.OBJECT, "GET", ""): Route(BlobService.get_blob, "r"),
    (Level.OBJECT, "HEAD", ""): Route(BlobService.get_properties, "r"),
    (Level.OBJECT, "DELETE", ""): Route(BlobService.delete_blob, "d"),
    (Level.OBJECT, "GET", "metadata"): Route(BlobService.get_metadata, "r"),
    (Level.OBJECT, "HEAD", "metadata"): Route(BlobService.get_metadata, "r"),
    (Level.OBJECT, "PUT", "metadata"): Route(BlobService.set_metadata, "w"),
    (Level.OBJECT, "PUT", "properties"): Route(BlobService.set_properties, "w"),
    (Level.OBJECT, "PUT", "block"): Route(BlobService.put_block, "w"),
    (Level.OBJECT, "PUT", "blocklist"): Route(BlobService.put_block_list, "w"),
    (Level.OBJECT, "GET", "blocklist"): Route(BlobService.get_block_list, "r"),
    (Level.OBJECT, "PUT", "appendblock"): Route(BlobService.append_block, "aw"),
}


def find_route(method: str, target: http.Target, query: http.Query) -> tuple[Level, Route]:
    """Find the operation that a request asks for; 501 for one that is not here, 405 for a wrong verb."""
    comp, restype = http.parameter(query, "comp").lower(), http.parameter(query, "restype").lower()
    level = Level.OBJECT if target.blob else Level.CONTAINER if target.container else Level.SERVICE
    wanted = "service" if comp == "userdelegationkey" else {Level.CONTAINER: "container"}.get(level, "")
    if restype != wanted:
        raise BlobRefused(
            BlobErrorCode.NOT_IMPLEMENTED,
            f"The local Blob service does not have restype={restype!r} at this URI.",
        )
    if (route := ROUTES.get((level, method, comp))) is not None:
        return level, route
    if any((level, comp) == (known[0], known[2]) for known in ROUTES):
        raise BlobRefused(BlobErrorCode.UNSUPPORTED_HTTP_VERB)
    raise BlobRefused(BlobErrorCode.NOT_IMPLEMENTED, f"The local Blob service does not have comp={comp!r}.")


_ENCRYPTED = {"x-ms-request-server-encrypted": "true"}


def _document(text: str, headers: Mapping[str, str] | None = None) -> BlobResponse:
    return BlobResponse(200, {**(headers or {}), "Content-Type": "application/xml"}, text.encode())


def _written(blob: StoredBlob, headers: Mapping[str, str] | None = None) -> BlobResponse:
    return BlobResponse(201, {**http.version_headers(blob.stamp), **_ENCRYPTED, **(headers or {})})


def _refuse_public_access(call: BlobRequest) -> None:
    if "x-ms-blob-public-access" in call.headers:
        raise BlobRefused(BlobErrorCode.PUBLIC_ACCESS_NOT_PERMITTED)


def _wants_range_md5(call: BlobRequest) -> bool:
    return call.headers.get("x-ms-range-get-content-md5", "").lower() == "true"


def _with_md5(settings: ContentSettings, digest: bytes | None) -> ContentSettings:
    """Return the settings with the content's digest. One that the client gave must be the same."""
    if digest is None:
        return settings
    if settings.md5 not in (None, digest):
        raise BlobRefused(BlobErrorCode.MD5_MISMATCH)
    return replace(settings, md5=digest)


# Bodies


def _expected_size(call: BlobRequest, limit: int) -> int:
    size = http.parse_size(call.headers, "content-length")
    if size is None:
        raise BlobRefused(BlobErrorCode.MISSING_CONTENT_LENGTH)
    if size > limit:
        raise BlobRefused(BlobErrorCode.REQUEST_BODY_TOO_LARGE, f"At most {limit} bytes are allowed here.")
    return size


def _check_body(call: BlobRequest, size: int, expected: int, digest: bytes) -> None:
    if size != expected:
        raise BlobRefused(BlobErrorCode.INVALID_INPUT, "The body is shorter than its Content-Length.")
    if http.parse_md5(call.headers, "content-md5") not in (None, digest):
        raise BlobRefused(BlobErrorCode.MD5_MISMATCH)


async def _read(call: BlobRequest, limit: int) -> bytes:
    """Receive a small body into memory."""
    expected = _expected_size(call, limit)
    body = b"".join([data async for data in call.body])
    _check_body(call, len(body), expected, hashlib.md5(body, usedforsecurity=False).digest())
    return body


async def _gathered(body: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Gather a body's pieces into ones of at least `size` bytes; yields at least one, which may be empty."""
    pending = bytearray()
    async for data in body:
        pending += data
        if len(pending) >= size:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending)

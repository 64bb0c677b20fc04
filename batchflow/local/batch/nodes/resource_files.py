"""The resource files of a command, downloaded to its node before it runs.

A blob by its URL, or the blobs of a container below a prefix, with the signature that the URL carries, or by
the node's identity. A URL is a secret: none is ever repeated with its query.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from functools import cache
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import aiohttp
from yarl import URL

from batchflow.local.batch.core.entities import FailureInfo, ResourceFileSpec
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

ATTEMPTS = 3
TIMEOUT = 300.0
"""Seconds that one download may take."""

RETRY_DELAY = 0.2
"""Seconds before the second attempt; the wait grows with each."""

STORAGE_VERSION = "2026-10-06"
"""Of the Blob service, which wants to be told one by who comes with a token."""

_CHUNK = 1 << 16
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class PreparationError(Exception):
    """A command could not be made ready to run; `failure` says why in the service's words."""

    def __init__(self, failure: FailureInfo) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NodeDownloads:
    """Downloads of nodes. Created in the event loop; `trusted`: the certificates that are accepted, by
    default those that the system trusts."""

    def __init__(self, trusted: ssl.SSLContext | None = None) -> None:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        self._trusted = trusted

    def get(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Make a request. One to the outside may be redirected to https."""
        where = _encoded(url)
        outside = where.scheme == "https" or where.host not in _LOOPBACK
        tls = self._trusted or (_system() if outside else True)
        return self._http.get(where, headers=headers, ssl=tls)

    async def aclose(self) -> None:
        await self._http.close()


@cache
def _system() -> ssl.SSLContext:
    """Return the system's certificates, because aiohttp may know of none: see `batchflow.local.embedded`."""
    return ssl.create_default_context()


@frozen
class ResourceFileSource:
    """Downloads with the authorization for URLs that carry no signature."""

    web: NodeDownloads
    authorization: Callable[[str], str | None]
    """The header that the identity of this resource id has; None when it is not the node's."""

    def of(self, file: ResourceFileSpec) -> Mapping[str, str]:
        """Return the headers of the requests for a file."""
        header = None if file.identity is None else self.authorization(file.identity)
        return {} if header is None else {"Authorization": header, "x-ms-version": STORAGE_VERSION}


async def fetch(source: ResourceFileSource, file: ResourceFileSpec, directory: Path) -> None:
    """Download a resource file, or those of a container. Raises PreparationError, OSError."""
    web, headers = source.web, source.of(file)
    if not file.is_container:
        await _download(web, file.url, headers, directory / file.path, file.mode)
        return
    async for name, url in _container_blobs(web, file.url, headers, file.prefix):
        await _download(web, url, headers, directory / file.path / name, file.mode)


async def _container_blobs(
    web: NodeDownloads, container_url: str, headers: Mapping[str, str], prefix: str
) -> AsyncIterator[tuple[str, str]]:
    container = _encoded(container_url)
    marker = ""
    while True:
        query = {"restype": "container", "comp": "list", "prefix": prefix, "marker": marker}
        listing = _parse_listing(await _get(web, str(container.update_query(query)), headers), container_url)
        for blob in listing.iter("Blob"):
            name = blob.findtext("Name") or ""
            yield name, str((container / name).with_query(container.query))
        marker = listing.findtext("NextMarker") or ""
        if not marker:
            return


def _parse_listing(text: bytes, url: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise PreparationError(_download_failure(url, "the list of blobs is not XML")) from error


async def _get(web: NodeDownloads, url: str, headers: Mapping[str, str]) -> bytes:
    try:
        async with web.get(url, headers) as response:
            _check(response.status, url)
            return await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PreparationError(_download_failure(url, _reason(error))) from error


async def _download(
    web: NodeDownloads, url: str, headers: Mapping[str, str], target: Path, mode: int
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await _download_once(web, url, headers, target)
            break
        except (aiohttp.ClientError, TimeoutError) as error:
            if attempt == ATTEMPTS:
                raise PreparationError(_download_failure(url, _reason(error))) from error
            await asyncio.sleep(RETRY_DELAY * attempt)
    target.chmod(mode)


async def _download_once(web: NodeDownloads, url: str, headers: Mapping[str, str], target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    async with web.get(url, headers) as response:
        if response.status >= 500:
            raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
        _check(response.status, url)
        partial.unlink(missing_ok=True)  # what a task has put there may be a link
        with partial.open("xb") as file:
            async for chunk in response.content.iter_chunked(_CHUNK):
                file.write(chunk)
    partial.replace(target)


def _encoded(url: str) -> URL:
    try:
        return URL(url, encoded=True)
    except ValueError as error:
        raise PreparationError(_download_failure(url, "the URL is malformed")) from error


def _check(status: int, url: str) -> None:
    details = (("BlobSource", without_query(url)), ("HttpStatusCode", str(status)))
    if status == 404:
        message = "One of the specified Azure Blob(s) is not found"
        raise PreparationError(FailureInfo("usererror", "BlobNotFound", message, details))
    if status in (401, 403):
        message = "Access for one of the specified Azure Blob(s) is denied"
        raise PreparationError(FailureInfo("usererror", "BlobAccessDenied", message, details))
    if status != 200:
        raise PreparationError(_download_failure(url, f"HTTP status {status}"))


def without_query(url: str) -> str:
    """Return a URL without what may be its signature."""
    return url.partition("?")[0]


def _reason(error: Exception) -> str:
    """Describe an HTTP error without the URL that its text may hold."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP status {error.status}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{type(error).__name__}: {error.os_error.strerror}"
    return type(error).__name__


def _download_failure(url: str, reason: str) -> FailureInfo:
    return FailureInfo(
        "servererror",
        "BlobDownloadMiscError",
        "Miscellaneous error encountered while downloading one of the specified Azure Blob(s)",
        (("BlobSource", without_query(url)), ("Message", reason)),
    )


def disk_failure(error: OSError) -> FailureInfo:
    """Return the failure that the service reports when a node's disk does not take a file."""
    if error.errno == errno.ENOSPC:
        return FailureInfo("servererror", "DiskFull", "There is not enough disk space on the node")
    message = "Failure encountered creating a resource file for the task"
    return FailureInfo(
        "servererror",
        "ResourceFileCreateFailed",
        message,
        (("FilePath", str(error.filename)), ("Message", str(error))),
    )

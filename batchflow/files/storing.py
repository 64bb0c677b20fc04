"""Makes bundles in the pool's control container of files that were found, and fetches files back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, Final

import anyio

from batchflow.errors import BlobConflict, ConfigurationError
from batchflow.files.collecting import BundleSource, file_digest
from batchflow.protocol.bundle import Bundle, BundleFile, bundle_blob
from batchflow.support.task_groups import task_group
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

_UPLOADS: Final = 8
"""Number of files that are uploaded at the same time."""
_YOUNG: Final = 7 * 86400.0
"""Seconds for which an existing bundle is not written again."""


async def upload(
    sources: list[BundleSource],
    container: Container,
    *,
    is_new: bool = False,
    beside: Iterable[BundleFile] = (),
) -> Bundle:
    """Make the bundle, and upload what the container does not have yet. Safe to cancel and to repeat.

    `is_new`: the container is known to be empty, so it is not asked. `beside`: files of the bundle whose
    contents the container has.
    """
    bundle = Bundle.of([*beside, *(source.file for source in sources)])
    if is_new or not await is_young(container, bundle.blob):
        ask = sources and not is_new
        present = {info.name async for info in container.list("files/")} if ask else set[str]()
        missing = {source.file.blob: source for source in sources if source.file.blob not in present}
        limiter = anyio.CapacityLimiter(_UPLOADS)
        async with task_group() as group:
            for source in missing.values():
                group.start_soon(_upload_one, source, container, limiter)
        await container.put(bundle.blob, bundle.document)
    return bundle


async def stored(bundle_hash: str, container: Container) -> Bundle:
    """Read which files a bundle has. Raises `StorageError`, `ProtocolError`. Safe to cancel."""
    return Bundle.read((await container.get(bundle_blob(bundle_hash))).data, bundle_hash)


async def fetch(container: Container, blob: str) -> BinaryIO:
    """Download a blob of any size, open for reading; closing it removes it. Safe to cancel."""
    with TemporaryDirectory(prefix="batchflow-") as folder:
        path = Path(folder) / "file"
        await container.download(blob, path)
        return path.open("rb")


async def is_young(container: Container, name: str) -> bool:
    """Tell whether the blob is there and young. An old one is written again: a sweep may remove it."""
    found = [info async for info in container.list(name) if info.name == name]
    return bool(found) and found[0].age < _YOUNG


async def _upload_one(source: BundleSource, container: Container, limiter: anyio.CapacityLimiter) -> None:
    async with limiter:
        try:
            if isinstance(source.content, bytes):
                await container.put(source.file.blob, source.content, create=True)
            else:
                await container.upload(source.file.blob, source.content, create=True)
                await _verify(source.file, source.content, container)
        except BlobConflict:
            return  # another client uploaded the same content meanwhile


async def _verify(file: BundleFile, path: Path, container: Container) -> None:
    """Remove what was uploaded if the file was changed after it was hashed."""
    digest, _ = await in_thread(file_digest, path)
    if digest != file.sha256:
        await container.delete(file.blob)
        raise ConfigurationError(f"files: {str(path)!r} was changed while it was uploaded; do it once more")

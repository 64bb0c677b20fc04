"""Turns the files that a user names into a bundle in the pool's control container, and fetches files back."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, Final

import anyio

from batchflow.errors import BlobConflict, ConfigurationError
from batchflow.protocol.bundle import Bundle, BundleFile, bundle_blob
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

PathLike = str | os.PathLike[str]
FileSpec = PathLike | Mapping[str, PathLike | bytes]
Files = FileSpec | Iterable[FileSpec]

_LEFT_OUT: Final = (
    ".*",
    "__pycache__",
    "*.pyc",
    "credentials.json",
    "batchflow.toml",
    "*.pem",
    "*.pfx",
    "*.key",
    "id_rsa*",
    "id_ed25519*",
)
"""Patterns of names that are left out of a directory: hidden files, caches, known credential files."""

_UPLOADS: Final = 8
"""Number of files that are uploaded at the same time."""
_PIECE: Final = 1 << 20
_YOUNG: Final = 7 * 86400.0
"""Seconds for which an existing bundle is not written again."""


@frozen
class BundleSource:
    """A file of a bundle and where its content is."""

    file: BundleFile
    content: Path | bytes


async def collect(files: Files) -> list[BundleSource]:
    """Find and hash the files. Raises `ConfigurationError`, naming the one at fault."""
    return await in_thread(_collect, files)


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


async def read(source: BundleSource) -> bytes | None:
    """Read the content that was hashed; None when it has changed since, or is gone."""
    content = source.content
    if isinstance(content, Path):
        try:
            content = await in_thread(content.read_bytes)
        except OSError:
            return None
    return content if hashlib.sha256(content).hexdigest() == source.file.sha256 else None


async def fetch(container: Container, blob: str) -> BinaryIO:
    """Download a blob of any size, open for reading; closing it removes it. Safe to cancel."""
    with TemporaryDirectory(prefix="batchflow-") as folder:
        path = Path(folder) / "file"
        await container.download(blob, path)
        return path.open("rb")


def write_files(files: Files, folder: Path) -> None:
    """Copy the files to where a task finds them, as a node does. Raises `ConfigurationError`, OSError."""
    sources = _collect(files)
    Bundle.of(source.file for source in sources)
    for source in sources:
        path = folder / source.file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = source.content if isinstance(source.content, bytes) else source.content.read_bytes()
        path.write_bytes(content)
        path.chmod(0o755 if source.file.executable else 0o644)


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
    digest, _ = await in_thread(_hash, path)
    if digest != file.sha256:
        await container.delete(file.blob)
        raise ConfigurationError(f"files: {str(path)!r} was changed while it was uploaded; do it once more")


def _collect(files: Files) -> list[BundleSource]:
    return [source_of(name, content) for name, content in _named(files)]


def _named(files: Files) -> Iterator[tuple[str, Path | bytes]]:
    if isinstance(files, Mapping):
        for name, content in files.items():
            if not isinstance(name, str) or not isinstance(content, bytes | str | os.PathLike):
                raise ConfigurationError(
                    f"files: {name!r}: {type(content).__name__}: names are strings, contents bytes or paths"
                )
            yield name, content if isinstance(content, bytes) else _existing_file(content)
    elif isinstance(files, str | os.PathLike):
        path = Path(files)
        if path.is_dir():
            yield from walk(path)
        else:
            yield path.name, _existing_file(path)
    elif isinstance(files, Iterable) and not isinstance(files, bytes | bytearray):
        for spec in files:
            yield from _named(spec)
    else:
        raise ConfigurationError(
            f"files: {files!r}: a path, a mapping of names to paths or bytes, or several of these are needed"
        )


def _existing_file(path: PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        what = "a directory is named where a file is expected" if path.is_dir() else "no such file"
        raise ConfigurationError(f"files: {str(path)!r}: {what}{where}")
    return path


def walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Find the files of a directory that belong to a bundle: (relative name, path).

    Links are followed. A warning names those that lead nowhere, or back to a folder that holds them, and
    folders that cannot be read.
    """
    left_out: list[str] = []
    for path in _walk(top, frozenset({os.path.realpath(top)}), left_out):
        yield path.relative_to(top).as_posix(), path
    if left_out:
        links = ", ".join(left_out)
        warnings.warn(f"files: left out of {str(top)!r}: {links}", stacklevel=2)


def _walk(folder: Path, above: frozenset[str], left_out: list[str]) -> Iterator[Path]:
    """Find the files below a folder. `above`: the real paths of all folders that lead to it, and its own."""
    try:
        entries = [entry for entry in os.scandir(folder) if not _left_out(entry.name)]
    except OSError as error:
        left_out.append(f"{folder.name} (cannot be read: {error.strerror})")
        return
    for entry in sorted(entries, key=_order):
        path = folder / entry.name
        if entry.is_dir():
            if (path / "pyvenv.cfg").exists():
                continue
            if (real := os.path.realpath(path)) in above:
                left_out.append(f"{entry.name} (a link to {real}, which holds it)")
            else:
                yield from _walk(path, above | {real}, left_out)
        elif entry.is_file():
            yield path
        elif entry.is_symlink() and not path.exists():
            left_out.append(f"{entry.name} (a link to {os.readlink(path)}, which is not there)")


def _order(entry: os.DirEntry[str]) -> tuple[bool, str]:
    """Sort files before folders."""
    return entry.is_dir(), entry.name


def _left_out(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LEFT_OUT)


def source_of(name: str, content: Path | bytes) -> BundleSource:
    """Hash a file of a bundle. Raises `ConfigurationError` when it cannot be read."""
    if isinstance(content, bytes):
        digest = hashlib.sha256(content).hexdigest()
        return BundleSource(BundleFile(name, digest, len(content), content.startswith(b"#!")), content)
    try:
        digest, size = _hash(content)
        executable = os.access(content, os.X_OK)
    except OSError as error:
        raise ConfigurationError(f"files: {str(content)!r} cannot be read: {error.strerror}") from error
    return BundleSource(BundleFile(name, digest, size, executable), content)


def _hash(path: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size

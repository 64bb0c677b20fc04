"""Finds the files that a user names, and hashes them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from batchflow.errors import ConfigurationError
from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.support.frozen import frozen
from batchflow.support.threads import in_thread

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
_PIECE: Final = 1 << 20


@frozen
class BundleSource:
    """A file of a bundle and where its content is."""

    file: BundleFile
    content: Path | bytes


async def collect(files: Files) -> list[BundleSource]:
    """Find and hash the files. Raises `ConfigurationError`, naming the one at fault."""
    return await in_thread(_collect, files)


async def read(source: BundleSource) -> bytes | None:
    """Read the content that was hashed; None when it has changed since, or is gone."""
    content = source.content
    if isinstance(content, Path):
        try:
            content = await in_thread(content.read_bytes)
        except OSError:
            return None
    return content if hashlib.sha256(content).hexdigest() == source.file.sha256 else None


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
        digest, size = file_digest(content)
        executable = os.access(content, os.X_OK)
    except OSError as error:
        raise ConfigurationError(f"files: {str(content)!r} cannot be read: {error.strerror}") from error
    return BundleSource(BundleFile(name, digest, size, executable), content)


def file_digest(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 in hexadecimal, and its bytes. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size

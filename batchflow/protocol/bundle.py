"""The content-addressed set of files that a task runs with.

A bundle is a list of (name, SHA-256, size, executable) and is itself named by the hash of that list. Contents
lie in blobs named by their own hash, so an unchanged file is never uploaded, or fetched, twice.

Invariants: names are relative POSIX paths without tricks, each file once, sorted; no name is a folder of
another. A bundle read from a document is checked as strictly as one that is made here, because the
writer of a document must not be able to write outside a task's directory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow.errors import ConfigurationError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_NAME: Final = 512
"""Maximum characters of a file's name with its folders."""
_LONGEST_PART: Final = 255
"""Maximum bytes of a file's or a folder's own name: the limit of file systems."""
_DIGITS: Final = frozenset("0123456789abcdef")


def check_name(name: str) -> str:
    """Return the name if it can be a file of a bundle. Raises ValueError, which says why not."""
    path = PurePosixPath(name)
    if not name or len(name) > LONGEST_NAME:
        raise ValueError(f"a file's name has 1 to {LONGEST_NAME} characters, this one {len(name)}")
    if any(ord(character) < 32 or character in "\\\x7f" for character in name):
        raise ValueError(f"the name {name!r} holds a control character or a backslash")
    if path.is_absolute() or ".." in path.parts or name == ".":
        raise ValueError(f"the name {name!r} is a path that does not stay in its folder")
    if str(path) != name:
        raise ValueError(f"the name {name!r} has parts that mean nothing: write {str(path)!r}")
    if any(part.startswith("-") for part in path.parts):
        raise ValueError(f"the name {name!r} begins like an option")
    try:
        longest = max(len(part.encode()) for part in path.parts)
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {name!r} is not text in UTF-8") from error
    if longest > _LONGEST_PART:
        raise ValueError(f"the name {name!r} has a part of {longest} bytes, {_LONGEST_PART} are allowed")
    return name


@dataclass(frozen=True, slots=True, order=True)
class BundleFile:
    """One file of a bundle."""

    name: str
    sha256: str
    size: int
    executable: bool = False

    @property
    def blob(self) -> str:
        """The blob of its content in the control container."""
        return f"files/{self.sha256}"


@dataclass(frozen=True)
class Bundle:
    """A bundle: files, sorted by name."""

    files: tuple[BundleFile, ...]

    @classmethod
    def of(cls, files: Iterable[BundleFile]) -> Bundle:
        """Make a bundle.

        Raises `ConfigurationError` for a bad name, a name used twice, or a file that is also a folder.
        """
        ordered = tuple(sorted(files))
        names = [file.name for file in ordered]
        for name in names:
            try:
                check_name(name)
            except ValueError as error:
                raise ConfigurationError(f"files: {error}") from error
        _refuse_collisions(names)
        return cls(ordered)

    @cached_property
    def document(self) -> bytes:
        rows = [[file.name, file.sha256, file.size, file.executable] for file in self.files]
        return orjson.dumps({"v": 1, "files": rows})

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.document).hexdigest()

    @property
    def blob(self) -> str:
        return bundle_blob(self.hash)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(file.name for file in self.files)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @classmethod
    def read(cls, document: bytes, expected_hash: str) -> Bundle:
        """Read a document. Raises `ProtocolError` when it is not the bundle of that hash."""
        if hashlib.sha256(document).hexdigest() != expected_hash:
            raise ProtocolError(f"the bundle {expected_hash[:12]} is not what its name says")
        try:
            table = orjson.loads(document)
            if table["v"] != 1:
                raise ProtocolError(f"the bundle {expected_hash[:12]} is of version {table['v']!r}, not 1")
            return cls.of(_read_file(*row) for row in table["files"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ConfigurationError) as error:
            raise ProtocolError(f"the bundle {expected_hash[:12]} cannot be read: {error!r}") from error


def bundle_blob(bundle_hash: str) -> str:
    """Return the blob of a bundle's list of files in the control container."""
    return f"bundles/{bundle_hash}.json"


def _read_file(name: Any, sha256: Any, size: Any, executable: Any) -> BundleFile:
    """Read one file's entry, whose hash names a blob and a file of the agent's cache. Raises TypeError."""
    if not isinstance(name, str) or not isinstance(executable, bool):
        raise TypeError(f"{name!r} is not a file's name, or {executable!r} not whether it is executable")
    if not isinstance(sha256, str) or len(sha256) != 64 or not _DIGITS.issuperset(sha256):
        raise TypeError(f"{sha256!r} is not the SHA-256 of {name!r}")
    if type(size) is not int or size < 0:
        raise TypeError(f"{size!r} is not the size of {name!r}")
    return BundleFile(name, sha256, size, executable)


def _refuse_collisions(names: list[str]) -> None:
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ConfigurationError(f"files: two files would be {name!r}; name one of them otherwise")
        seen.add(name)
    for name in names:
        for folder in PurePosixPath(name).parents:
            if str(folder) in seen:
                raise ConfigurationError(f"files: {str(folder)!r} would be a file and a folder at once")

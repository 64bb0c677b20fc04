"""Installs wheels into a folder, as an installer does with a target folder: in threads, without a process.

A wheel is a zip file whose names say where its files belong. It is hashed before it is read, and has the same
signature afterwards, so what is installed is what was hashed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import ProtocolError
from batchflow.protocol.bundle import check_name
from node_agent.bundles.damage import ArchiveDamaged
from node_agent.system import file_stamps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from zipfile import ZipFile, ZipInfo

_DATA: Final = re.compile(r"[^/]+\.data/(purelib|platlib|data|scripts|headers)/(.+)")
_MOST_THREADS: Final = 4
_WHOLE: Final = 16 << 20
"""Bytes up to which a file is inflated at once; a larger one goes through in pieces."""
_PIECE: Final = 1 << 20
_MOST_MEMBERS: Final = 64
"""Files that a thread takes at once."""
_HEADER: Final = Struct("<26xHH")
"""Of a file in a zip file: the lengths of its name and of its extra field. The content follows these."""
_STORED, _DEFLATED = 0, 8
_PYTHON: Final = b"#!python"
"""How a script begins that is to have the path of the interpreter there."""


class _Wheel:
    """A wheel that was found as its hash says, open for reading."""

    def __init__(self, path: Path, sha256: str, zipfile: Any, stack: ExitStack) -> None:
        """`zipfile`: the module. Raises `ArchiveDamaged`, `ProtocolError` for what is no wheel."""
        self.name = path.name
        self._path = str(path)
        self._signature = file_stamps.signature(self._path)
        file = stack.enter_context(path.open("rb"))
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ArchiveDamaged(self.name)
        try:
            self.zip: ZipFile = stack.enter_context(zipfile.ZipFile(file))
        except zipfile.BadZipFile as error:
            raise ProtocolError(f"{self.name} cannot be read: {error}") from error
        self.descriptor = file.fileno()

    def check_again(self) -> None:
        """Raise `ArchiveDamaged` if the file was changed since it was opened."""
        if file_stamps.signature(self._path) != self._signature:
            raise ArchiveDamaged(self.name)

    def content(self, member: ZipInfo) -> bytes:
        """Return the content of a file. Raises `ProtocolError`. Usable by several threads."""
        at = member.header_offset
        at += _HEADER.size + sum(_HEADER.unpack(os.pread(self.descriptor, _HEADER.size, at)))
        data = os.pread(self.descriptor, member.compress_size, at)
        if member.compress_type == _DEFLATED:
            data = zlib.decompress(data, -zlib.MAX_WBITS, member.file_size)
        elif member.compress_type != _STORED:
            raise ProtocolError(f"{self.name} is packed in a way that agents cannot read")
        if len(data) != member.file_size:
            raise ProtocolError(f"{self.name} cannot be read: {member.filename!r:.80} has another size")
        return data


class _Installation:
    """The folder that wheels are installed into. Usable by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._made: set[str] = set()

    def install(self, share: Iterable[tuple[_Wheel, ZipInfo, str]]) -> list[tuple[str, int]]:
        """Write files of wheels to their places; return the paths and the bytes."""
        return [self._write(wheel, member, place) for wheel, member, place in share]

    def _write(self, wheel: _Wheel, member: ZipInfo, place: str) -> tuple[str, int]:
        path = f"{self._folder}/{place}"
        above = os.path.dirname(path)
        if above not in self._made:
            os.makedirs(above, exist_ok=True)
            self._made.add(above)
        executable = bool(member.external_attr >> 16 & stat.S_IXUSR)
        with open(path, "wb", buffering=0, opener=_create) as out:
            if member.file_size > _WHOLE:
                with wheel.zip.open(member) as content:
                    shutil.copyfileobj(content, out, _PIECE)
            else:
                data = wheel.content(member)
                if place.startswith("bin/") and data.startswith(_PYTHON):
                    data = f"#!{sys.executable}".encode() + data[len(_PYTHON) :]
                    executable = True
                out.write(data)
            os.fchmod(out.fileno(), 0o555 if executable else 0o444)
        return path, member.file_size


def place_of(name: str) -> str | None:
    """Return where a file of a wheel belongs in the folder of packages; None for what tasks do not need.

    Raises ValueError for a place outside of the folder.
    """
    if (found := _DATA.fullmatch(name)) is not None:
        kind, name = found.groups()
        if kind == "headers":
            return None
        if kind == "scripts":
            name = f"bin/{name}"
    return check_name(name)


def install_wheels(wheels: Mapping[Path, str], folder: Path) -> dict[str, int]:
    """Install wheels into a new folder; return the bytes of the files by their paths.

    `wheels`: their hashes. Nothing is left when it fails. Raises `ArchiveDamaged` when a hash is another one,
    `ProtocolError` for a wheel that cannot be used, OSError when there is no room.
    """
    import zipfile  # takes 10 ms, and few agents need it

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    try:
        folder.mkdir(parents=True)
        file_stamps.let_clock_go_on([str(path) for path in wheels])
        with ExitStack() as stack, ThreadPoolExecutor(threads, thread_name_prefix="install wheels") as pool:
            opened = [_Wheel(path, sha256, zipfile, stack) for path, sha256 in wheels.items()]
            found = [each for wheel in opened for each in _members(wheel)]
            shares = [found[at : at + _MOST_MEMBERS] for at in range(0, len(found), _MOST_MEMBERS)]
            installed = [each for share in pool.map(_Installation(folder).install, shares) for each in share]
            for wheel in opened:
                wheel.check_again()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, zlib.error | zipfile.BadZipFile | ValueError):
            raise ProtocolError(f"a wheel of the environment cannot be read: {error}") from error
        raise
    return dict(installed)


def _members(wheel: _Wheel) -> Iterable[tuple[_Wheel, ZipInfo, str]]:
    """Find the files of a wheel, and their places."""
    for member in wheel.zip.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir():
            continue
        if kind not in (0, stat.S_IFREG):
            raise ProtocolError(f"{wheel.name} holds {member.filename!r:.80}, no regular file")
        if (place := place_of(member.filename)) is not None:
            yield wheel, member, place


def _create(path: str, flags: int) -> int:
    """Open a new file. What another wheel has there is replaced, read-only as it is."""
    while True:
        try:
            return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            with suppress(FileNotFoundError):
                os.unlink(path)

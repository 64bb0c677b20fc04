"""A Python for nodes that have another version: fetched by uv from a mirror, and packed as one archive."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchflow.environments.commands import CommandFailed, run_command
from batchflow.environments.user_cache import user_cache
from batchflow.errors import ConfigurationError
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    import tarfile

_FORMAT: Final = "1"
"""Changes when archives are made otherwise."""
_LEFT_OUT: Final = re.compile(r"(?:^|/)(?:__pycache__|lib/python[0-9.]+/test)/|\.a$")
"""Matches what no task needs: byte code, Python's own tests, libraries for compilers."""
_CREDENTIALS: Final = re.compile(r"//[^\s/@]+@")


async def build(python: str, platform: str, mirror: str) -> Path:
    """Return the archive of a Python, from this user's cache if it is there. Its name tells its content.

    `python`: a minor version, `3.12`. `platform`: as wheels name it. `mirror`: see `agent.python_mirror`.
    Raises `ConfigurationError` in uv's words when the mirror does not have it. Safe to cancel.
    """
    key = hashlib.sha256("\0".join((_FORMAT, python, platform, mirror)).encode()).hexdigest()[:16]
    kept = user_cache() / f"interpreter-{key}"
    if not kept.is_dir():
        await _build(python, platform, mirror, kept)
    (archive,) = kept.iterdir()
    return archive


async def _build(python: str, platform: str, mirror: str, kept: Path) -> None:
    from uv import find_uv_bin

    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        installed = Path(scratch) / "installed"
        machine = platform.split("_", 3)[-1]
        wanted = f"cpython-{python}-linux-{machine}-gnu"
        command = (find_uv_bin(), "python", "install", wanted, "--install-dir", str(installed), "--no-bin")
        try:
            await run_command(command, variables={"UV_PYTHON_INSTALL_MIRROR": mirror})
        except CommandFailed as error:
            where, said = (_CREDENTIALS.sub("//", text) for text in (mirror, str(error)))
            raise ConfigurationError(
                f"python is {python!r}, which the nodes have not, and the mirror of agent.python_mirror "
                f"({where}) does not give it for {machine}: {said}"
            ) from error
        packed = Path(scratch) / "packed"
        await in_thread(_pack, installed, packed)
        with suppress(OSError):  # another program was quicker
            packed.rename(kept)


def _pack(installed: Path, target: Path) -> None:
    """Write the one Python of a folder into an archive: without times, in the order of the names."""
    from tarfile import open as open_archive  # takes 20 ms, and few programs need it

    (top,) = (path for path in installed.glob("cpython-*") if path.is_dir() and not path.is_symlink())
    target.mkdir()
    draft = target / "draft"
    with draft.open("wb") as file, open_archive(fileobj=file, mode="w:gz") as out:
        for path in _files(top):
            out.add(path, path.relative_to(top).as_posix(), recursive=False, filter=_plain)
    digest = hashlib.sha256()
    for path in _files(top):
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        name = path.relative_to(top).as_posix()
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    draft.rename(target / f"python-{digest.hexdigest()[:32]}.tar.gz")
    shutil.rmtree(installed)


def _files(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        kept = not _LEFT_OUT.search(path.relative_to(top).as_posix())
        if kept and (path.is_symlink() or path.is_file()):
            yield path


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member

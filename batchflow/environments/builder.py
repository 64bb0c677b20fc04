"""Locks and builds environments on the client, once for each lock, Python and platform."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.environments import uv
from batchflow.environments.requirements import RequirementSet
from batchflow.environments.uv import TargetPython
from batchflow.support.frozen import frozen
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    import tarfile

_LOCK_FRESH: Final = 86_400.0
"""Seconds for which a lock is used again: what was not pinned may have a newer version after that."""
_FORMAT: Final = "1"
"""Changes when archives are made otherwise."""
_COMPRESSION: Final = 1
"""A level of gzip: higher ones take several times as long for a tenth less."""


@frozen
class LockedEnvironment:
    """What an environment consists of."""

    text: str
    """Every package at its version, with hashes."""
    target: TargetPython

    @property
    def key(self) -> str:
        """What names the environment: the same for whoever locks to the same packages."""
        parts = (_FORMAT, self.target.python, self.target.platform, self.text)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def packages(self) -> tuple[str, ...]:
        """Return the packages, each as `name==version`."""
        lines = (line.split(";")[0].rstrip(" \\") for line in self.text.splitlines())
        return tuple(line for line in lines if "==" in line and not line.startswith((" ", "#", "-")))


class EnvironmentBuilder:
    """Locks and builds, with what the user's cache has from before. Usable from one event loop."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._locks: dict[tuple[str, TargetPython], LockedEnvironment] = {}
        self._busy = anyio.Lock()
        """Held while uv runs or an archive is made, so that none is made twice."""

    async def lock(self, requirements: RequirementSet, target: TargetPython) -> LockedEnvironment:
        """Return what the requirements come to. Raises `EnvironmentFailed`. Safe to cancel."""
        known = self._locks.get((requirements.digest, target))
        if known is not None:
            return known
        async with self._busy:
            if (known := self._locks.get((requirements.digest, target))) is None:
                known = LockedEnvironment(await self._lock(requirements, target), target)
                self._locks[requirements.digest, target] = known
            return known

    async def _lock(self, requirements: RequirementSet, target: TargetPython) -> str:
        file = self._cache / f"lock-{requirements.digest[:32]}-{target.python}-{target.platform}.txt"
        if (kept := await in_thread(_read_if_fresh, file)) is not None:
            return kept
        with tempfile.TemporaryDirectory(prefix="batchflow-") as scratch:
            text = await uv.lock(requirements, target, Path(scratch))
        await in_thread(_write, file, text.encode())
        return text

    async def build(self, locked: LockedEnvironment, report: Callable[[str], object]) -> Path:
        """Return the archive of an environment, made now if the cache does not have it.

        `report` gets a line when something is to be done that takes long. Raises `EnvironmentFailed`,
        OSError when there is no room. Safe to cancel.
        """
        archive = self._cache / f"environment-{locked.key}.tar.gz"
        async with self._busy:
            if archive.is_file():
                return archive
            report(f"building an environment: {summary(locked.packages)}")
            self._cache.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._cache, prefix="build-"))
            try:
                await uv.install(locked.text, locked.target, folder / "site")
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            await in_thread(pack, folder, archive)
        return archive


def summary(packages: tuple[str, ...]) -> str:
    """Name some packages: `numpy, pandas and 4 more`."""
    names = [package.partition("==")[0] for package in packages]
    shown, more = names[:3], len(names) - 3
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _read_if_fresh(file: Path) -> str | None:
    try:
        if time.time() - file.stat().st_mtime > _LOCK_FRESH:
            return None
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
        scratch.write(data)
    Path(scratch.name).replace(file)


def pack(folder: Path, archive: Path) -> None:
    """Write the regular files of `site` in a folder, in the order of their names and without times.

    The folder is removed here, and not by who waits: a thread goes on when its caller is cancelled.
    """
    from tarfile import open as open_archive  # takes 20 ms, and few programs need it

    site, draft = folder / "site", folder / "archive"
    try:
        with open_archive(draft, "w:gz", compresslevel=_COMPRESSION) as out:
            for path in sorted(site.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts and path.name != ".lock":
                    out.add(path, path.relative_to(site).as_posix(), filter=_plain)
        draft.replace(archive)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member

"""Locks and builds environments on the client, once for each lock, Python and platform."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.environments import uv
from batchflow.environments.exclusion import exclusive
from batchflow.environments.requirements import RequirementSet
from batchflow.environments.sources import SourceDistribution, fetch_source
from batchflow.environments.uv import TargetPython
from batchflow.environments.wheels import Wheel, WheelCache, locked_wheels
from batchflow.support.frozen import frozen
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    import tarfile

_LOCK_FRESH: Final = 86_400.0
"""Seconds for which a lock is used again: what was not pinned may have a newer version after that."""
_MB: Final = 1e6
_FORMAT: Final = "1"
"""Changes when archives are made otherwise."""
_UNUSED: Final = 30 * 86_400.0
"""Seconds for which an archive that is not used is kept."""
_CREDENTIALS: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@")
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
        """What names the environment: the same for whoever locks to the same packages, from any index."""
        packages = (line for line in self.public_text.splitlines() if not line.startswith("-"))
        parts = (_FORMAT, self.target.python, self.target.platform, *packages)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def public_text(self) -> str:
        """The text without the credentials that the URL of an index or a package may have."""
        return _CREDENTIALS.sub(r"\1", self.text)

    @property
    def packages(self) -> tuple[str, ...]:
        """Return the packages, each as `name==version`."""
        lines = (line.split(";")[0].rstrip(" \\") for line in self.text.splitlines())
        return tuple(line for line in lines if "==" in line and not line.startswith((" ", "#", "-")))


class EnvironmentBuilder:
    """Locks and builds, with what the user's cache has from before. Usable from one event loop."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._wheels = WheelCache(cache / "wheels")
        self._locks: dict[tuple[str, TargetPython], LockedEnvironment] = {}
        self._busy = anyio.Lock()
        """Held while uv runs or an archive is made, so that none is made twice."""

    async def lock(
        self, requirements: RequirementSet, target: TargetPython, report: Callable[[str], object]
    ) -> LockedEnvironment:
        """Return what the requirements come to. `report` gets a line when they are to be resolved now.

        Raises `EnvironmentFailed`, OSError when there is no room. Safe to cancel.
        """
        known = self._locks.get((requirements.digest, target))
        if known is not None:
            return known
        async with self._busy:
            if (known := self._locks.get((requirements.digest, target))) is None:
                known = LockedEnvironment(await self._lock(requirements, target, report), target)
                if known.public_text != known.text:
                    await in_thread(_write, self._text_file(known), known.text.encode())
                self._locks[requirements.digest, target] = known
            return known

    def _text_file(self, locked: LockedEnvironment) -> Path:
        """Return the file of this user alone that has the text with credentials, if there are any."""
        return self._cache / f"packages-{locked.key}.txt"

    async def _lock(
        self, requirements: RequirementSet, target: TargetPython, report: Callable[[str], object]
    ) -> str:
        file = self._cache / f"lock-{requirements.digest[:32]}-{target.python}-{target.platform}.txt"
        if (kept := await in_thread(_read_if_fresh, file)) is not None:
            return kept
        report("resolving the required packages")
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
                os.utime(archive)  # it is in use
                return archive
            self._cache.mkdir(parents=True, exist_ok=True)
            async with exclusive(self._cache / "building.lock"):  # against other programs of this user
                if not archive.is_file():
                    await self._build(locked, archive, report)
        return archive

    async def _build(self, locked: LockedEnvironment, archive: Path, report: Callable[[str], object]) -> None:
        report(f"building an environment: {summary(locked.packages)}")
        await in_thread(_prune, self._cache)
        folder = Path(tempfile.mkdtemp(dir=self._cache, prefix="build-"))
        try:
            await self.install(locked, folder, report)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        await in_thread(pack, folder, archive)

    async def install(
        self,
        locked: LockedEnvironment,
        folder: Path,
        report: Callable[[str], object],
        wheels: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Install an environment into the `site` of a folder.

        `wheels`: those that nodes built, by their packages (`name==version`). Raises `uv.NoWheel`,
        `EnvironmentFailed`. Safe to cancel.
        """
        names, size = summary(locked.packages), 0.0

        def heard(line: str) -> None:
            nonlocal size
            if (more := uv.downloaded(line)) is not None:
                size += more
                report(f"building an environment: {names}, {size / _MB:.0f} MB")

        await uv.install(_with_wheels(self._text(locked), wheels), locked.target, folder / "site", heard)

    async def wheels(self, locked: LockedEnvironment, report: Callable[[str], object]) -> dict[Wheel, Path]:
        """Return the files of an environment's wheels. Safe to cancel.

        `report` gets a line for what is to be fetched. Raises `WheelsUnknown` where some cannot be,
        `EnvironmentFailed`, OSError when there is no room.
        """
        names, size = summary(locked.packages), 0
        report(f"building an environment: {names}")

        def heard(more: int) -> None:
            nonlocal size
            size += more
            report(f"building an environment: {names}, {size / _MB:.0f} MB")

        with tempfile.TemporaryDirectory(prefix="batchflow-") as scratch:
            text = await in_thread(self._text, locked)
            found = await locked_wheels(text, locked.target, Path(scratch))
        return await self._wheels.fetch(found, heard)

    def _text(self, locked: LockedEnvironment) -> str:
        """Return the text of a lock, with credentials if this user has them."""
        file = self._text_file(locked)
        return file.read_text(encoding="utf-8") if file.is_file() else locked.text

    async def source_of(self, package: str, locked: LockedEnvironment, scratch: Path) -> SourceDistribution:
        """Fetch the source of a package of an environment. Raises `EnvironmentFailed`. Safe to cancel."""
        return await fetch_source(package, self._text(locked), locked.target, scratch)


def _with_wheels(text: str, wheels: Mapping[str, Path]) -> str:
    """Return a lock in which some packages come from files; those have not the hash of their source."""
    if not wheels:
        return text
    kept, skipping = [], False
    for line in text.splitlines():
        if line.startswith(" "):
            if not skipping:
                kept.append(line)
            continue
        skipping = line.split(";")[0].rstrip(" \\") in wheels
        if not skipping:
            kept.append(line)
    # Beside hashes each line needs one.
    for package, wheel in wheels.items():
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        name = package.partition("==")[0]
        kept.append(f"{name} @ {wheel.as_uri()} --hash=sha256:{digest}")
    return "\n".join(kept) + "\n"


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


def _prune(cache: Path) -> None:
    """Remove the archives that were not used for long, and what a build that was killed has left."""
    oldest = time.time() - _UNUSED
    for path in (*cache.glob("environment-*.tar.gz"), *cache.glob("build-*")):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


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

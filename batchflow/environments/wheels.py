"""The wheels of a locked environment, fetched by the client for its nodes to install."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import anyio

from batchflow.environments import uv
from batchflow.environments.uv import TargetPython
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group
from batchflow.support.threads import in_thread

_FETCH: Final = 60.0
"""Seconds without a byte after which fetching a wheel fails."""
_FETCHES: Final = 8
"""Wheels that are fetched at once."""
_PIECE: Final = 1 << 18
_UNUSED: Final = 30 * 86_400.0
"""Seconds for which a wheel that is not used is kept."""
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class WheelsUnknown(Exception):
    """Some packages have no wheel that can be fetched from here; the text says which, and why."""


@frozen
class Wheel:
    """One wheel."""

    name: str
    """Of its file."""
    url: str
    sha256: str
    size: int
    """Bytes."""


async def locked_wheels(lock: str, target: TargetPython, scratch: Path) -> list[Wheel]:
    """Find the wheel of each locked package. Safe to cancel.

    `lock`: as `uv.lock` returns it. Raises `WheelsUnknown`, `EnvironmentFailed`.
    """
    listed = tomllib.loads(await uv.lock_file(lock, target, scratch))
    allowed = set(_HASH.findall(lock))
    return [_wheel(package, allowed, scratch) for package in listed.get("packages", ())]


def _wheel(package: dict[str, Any], allowed: set[str], scratch: Path) -> Wheel:
    """Raises `WheelsUnknown` for what has no wheel, or one with a hash that is not in the lock."""
    try:
        (found,) = package["wheels"]
        url = found["url"] if "url" in found else (scratch / found["path"]).resolve().as_uri()
        sha256 = found["hashes"]["sha256"]
    except (KeyError, ValueError) as error:
        raise WheelsUnknown(f"{package.get('name')} has no wheel that can be fetched") from error
    if "@" in urlsplit(url).netloc:
        raise WheelsUnknown(f"the wheel of {package['name']} needs credentials, which are uv's affair")
    if sha256 not in allowed:
        raise WheelsUnknown(f"the wheel of {package['name']} is not in the lock")
    return Wheel(unquote(urlsplit(url).path.rpartition("/")[2]), url, sha256, found.get("size", 0))


class WheelCache:
    """The wheels that a user has fetched, each by its hash. Usable from several programs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def fetch(self, wheels: Iterable[Wheel], heard: Callable[[int], object]) -> dict[Wheel, Path]:
        """Return the files of wheels, fetched where they are not here yet. Safe to cancel.

        `heard` gets the bytes of each that is fetched, when that begins. Raises `WheelsUnknown` when one
        cannot be fetched, OSError when there is no room.
        """
        await in_thread(self._prune)
        limiter = anyio.CapacityLimiter(_FETCHES)
        found: dict[Wheel, Path] = {}

        async def bring(wheel: Wheel) -> None:
            path = self._folder / f"{wheel.sha256}.whl"
            async with limiter:
                if path.is_file():
                    os.utime(path)  # it is in use
                else:
                    heard(wheel.size)
                    await in_thread(_fetch, wheel, path)
            found[wheel] = path

        async with task_group() as group:
            for wheel in wheels:
                group.start_soon(bring, wheel)
        return found

    def _prune(self) -> None:
        """Make the folder, and remove what was not used for long."""
        self._folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _UNUSED
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _fetch(wheel: Wheel, path: Path) -> None:
    """Write a wheel to its path when it is whole. Raises `WheelsUnknown`, OSError when there is no room."""
    try:
        answer = urlopen(wheel.url, timeout=_FETCH)
    except (OSError, ValueError, HTTPException) as error:
        raise WheelsUnknown(f"{wheel.name} cannot be fetched: {error}") from error
    with answer, tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        try:
            digest = hashlib.sha256()
            for piece in _pieces(answer, wheel):
                digest.update(piece)
                draft.write(piece)
            if digest.hexdigest() != wheel.sha256:
                raise WheelsUnknown(f"{wheel.name} is not what was locked: its sha256 differs")
            draft.flush()
            os.replace(draft.name, path)
        except BaseException:
            os.unlink(draft.name)
            raise


def _pieces(answer: BinaryIO, wheel: Wheel) -> Iterator[bytes]:
    while True:
        try:
            piece = answer.read(_PIECE)
        except (OSError, HTTPException) as error:
            raise WheelsUnknown(f"{wheel.name} cannot be fetched: {error}") from error
        if not piece:
            return
        yield piece

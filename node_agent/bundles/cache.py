"""An agent's cache of bundles on its disk.

``files/<sha256>`` holds each content once (``<sha256>-x`` with the executable bit), ``bundles/<hash>/`` a
folder of hard links with the bundle's names.

Rules:

- Content is checked against its SHA-256 when it is fetched, and when it is found on disk after a restart.
  Later a look at the stamp (`system.file_stamps`) is enough; what does not pass is fetched again. A task may
  put a stamp back, so what tasks run with is a copy that is checked against the hash (`workspace`).
- One fetch for a bundle at a time, shared by all callers. It continues until the last of them is cancelled.
- Least recently used bundles go when the contents are above the limit, never one that is in use: only what
  is in use may go above the limit.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchflow.errors import ProtocolError
from batchflow.protocol.bundle import Bundle, BundleFile, bundle_blob
from batchflow.support.task_groups import first_error
from node_agent.bundles.removal import FolderRemoval
from node_agent.bundles.workspace import remove
from node_agent.system import file_stamps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from node_agent.bundles.embedded_files import BlobSource

_FETCHES_AT_ONCE: Final = 8
_LOOK_INTERVAL: Final = 1.0
"""Seconds for which a bundle that was found unchanged on disk is not checked again."""
_KEPT_LISTS: Final = 1000
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class _Held:
    """A bundle on the disk."""

    bundle: Bundle
    folder: Path
    users: int = 0
    looked_at: float = 0.0
    """Time of the last use, by the monotonic clock."""
    is_trusted: bool = True


@dataclass(slots=True)
class _Fetch:
    """A fetch in progress and the number of its waiters."""

    task: asyncio.Task[_Held]
    waiting: int = 0


class BundleCache:
    """A least-recently-used cache of bundles. Usable by any number of coroutines of one event loop."""

    def __init__(self, root: Path, control: BlobSource, limit: int) -> None:
        """`limit`: bytes of content. The files of an earlier process in `root` are used again."""
        self._files = root / "files"
        self._folders = root / "bundles"
        self._control = control
        self._limit = limit
        self._lists: dict[str, Bundle] = {}
        self._held: dict[str, _Held] = {}
        self._verified: set[str] = set()
        self._coming: dict[str, Bundle] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._downloads: dict[str, asyncio.Lock] = {}
        self._gate = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._clock = asyncio.get_running_loop().time
        self._removal = FolderRemoval(root / "removed")
        self._files.mkdir(parents=True, exist_ok=True)
        remove(self._folders)
        self._folders.mkdir(parents=True)
        self._strangers = {path.name: path.stat().st_size for path in self._files.iterdir()}

    @property
    def size(self) -> int:
        """Bytes of content on the disk, fetches in progress included."""
        bundles = [held.bundle for held in self._held.values()] + list(self._coming.values())
        return sum({**self._strangers, **_contents(bundles)}.values())

    async def bundle(self, bundle_hash: str) -> Bundle:
        """Return the list of a bundle's files.

        Raises `BlobNotFound` when there is no such bundle, `ProtocolError` when it does not match its
        hash, other `StorageError`s. Safe to cancel.
        """
        if (known := self._lists.get(bundle_hash)) is None:
            if not _HASH.fullmatch(bundle_hash):
                raise ProtocolError(f"not the hash of a bundle: {bundle_hash!r:.80}")
            blob = await self._control.get(bundle_blob(bundle_hash))
            known = Bundle.read(blob.data, bundle_hash)
            while len(self._lists) >= _KEPT_LISTS:
                del self._lists[next(iter(self._lists))]
            self._lists[bundle_hash] = known
        return known

    def distrust(self, bundle_hash: str) -> None:
        """Check the contents of a bundle again at its next use, because one was found to be changed."""
        if (held := self._held.get(bundle_hash)) is not None:
            self._verified -= _contents([held.bundle]).keys()
            held.is_trusted = False

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[tuple[Bundle, Path]]:
        """Return the bundle and the folder of its files, which is kept as long as the block lasts.

        Raises as `bundle` does, and `ProtocolError` for content that does not match its hash. Safe to
        cancel.
        """
        held = await self._hold(bundle_hash)
        try:
            yield held.bundle, held.folder
        finally:
            held.users -= 1
            if not held.users:
                self._evict()

    async def _hold(self, bundle_hash: str) -> _Held:
        """Have a bundle on disk and count one user more."""
        held = self._held.get(bundle_hash)
        while held is None or not await self._unchanged(held) or self._held.get(bundle_hash) is not held:
            held = await self._fetch(bundle_hash)
        self._held[bundle_hash] = self._held.pop(bundle_hash)
        held.users += 1
        return held

    async def _unchanged(self, held: _Held) -> bool:
        if not held.is_trusted:
            return False
        if held.users or self._clock() - held.looked_at < _LOOK_INTERVAL:
            return True
        paths = [str(held.folder / file.name) for file in held.bundle.files]
        if len(paths) <= file_stamps.QUICK:
            touched = file_stamps.touched(paths)
        else:
            touched = await asyncio.to_thread(file_stamps.touched, paths)
        if not touched:
            held.looked_at = self._clock()
        return not touched

    async def _fetch(self, bundle_hash: str) -> _Held:
        """Join the fetch of a bundle, or start it. The fetch ends when its last waiter is cancelled."""
        fetch = self._fetches.get(bundle_hash)
        if fetch is None or fetch.task.done():
            task = asyncio.create_task(self._bring(bundle_hash), name=f"fetch bundle {bundle_hash[:12]}")
            fetch = self._fetches[bundle_hash] = _Fetch(task)
        fetch.waiting += 1
        try:
            return await asyncio.shield(fetch.task)
        finally:
            fetch.waiting -= 1
            if not fetch.waiting:
                fetch.task.cancel()
                if self._fetches.get(bundle_hash) is fetch:
                    del self._fetches[bundle_hash]

    async def _bring(self, bundle_hash: str) -> _Held:
        bundle = await self.bundle(bundle_hash)
        self._coming[bundle_hash] = bundle
        try:
            self._evict()
            await self._removal.emptied()
            await self._bring_files(bundle)
            folder = await asyncio.to_thread(self._lay_out, bundle)
        finally:
            del self._coming[bundle_hash]
        if (held := self._held.get(bundle_hash)) is None:
            held = self._held[bundle_hash] = _Held(bundle, folder)
        held.looked_at, held.is_trusted = self._clock(), True
        return held

    async def _bring_files(self, bundle: Bundle) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for name, file in {_content_name(file): file for file in bundle.files}.items():
                    group.create_task(self._bring_file(name, file))
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None

    async def _bring_file(self, name: str, file: BundleFile) -> None:
        """Have a content on the disk, checked against its hash."""
        path = self._files / name
        async with self._downloads.setdefault(name, asyncio.Lock()), self._gate:
            if name in self._verified and not file_stamps.touched([str(path)]):
                return
            self._verified.discard(name)
            if not await asyncio.to_thread(file_stamps.holds, str(path), file.size, file.sha256):
                remove(path)
                await self._control.download(file.blob, path)
                if not await asyncio.to_thread(file_stamps.holds, str(path), file.size, file.sha256):
                    remove(path)
                    raise ProtocolError(f"the content of {file.name!r} is not what its hash says")
            await asyncio.to_thread(_seal, path, file.executable)
            self._verified.add(name)
            self._strangers.pop(name, None)

    def _lay_out(self, bundle: Bundle) -> Path:
        folder = self._folders / bundle.hash
        remove(folder)
        folder.mkdir()
        for file in bundle.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._files / _content_name(file), target)
        return folder

    def _evict(self) -> None:
        """Remove unused bundles until the contents on disk and in progress are within the limit."""
        needed = _contents(self._coming.values())
        for name in self._strangers.keys() - needed.keys():
            if self.size <= self._limit:
                return
            del self._strangers[name]
            remove(self._files / name)
        for bundle_hash in [name for name, held in self._held.items() if not held.users]:
            if self.size <= self._limit:
                return
            if bundle_hash not in self._coming:
                self._drop(self._held.pop(bundle_hash))

    def _drop(self, held: _Held) -> None:
        """Remove a bundle's folder, and the contents that no other bundle needs."""
        needed = [other.bundle for other in self._held.values()] + list(self._coming.values())
        doomed = _contents([held.bundle]).keys() - _contents(needed).keys()
        self._verified -= doomed
        self._removal.take(held.folder)
        for name in doomed:
            remove(self._files / name)
            self._downloads.pop(name, None)


def _content_name(file: BundleFile) -> str:
    return f"{file.sha256}-x" if file.executable else file.sha256


def _contents(bundles: Iterable[Bundle]) -> dict[str, int]:
    """Return the contents of some bundles, each once, with their sizes."""
    return {_content_name(file): file.size for bundle in bundles for file in bundle.files}


def _seal(path: Path, executable: bool) -> None:
    """Make a file read-only and stamp it. A file that begins with "#!" becomes executable, too."""
    with path.open("rb") as content:
        executable = executable or content.read(2) == b"#!"
    os.chmod(path, 0o555 if executable else 0o444)
    file_stamps.stamp(str(path))

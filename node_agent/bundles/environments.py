"""The Python packages that tasks asked for, unpacked on the node once for each environment.

An environment arrives as a bundle of wheels, or of one archive. It is unpacked into a folder of its own,
which is read-only and shared by all slots. The byte code is made afterwards, beside the first tasks.

Tasks are of the same user as the agent, so what is read-only can be changed all the same:

- An archive is hashed as it is unpacked, a wheel before that. What was changed in the cache is fetched again.
- The signatures of the files (`system.file_stamps`) are looked at before a slot's next tasks use them, once a
  second at most. Once the byte code is there, they cover it and the folders as well. An environment that was
  changed is unpacked again, into another folder; tasks that run keep the old one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import shutil
import stat
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import anyio
import anyio.to_thread

from batchflow.errors import ProtocolError
from batchflow.protocol.bundle import check_name
from batchflow.protocol.environments import ARCHIVE, is_wheel, misfit_of
from batchflow.protocol.functions import PYTHON
from node_agent.bundles.damage import ArchiveDamaged
from node_agent.bundles.removal import FolderRemoval
from node_agent.bundles.wheels import install_wheels
from node_agent.system import file_stamps, process_groups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from batchflow.protocol.bundle import Bundle

logger = logging.getLogger(__name__)

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk that is full."""
_NICENESS: Final = 10
"""Of the process that makes byte code, which tasks need not wait for."""
_HOW: Final = ("-q", "-j", "0", "--invalidation-mode", "unchecked-hash")
_TESTS: Final = r"/tests?/"
"""Matches the paths of modules that belong to a package's tests."""
_NO_TESTS: Final = rf"^(?!.*{_TESTS})"
_PIECE: Final = 1 << 16
_LOOK_INTERVAL: Final = 1.0
"""Seconds for which an environment that was found unchanged is not looked at again."""
_LOOK_SHARE: Final = 50.0

Signatures = dict[str, file_stamps.Signature | None]
"""By path."""


class BundleSource(Protocol):
    """What an environment comes from."""

    def use(self, bundle_hash: str) -> AbstractAsyncContextManager[tuple[Bundle, Path]]: ...

    def distrust(self, bundle_hash: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Unpacked:
    """An environment on the disk."""

    folder: Path
    size: int
    signatures: Signatures
    users: int = 0
    compiling: asyncio.Task[None] | None = None
    look_at: float = 0.0
    """When it is to be looked at again, by the monotonic clock."""


class EnvironmentCache:
    """A least-recently-used cache of unpacked environments. Usable by the coroutines of one event loop."""

    def __init__(self, root: Path, bundles: BundleSource, limit: int) -> None:
        """`limit`: bytes of unpacked files, as far as they are not in use. `root` is emptied."""
        self._root = root
        self._bundles = bundles
        self._limit = limit
        self._unpacked: dict[str, _Unpacked] = {}
        self._arriving: dict[str, asyncio.Lock] = {}
        self._compiling: set[asyncio.Task[None]] = set()
        self._numbers = count()
        shutil.rmtree(root, ignore_errors=True)
        self._removal = FolderRemoval(root / "removed")

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[Path]:
        """Have an environment on the disk as long as the block lasts; return the folder of its packages.

        Raises as the bundles' cache does, `ProtocolError` for an archive that cannot be used, and OSError
        when the node has no room. Safe to cancel.
        """
        async with self._arriving.setdefault(bundle_hash, asyncio.Lock()):
            found = self._unpacked.get(bundle_hash)
            if found is not None and await _was_changed(found):
                logger.warning("environment_damaged", extra={"environment": bundle_hash})
                self._drop(bundle_hash)
            found = self._unpacked.pop(bundle_hash, None)
            if found is None:
                found = await self._unpack(bundle_hash)
            self._unpacked[bundle_hash] = found
            found.users += 1
        try:
            yield found.folder
        finally:
            found.users -= 1
            if self._unpacked.get(bundle_hash) is not found:
                self._remove_if_unused(found)
            self._evict()

    def close(self) -> None:
        """End what is under way, and remove everything. Idempotent."""
        for task in self._compiling:
            task.cancel()
        shutil.rmtree(self._root, ignore_errors=True)

    async def _unpack(self, bundle_hash: str) -> _Unpacked:
        try:
            found = await self._unpack_once(bundle_hash)
        except ArchiveDamaged:
            logger.warning("archive_damaged", extra={"environment": bundle_hash})
            self._bundles.distrust(bundle_hash)
            found = await self._unpack_once(bundle_hash)
        found.compiling = asyncio.create_task(_compile(found), name=f"compile environment {bundle_hash[:12]}")
        self._compiling.add(found.compiling)
        found.compiling.add_done_callback(self._compiling.discard)
        return found

    async def _unpack_once(self, bundle_hash: str) -> _Unpacked:
        async with AsyncExitStack() as stack:
            bundle, files = await stack.enter_async_context(self._bundles.use(bundle_hash))
            hashes = {file.name: file.sha256 for file in bundle.files}
            folder = self._root / f"{bundle_hash}-{next(self._numbers)}"
            size, signatures = await self._unpack_where_there_is_room(partial(install, hashes, files, folder))
        return _Unpacked(folder, size, signatures)

    def _drop(self, bundle_hash: str) -> None:
        """Forget an environment. Its folder goes when nothing uses it any more."""
        self._remove_if_unused(self._unpacked.pop(bundle_hash))

    def _remove_if_unused(self, found: _Unpacked) -> None:
        if not found.users:
            if found.compiling is not None:
                found.compiling.cancel()
            self._removal.take(found.folder)

    async def _unpack_where_there_is_room(
        self, install: Callable[[], tuple[int, Signatures]]
    ) -> tuple[int, Signatures]:
        """Unpack, in place of what is unused if the disk is full. Raises OSError when that is not enough."""
        try:
            return await anyio.to_thread.run_sync(install)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            logger.warning("environments_evicted", extra={"error": str(error)})
        self._evict(limit=0)
        await self._removal.emptied()
        # A cancellation waits for the thread, so that the folder is known, or not there.
        return await anyio.to_thread.run_sync(install)

    def _evict(self, limit: int | None = None) -> None:
        """Remove what is unused, the least recently used first, until the rest is within the limit."""
        limit = self._limit if limit is None else limit
        for bundle_hash, found in list(self._unpacked.items()):
            if sum(each.size for each in self._unpacked.values()) <= limit:
                return
            if not found.users:
                self._drop(bundle_hash)


async def _was_changed(found: _Unpacked) -> bool:
    """Tell whether a task changed an environment. A look takes at most a fiftieth of the time."""
    began = time.monotonic()
    if began < found.look_at:
        return False
    changed = await anyio.to_thread.run_sync(file_stamps.differ, found.signatures)
    took = time.monotonic() - began
    found.look_at = began + max(_LOOK_INTERVAL, _LOOK_SHARE * took)
    return changed


class _Hashing:
    """A file that hashes what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """Read the rest; return the hash of all."""
        while self.read(_PIECE):
            pass
        return self._hash.hexdigest()


def install(hashes: Mapping[str, str], files: Path, folder: Path) -> tuple[int, Signatures]:
    """Have an environment's packages in a new folder; return the bytes of their files, and the signatures.

    `hashes`: of all files of its bundle, by their names; `files`: where these are. Nothing is left when it
    fails. Raises `ArchiveDamaged` when a hash is another one, `ProtocolError` for what cannot be used here,
    OSError when there is no room.
    """
    wheels = {files / name: sha256 for name, sha256 in hashes.items() if is_wheel(name)}
    if ARCHIVE not in hashes and not wheels:
        raise ProtocolError(f"the bundle in {files.name} is no environment: no {ARCHIVE}, and no wheels")
    if (misfit := misfit_of(hashes, PYTHON, os.uname().machine)) is not None:
        raise ProtocolError(misfit)
    if not wheels:
        return unpack(files / ARCHIVE, folder, hashes[ARCHIVE])
    installed = install_wheels(wheels, folder)
    return sum(installed.values()), {path: file_stamps.signature(path) for path in installed}


def unpack(archive: Path, folder: Path, sha256: str) -> tuple[int, Signatures]:
    """Unpack the regular files of an archive; return their bytes, and their signatures.

    What is unpacked is what is hashed, in one reading. Nothing is left when it fails. Raises `ArchiveDamaged`
    when the hash is another one, and `ProtocolError` for an archive that cannot be used.
    """
    import tarfile  # takes 20 ms, and few agents need it

    scratch = folder.with_name(f"{folder.name}-{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        with archive.open("rb") as file:
            content = _Hashing(file)
            try:
                size, names = _extract(tarfile, content, scratch)
            except (tarfile.TarError, EOFError, ValueError, ProtocolError) as error:
                if content.digest() != sha256:
                    raise ArchiveDamaged(archive.name) from error
                if isinstance(error, ProtocolError):
                    raise
                raise ProtocolError(f"the environment's archive cannot be read: {error}") from error
            if content.digest() != sha256:
                raise ArchiveDamaged(archive.name)
        scratch.rename(folder)
        paths = [str(folder / name) for name in names]
        return size, {path: file_stamps.signature(path) for path in paths}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(tarfile: Any, archive: _Hashing, folder: Path) -> tuple[int, list[str]]:
    """Return the bytes and the names of the files. `tarfile`: the module."""
    size, names = 0, []
    with tarfile.open(fileobj=archive, mode="r|gz", bufsize=_PIECE) as members:
        for member in members:
            if not member.isfile():
                raise ProtocolError(f"the environment holds {member.name!r:.80}, no regular file")
            target = folder / check_name(member.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = members.extractfile(member)
            assert content is not None
            with content, target.open("wb") as out:
                shutil.copyfileobj(content, out)
            target.chmod(0o555 if member.mode & stat.S_IXUSR else 0o444)
            size += member.size
            names.append(member.name)
    return size, names


def _signatures(folder: Path) -> Signatures:
    """Return the signatures of all files and folders in a folder, and its own."""
    found = {str(folder): file_stamps.signature(str(folder))}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(where, name)
            found[path] = file_stamps.signature(path)
    return found


async def _compile(environment: _Unpacked) -> None:
    """Make the byte code of all modules. It never becomes stale, because the files never change.

    The modules of tests come last, because tasks that begin meanwhile import the others. Tasks run without it
    as well, so a folder that went meanwhile, or a node without memory, is only logged.
    """
    folder, exit_code = environment.folder, 0
    for left_out in (_TESTS, _NO_TESTS):
        try:
            code = await _compile_but(left_out, folder)
        except OSError as error:
            logger.info("environment_not_compiled", extra={"folder": folder.name, "error": str(error)})
            return
        exit_code = exit_code or code
    if not await anyio.to_thread.run_sync(file_stamps.differ, environment.signatures):
        environment.signatures = await anyio.to_thread.run_sync(_signatures, folder)
    logger.info("environment_compiled", extra={"folder": folder.name, "exit_code": exit_code})


async def _compile_but(left_out: str, folder: Path) -> int:
    """Make the byte code of the modules whose paths do not match; return the exit code. Raises OSError."""
    process = await process_groups.spawn(
        (*(sys.executable, "-m", "compileall", *_HOW), "-x", left_out, str(folder)),
        cwd=folder,
        env=process_groups.environment(folder),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        niceness=_NICENESS,
    )
    try:
        return await process.wait()
    except asyncio.CancelledError:
        process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()
        raise

"""The Python packages that tasks asked for, unpacked on the node once for each environment.

An environment arrives as a bundle of one archive. It is unpacked into a folder of its own, which is named by
the bundle's hash, is read-only, and is shared by all slots. The byte code is made afterwards, beside the
first tasks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import stat
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import anyio.to_thread

from batchflow.errors import ProtocolError
from batchflow.protocol.bundle import check_name
from batchflow.protocol.environments import ARCHIVE, misfit_of
from batchflow.protocol.functions import PYTHON
from node_agent.system import process_groups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from batchflow.protocol.bundle import Bundle

logger = logging.getLogger(__name__)

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk that is full."""
_NICENESS: Final = 10
"""Of the process that makes byte code, which tasks need not wait for."""


class BundleSource(Protocol):
    """What an environment comes from."""

    def use(self, bundle_hash: str) -> AbstractAsyncContextManager[tuple[Bundle, Path]]: ...


@dataclass(slots=True)
class _Unpacked:
    """An environment on the disk."""

    folder: Path
    size: int
    users: int = 0


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
        shutil.rmtree(root, ignore_errors=True)

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[Path]:
        """Have an environment on the disk as long as the block lasts; return the folder of its packages.

        Raises as the bundles' cache does, `ProtocolError` for an archive that cannot be used, and OSError
        when the node has no room. Safe to cancel.
        """
        async with self._arriving.setdefault(bundle_hash, asyncio.Lock()):
            found = self._unpacked.pop(bundle_hash, None)
            if found is None:
                found = await self._unpack(bundle_hash)
            self._unpacked[bundle_hash] = found
            found.users += 1
        try:
            yield found.folder
        finally:
            found.users -= 1
            self._evict()

    def close(self) -> None:
        """End what is under way, and remove everything. Idempotent."""
        for task in self._compiling:
            task.cancel()
        shutil.rmtree(self._root, ignore_errors=True)

    async def _unpack(self, bundle_hash: str) -> _Unpacked:
        async with AsyncExitStack() as stack:
            bundle, files = await stack.enter_async_context(self._bundles.use(bundle_hash))
            if ARCHIVE not in bundle:
                raise ProtocolError(f"the bundle {bundle_hash[:12]} is no environment: it has no {ARCHIVE}")
            if (misfit := misfit_of(_names(bundle), PYTHON, os.uname().machine)) is not None:
                raise ProtocolError(misfit)
            folder = self._root / bundle_hash
            size = await self._unpack_where_there_is_room(files / ARCHIVE, folder)
        task = asyncio.create_task(_compile(folder), name=f"compile environment {bundle_hash[:12]}")
        self._compiling.add(task)
        task.add_done_callback(self._compiling.discard)
        return _Unpacked(folder, size)

    async def _unpack_where_there_is_room(self, archive: Path, folder: Path) -> int:
        """Unpack, in place of what is unused if the disk is full. Raises OSError when that is not enough."""
        try:
            return await anyio.to_thread.run_sync(unpack, archive, folder)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            logger.warning("environments_evicted", extra={"error": str(error)})
        self._evict(limit=0)
        # A cancellation waits for the thread, so that the folder is known, or not there.
        return await anyio.to_thread.run_sync(unpack, archive, folder)

    def _evict(self, limit: int | None = None) -> None:
        """Remove what is unused, the least recently used first, until the rest is within the limit."""
        limit = self._limit if limit is None else limit
        for bundle_hash, found in list(self._unpacked.items()):
            if sum(each.size for each in self._unpacked.values()) <= limit:
                return
            if not found.users:
                del self._unpacked[bundle_hash]
                shutil.rmtree(found.folder, ignore_errors=True)


def _names(bundle: Bundle) -> list[str]:
    return [file.name for file in bundle.files]


def unpack(archive: Path, folder: Path) -> int:
    """Unpack the regular files of an archive; return their bytes. Nothing is left when it fails."""
    import tarfile  # takes 20 ms, and few agents need it

    scratch = folder.with_name(f"{folder.name}-{os.getpid()}")
    size = 0
    try:
        scratch.mkdir(parents=True)
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                if not member.isfile():
                    raise ProtocolError(f"the environment holds {member.name!r:.80}, no regular file")
                target = scratch / check_name(member.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                content = members.extractfile(member)
                assert content is not None
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out)
                target.chmod(0o555 if member.mode & stat.S_IXUSR else 0o444)
                size += member.size
        shutil.rmtree(folder, ignore_errors=True)  # byte code may have been made in it after it was evicted
        scratch.rename(folder)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ProtocolError(f"the environment's archive cannot be read: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return size


async def _compile(folder: Path) -> None:
    """Make the byte code of all modules. It never becomes stale, because the files never change.

    Tasks run without it as well, so a folder that went meanwhile, or a node without memory, is only logged.
    """
    command = (sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash")
    try:
        process = await process_groups.spawn(
            (*command, str(folder)),
            cwd=folder,
            env=process_groups.environment(folder),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            niceness=_NICENESS,
        )
    except OSError as error:
        logger.info("environment_not_compiled", extra={"folder": folder.name, "error": str(error)})
        return
    try:
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
    logger.info("environment_compiled", extra={"folder": folder.name, "exit_code": process.returncode})

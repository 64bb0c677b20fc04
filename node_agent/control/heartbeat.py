"""The agent's heartbeat: a blob, written every few seconds and whenever the agent's state changes."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import re
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import StorageError
from batchflow.protocol import documents, layout
from batchflow.support.cadence import next_turn
from batchflow.support.version import own_version

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)

_APART: Final = 0.25
"""Minimum number of seconds between two heartbeats."""
_TIMEOUT: Final = 20.0


def host_name() -> str:
    """Return the node's host name: HOSTNAME, where the kernel does not tell nodes apart."""
    return os.environ.get("HOSTNAME") or socket.gethostname()


def node_id() -> str:
    """Return the node's id in Batch; outside of Batch, its host name."""
    return os.environ.get("AZ_BATCH_NODE_ID") or host_name()


class HeartbeatWriter:
    """Writes the heartbeats."""

    def __init__(
        self,
        out: Container,
        agent: str,
        interval: float,
        beat: Callable[[], documents.Heartbeat],
        ticked: Callable[[], Awaitable[None]],
    ) -> None:
        """`ticked` returns when the scheduler has handled a tick. No heartbeat is written before that, so
        clients see an agent whose scheduler has stopped as dead."""
        self._out = out
        self._name = layout.heartbeat_blob(agent)
        self._interval = interval
        self._beat = beat
        self._ticked = ticked
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Write a heartbeat soon, because the agent's state has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Write heartbeats until cancelled. A failed one is dropped: the next one follows."""
        while True:
            self._changed.clear()
            await self._ticked()
            await self.write()
            await self._until_due()

    async def _until_due(self) -> None:
        """Wait for the next turn, or for a change; `_APART` seconds from now at the earliest."""
        clock = asyncio.get_running_loop().time
        now = clock()
        with anyio.move_on_after(next_turn(self._interval, now) - now):
            await self._changed.wait()
            await anyio.sleep(max(0.0, now + _APART - clock()))

    async def write(self) -> None:
        """Write one heartbeat now."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._out.put(self._name, self._beat().encode())
        except (StorageError, TimeoutError) as error:
            logger.warning("heartbeat_failed", extra={"error": str(error)})


def versions() -> dict[str, str]:
    """Return the versions of what tasks may depend on."""
    found = {"python": platform.python_version(), "batchflow": own_version(), "java": java_version()}
    return {name: each for name, each in found.items() if each is not None}


def java_version() -> str | None:
    """Return the version that Java's installation states, without starting Java; None without Java."""
    program = shutil.which("java")
    if program is None:
        return None
    try:
        told = (Path(program).resolve().parents[1] / "release").read_text(encoding="utf-8")
    except (OSError, IndexError, ValueError):
        return "unknown"
    found = re.search(r'^JAVA_VERSION="([^"]+)"', told, re.MULTILINE)
    return found[1] if found else "unknown"


def memory_available() -> int | None:
    """Return the bytes of memory that are available; None where the kernel does not report them."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def disk_free(path: str = ".") -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None

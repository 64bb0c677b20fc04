"""Whether the node can run tasks: the agent's folder can be written, and its disk has room.

An agent that begins on a node that cannot says so in its heartbeat and pulls no task. It looks again every
`INTERVAL` seconds, and goes on by itself when the node can. After an agent that stepped back, the next one
also looks whether the node reaches Blob Storage. Others do not, because a look takes a round trip.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import BlobNotFound, StorageError
from batchflow.protocol import documents, layout
from node_agent.control import heartbeat
from node_agent.control.drain_orders import DrainWatcher
from node_agent.supervision.crash_record import boot_id

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks."""
ROOM: Final = 1024**2
"""Bytes of disk that an agent needs to begin: its records, and the folders of its slots."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
STEPPED_BACK: Final = "stepped-back"
"""The file in the agent's folder that tells the next agent to look at Blob Storage, too."""
_ANSWER: Final = 20.0
"""Seconds that Blob Storage may take to answer."""


def problem(directory: Path) -> str | None:
    """Return what keeps an agent from working in this folder, in words; None when nothing does.

    The folder is made, and `ROOM` bytes are reserved and given back: the file system alone knows.
    """
    probe = directory / "room"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, ROOM)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return told(error, directory)
    return None


def told(error: OSError, directory: Path) -> str:
    """Return an error of the node's disk in words that say what to do."""
    if error.errno in FULL:
        return (
            f"the node's disk is full: there is no room in {directory} ({error.strerror}); "
            "free some, or choose nodes with a larger disk"
        )
    return f"the agent's folder {directory} cannot be used: {error}"


def note_step_back(directory: Path) -> None:
    """Tell the next agent that this one stepped back."""
    with suppress(OSError):  # the disk is full, at which the next one looks first
        (directory / STEPPED_BACK).touch()


async def storage_problem(ctl: Container) -> str | None:
    """Return why the node does not reach Blob Storage, in words; None when it does."""
    try:
        async with asyncio.timeout(_ANSWER):
            await ctl.get(layout.DRAIN_BLOB)
    except BlobNotFound:
        return None
    except (StorageError, TimeoutError) as error:
        said = str(error) or f"no answer in {_ANSWER:g} s"
        return f"the node does not reach Blob Storage: {said}; check its network, or reboot the node"
    return None


class NodeCheck:
    """Holds an agent back until its node can run tasks."""

    def __init__(
        self, config: documents.AgentConfig, agent: str, directory: Path, ctl: Container, out: Container
    ) -> None:
        """`agent`: its incarnation; `directory`: its folder."""
        self._config = config
        self._agent = agent
        self._directory = directory
        self._ctl = ctl
        self._out = out
        self._problem: str | None = None
        self._stepped_back = directory / STEPPED_BACK
        self._started_at = time.time()

    async def passed(self) -> bool:
        """Return True when the node can run tasks, False when the agent is told to drain before."""
        self._problem = await self._look()
        if self._problem is None:
            return True
        logger.error("node_unfit", extra={"error": self._problem})
        fit = False
        async with anyio.create_task_group() as group:
            stop = group.cancel_scope.cancel
            interval = self._config.heartbeat_interval
            writer = heartbeat.HeartbeatWriter(self._out, self._agent, interval, self._heartbeat, _now)
            group.start_soon(writer.run)
            group.start_soon(DrainWatcher(self._ctl, self._agent, interval, lambda _: stop()).run)
            while not fit:
                await asyncio.sleep(INTERVAL)
                if (found := await self._look()) != self._problem:
                    self._problem = found
                    writer.changed()
                fit = found is None
            stop()
        if fit:
            logger.info("node_fit", extra={"after": round(time.time() - self._started_at, 1)})
        return fit

    async def _look(self) -> str | None:
        """Return what keeps the agent from working; forget the step back when nothing does."""
        found = problem(self._directory)
        if found is None and self._stepped_back.exists():
            found = await storage_problem(self._ctl)
            if found is None:
                self._stepped_back.unlink(missing_ok=True)
        return found

    def _heartbeat(self) -> documents.Heartbeat:
        return documents.Heartbeat(
            agent=self._agent,
            node=heartbeat.node_id(),
            host=heartbeat.host_name(),
            boot_id=boot_id(),
            pid=os.getpid(),
            state="starting",
            slots=self._config.slots or os.cpu_count() or 1,
            started_at=self._started_at,
            beat_at=time.time(),
            interval=self._config.heartbeat_interval,
            versions=heartbeat.versions(),
            takes_wheels=True,
            load=heartbeat.load(),
            memory_available=heartbeat.memory_available(),
            disk_free=heartbeat.disk_free(),
            trouble=self._problem,
        )


async def _now() -> None:
    """There is no scheduler yet whose tick a heartbeat would wait for."""

"""The local cloud as a child process, which does not outlive the program that started it.

The child has a session of its own, so that Ctrl-C in the parent's terminal does not reach it before the
parent has closed it in order. Its standard input is a lifeline: a pipe that the kernel closes when the parent
ends, however it ends. The child then exits at once, and the processes of its nodes go with it. Its directory
is made here, so that it is removed here even when the child was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from batchflow.errors import ServiceError
from batchflow.local.directory import make_directory, remove_tree
from batchflow.support import linux
from batchflow.support.threads import in_thread

logger = logging.getLogger(__name__)

START_TIMEOUT = 30.0
"""Seconds until a cloud that is not ready counts as failed."""

CLOSE_TIMEOUT = 15.0
"""Seconds that the child may take to exit before it is killed; more than it allows itself."""

# Like `python -m batchflow.local`, but this very batchflow, wherever the parent found it, and nothing of what
# else is in the current directory. It does what `process_tuning.pause_collector` does, before any import.
_PROGRAM = (
    "import gc, sys; gc.disable(); root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root);"
    " from batchflow.local.embedded import main; sys.exit(main())"
)
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_LOG = "cloud.log"
_TAIL = 4_000


class LocalCloudProcess:
    """A local cloud in a child process: an async context manager, or `start` and `aclose`.

    Both give the configuration file that the cloud wrote.

    `start` and `aclose` may run in different tasks of one event loop. `nodes` and `slots` are what a new
    pool gets where its spec is silent. `options`: others of `python -m batchflow.local`, by their names:
    `latency`, `boot_time` and `autoscale_interval`, in seconds.
    """

    def __init__(self, *, nodes: int = 2, slots: int = 1, **options: float) -> None:
        named = {"nodes": nodes, "slots": slots, **options}
        self._arguments = [
            part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        self._directory: Path | None = None
        self._process: Process | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Path:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def start(self) -> Path:
        """Start the child, wait until it is ready, and return its configuration file.

        Raises ServiceError, with the end of what the child said, when it exits or is not ready in 30 s.
        When it fails, or is cancelled, nothing is left.
        """
        self._directory = make_directory()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                return await self._start(self._directory)
        except TimeoutError:
            tail = _tail(self._directory)
            await self.aclose()
            raise ServiceError(f"the local cloud was not ready in {START_TIMEOUT:.0f} s{tail}") from None
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the child, within 15 s, and remove what it leaves. Idempotent; when cancelled, it goes on."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="local-cloud-close")
        await asyncio.shield(self._closing)

    async def _start(self, directory: Path) -> Path:
        config = directory / "cloud.toml"
        self._process = await self._spawn(directory, config)
        stdout = self._process.stdout
        assert stdout is not None
        while line := await stdout.readline():
            if line.startswith(b"ready"):
                return config
        code = await self._process.wait()
        raise ServiceError(f"the local cloud exited with status {code} before it was ready{_tail(directory)}")

    async def _spawn(self, directory: Path, config: Path) -> Process:
        if linux.children_are_ignored():
            logger.warning(
                "this program ignores SIGCHLD (or inherited that), so the exit codes of all its children are "
                "lost; at its start: signal.signal(signal.SIGCHLD, signal.SIG_DFL)"
            )
        with (directory / _LOG).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _PROGRAM, _PACKAGE_ROOT),
                *("--config", str(config), "--directory", str(directory), "--lifeline", str(os.getpid())),
                *self._arguments,
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                start_new_session=True,
            )

    async def _close(self) -> None:
        if self._process is not None:
            await _end(self._process)
        if self._directory is not None:
            await in_thread(remove_tree, self._directory)


async def _end(process: Process) -> None:
    """Tell the child to exit, wait, at last kill it; then reap it."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            # A word, for forked children of this process may hold the lifeline and keep it from ending.
            await process.communicate(b"exit\n")
    except TimeoutError:
        process.kill()
        await process.communicate()


def _tail(directory: Path) -> str:
    with contextlib.suppress(OSError):
        said = (directory / _LOG).read_text(errors="replace")[-_TAIL:].strip()
        if said:
            return f". It said:\n{said}"
    return ""

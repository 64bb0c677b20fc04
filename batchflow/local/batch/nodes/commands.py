"""The commands of a node's tasks, as real processes.

A command runs without a shell, in its working directory, with an environment of its own. Its parent is a
reaper (`batchflow.local.batch.nodes.reaper`), which ends what the command leaves behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from batchflow.local.batch.core.entities import FailureInfo, Outcome
from batchflow.local.batch.nodes.resource_files import (
    NodeDownloads,
    PreparationError,
    ResourceFileSource,
    disk_failure,
    fetch,
)
from batchflow.support import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchflow.local.batch.core.entities import CommandSpec
    from batchflow.local.batch.nodes.node_user import NodeUser

STOP_GRACE = 5.0
"""Seconds between asking a task's command to end and killing its tree."""

REAPER_TIMEOUT = 5.0
"""Seconds that a reaper may take to end its processes before it is killed itself."""

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[4])
_REAPER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    " from batchflow.local.batch.nodes.reaper import main; sys.exit(main(sys.argv[1:]))"
)
_OUTPUTS = ("stdout.txt", "stderr.txt")


class NodeCommand:
    """One execution of a command: its files fetched, its processes run, all of them gone at the end."""

    def __init__(
        self,
        spec: CommandSpec,
        directory: Path,
        environment: Mapping[str, str],
        host_name: str,
        *,
        grace: float = STOP_GRACE,
        authorization: Callable[[str], str | None] = lambda _: None,
        user: NodeUser | None = None,
    ) -> None:
        """`user`: whom the command runs as; None: the user of this process."""
        self._spec = spec
        self._authorization = authorization
        self._user = user
        self._directory = directory
        self._environment = environment
        self._host_name = host_name
        self._grace = grace
        self._stopped = False
        self._preparation: asyncio.Timeout | None = None
        self._reaper: asyncio.subprocess.Process | None = None

    async def run(self, web: NodeDownloads, launched: Callable[[], None]) -> Outcome:
        """Fetch, run, wait. Never raises for what goes wrong with the command; `launched` tells that it runs.

        Cancelling it leaves the processes to their reaper: call `kill` and wait instead.
        """
        try:
            arguments = _split(self._spec.command_line)
            await self._prepare(ResourceFileSource(web, self._authorization))
            if self._stopped:
                return Outcome(None)
            return await self._execute(arguments, launched)
        except PreparationError as error:
            return Outcome(None, error.failure)
        except ValueError as error:
            return Outcome(None, _launch_error("CommandLaunchFailed", self._spec.command_line, str(error)))
        except OSError as error:
            return Outcome(None, disk_failure(error))

    def stop(self) -> None:
        """Ask the command to end; its tree is killed when the grace period is over."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the command's tree."""
        self._signal(signal.SIGINT)

    def _signal(self, signum: int) -> None:
        self._stopped = True
        if self._preparation is not None:
            self._preparation.reschedule(asyncio.get_running_loop().time())
        if self._reaper is not None:
            with contextlib.suppress(ProcessLookupError):
                self._reaper.send_signal(signum)

    async def _prepare(self, source: ResourceFileSource) -> None:
        (self._directory / "wd").mkdir(parents=True, exist_ok=True)
        for name in _OUTPUTS:
            (self._directory / name).touch()
        try:
            async with asyncio.timeout(None) as self._preparation:
                for file in self._spec.files:
                    await fetch(source, file, self._directory / "wd")
            if self._user is not None:
                await asyncio.to_thread(self._user.own, self._directory)
        except TimeoutError:
            if not self._stopped:
                raise
        finally:
            self._preparation = None

    async def _execute(self, arguments: list[str], launched: Callable[[], None]) -> Outcome:
        status, writer = os.pipe()
        try:
            try:
                self._reaper = reaper = await self._start_reaper(arguments, writer)
            finally:
                os.close(writer)
            if self._stopped:
                self.kill()
            refused = await _read_all(status)
        finally:
            os.close(status)
        if refused:
            await reaper.wait()
            return Outcome(None, _launch_failure(arguments[0], int(refused)))
        launched()
        return Outcome(_exit_code(await reaper.wait()))

    async def _start_reaper(self, arguments: list[str], status: int) -> asyncio.subprocess.Process:
        with contextlib.ExitStack() as stack:
            stdout, stderr = (stack.enter_context((self._directory / name).open("ab")) for name in _OUTPUTS)
            return await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", _REAPER, _PACKAGE_ROOT,
                str(os.getpid()), str(status), str(self._grace), self._host_name,
                "" if self._user is None else str(self._user), *arguments,
                cwd=self._directory / "wd", env=dict(self._environment), stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout, stderr=stderr, pass_fds=(status,), start_new_session=True,
            )  # fmt: skip

    async def abandon(self) -> None:
        """Kill the reaper itself and what runs below it: the last resort against a reaper that hangs."""
        if self._reaper is not None and self._reaper.returncode is None:
            await asyncio.to_thread(linux.kill_tree, self._reaper.pid)


def _exit_code(status: int) -> int:
    """Return a command's exit code: the signal of a reaper that was itself killed, if it was."""
    return status if status >= 0 else 128 - status


async def _read_all(descriptor: int) -> bytes:
    """Read a pipe until its other end is closed."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    received = bytearray()

    def readable() -> None:
        chunk = os.read(descriptor, 64)
        received.extend(chunk)
        if not chunk and not closed.done():
            closed.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        await closed
    finally:
        loop.remove_reader(descriptor)
    return bytes(received)


def _split(command_line: str) -> list[str]:
    try:
        arguments = shlex.split(command_line)
    except ValueError as error:
        raise PreparationError(_launch_error("CommandLaunchFailed", command_line, str(error))) from error
    if not arguments:
        raise PreparationError(
            _launch_error("CommandLaunchFailed", command_line, "the command line is empty")
        )
    return arguments


def _launch_failure(program: str, number: int) -> FailureInfo:
    missing = number in (errno.ENOENT, errno.ENOTDIR)
    code = "CommandProgramNotFound" if missing else "CommandLaunchFailed"
    return _launch_error(code, program, os.strerror(number))


def _launch_error(code: str, program: str, reason: str) -> FailureInfo:
    message = {
        "CommandProgramNotFound": "The specified command program is not found",
        "CommandLaunchFailed": "Failed to launch the specified command line",
    }[code]
    return FailureInfo("usererror", code, message, (("Program", program), ("Message", reason)))

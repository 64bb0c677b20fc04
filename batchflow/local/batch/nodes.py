"""The nodes of the local Batch service: a directory each, and real processes.

A node's directory is laid out as on Azure: `shared`, `startup`, `workitems/<job>/job-1/<task>` with `wd`,
`stdout.txt` and `stderr.txt`. A command runs without a shell, in its `wd`, with an environment of its own,
below a keeper (`batchflow.local.batch.keeper`) that ends whatever it leaves behind. Node directories carry
the short host name, so that a socket's path within one stays below the kernel's limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import shutil
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from batchflow.local import processes
from batchflow.local.batch.entities import FailureInfo, Outcome
from batchflow.local.batch.node_files import PreparationError, Source, Web, disk_failure, fetch
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchflow.local.batch.entities import CommandSpec, NodeRecord, TaskRecord

STOP_GRACE = 5.0
"""Seconds between asking a task's command to end and killing its tree."""

KEEPER_PATIENCE = 5.0
"""Seconds that a keeper may take to end what it kept, before it is killed itself."""

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_KEEPER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    " from batchflow.local.batch.keeper import main; sys.exit(main(sys.argv[1:]))"
)
_OUTPUTS = ("stdout.txt", "stderr.txt")
_MACHINE_VARIABLES = ("PATH", "LANG")


@frozen
class NodeAccount:
    """What a command is told of the account that it runs under."""

    name: str
    url: str
    """Without a trailing slash."""


class NodeDisks:
    """The nodes' directories below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trash = root / "trash"

    def of(self, node: NodeRecord) -> Path:
        """A node's root directory."""
        return self._root / node.host_name

    def job(self, node: NodeRecord, job_id: str) -> Path:
        """The directory of a job's tasks on a node."""
        return self.of(node) / "workitems" / job_id / "job-1"

    def task(self, node: NodeRecord, job_id: str, task_id: str) -> Path:
        """A task's directory on a node."""
        return self.job(node, job_id) / task_id

    def startup(self, node: NodeRecord) -> Path:
        """The start task's directory on a node."""
        return self.of(node) / "startup"

    def lay_out(self, node: NodeRecord) -> None:
        """Make the directories that every node has."""
        for name in ("shared", "startup/wd", "workitems", "fsmounts"):
            (self.of(node) / name).mkdir(parents=True, exist_ok=True)

    async def discard(self, path: Path) -> None:
        """Take a directory away, if it is there: out of sight at once, off the disk when there is time."""
        grave = self._trash / uuid.uuid4().hex
        self._trash.mkdir(exist_ok=True)
        try:
            path.rename(grave)
        except FileNotFoundError:
            return
        await asyncio.to_thread(shutil.rmtree, grave, ignore_errors=True)


def task_environment(
    account: NodeAccount, disks: NodeDisks, node: NodeRecord, task: TaskRecord
) -> dict[str, str]:
    """The environment of a task: the machine's few, the service's AZ_BATCH_ ones, the user's."""
    job_id, task_id = task.job.spec.id, task.spec.id
    directory = disks.task(node, job_id, task_id)
    preparation = disks.task(node, job_id, "jobpreparation")
    return {
        **_common_environment(account, disks, node, directory),
        "AZ_BATCH_JOB_ID": job_id,
        "AZ_BATCH_TASK_ID": task_id,
        "AZ_BATCH_JOB_PREP_DIR": str(preparation),
        "AZ_BATCH_JOB_PREP_WORKING_DIR": str(preparation / "wd"),
        **task.spec.command.environment,
    }


def start_task_environment(
    account: NodeAccount, disks: NodeDisks, node: NodeRecord, command: CommandSpec
) -> dict[str, str]:
    """The environment of a start task."""
    return {**_common_environment(account, disks, node, disks.startup(node)), **command.environment}


def _common_environment(
    account: NodeAccount, disks: NodeDisks, node: NodeRecord, directory: Path
) -> dict[str, str]:
    root = disks.of(node)
    return {
        **{name: os.environ[name] for name in _MACHINE_VARIABLES if name in os.environ},
        "HOME": str(directory / "wd"),
        "HOSTNAME": node.host_name,
        "AZ_BATCH_ACCOUNT_NAME": account.name,
        "AZ_BATCH_ACCOUNT_URL": f"{account.url}/",
        "AZ_BATCH_POOL_ID": node.pool.spec.id,
        "AZ_BATCH_NODE_ID": node.id,
        "AZ_BATCH_NODE_IS_DEDICATED": "true" if node.dedicated else "false",
        "AZ_BATCH_NODE_ROOT_DIR": str(root),
        "AZ_BATCH_NODE_SHARED_DIR": str(root / "shared"),
        "AZ_BATCH_NODE_STARTUP_DIR": str(root / "startup"),
        "AZ_BATCH_NODE_MOUNTS_DIR": str(root / "fsmounts"),
        "AZ_BATCH_TASK_DIR": str(directory),
        "AZ_BATCH_TASK_WORKING_DIR": str(directory / "wd"),
    }


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
    ) -> None:
        self._spec = spec
        self._authorization = authorization
        self._directory = directory
        self._environment = environment
        self._host_name = host_name
        self._grace = grace
        self._stopped = False
        self._preparation: asyncio.Timeout | None = None
        self._keeper: asyncio.subprocess.Process | None = None

    async def run(self, web: Web, launched: Callable[[], None]) -> Outcome:
        """Fetch, run, wait. Never raises for what goes wrong with the command; `launched` tells that it runs.

        Cancelling it leaves the processes to their keeper: call `kill` and wait instead.
        """
        try:
            arguments = _split(self._spec.command_line)
            await self._prepare(Source(web, self._authorization))
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
        if self._keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                self._keeper.send_signal(signum)

    async def _prepare(self, source: Source) -> None:
        (self._directory / "wd").mkdir(parents=True, exist_ok=True)
        for name in _OUTPUTS:
            (self._directory / name).touch()
        try:
            async with asyncio.timeout(None) as self._preparation:
                for file in self._spec.files:
                    await fetch(source, file, self._directory / "wd")
        except TimeoutError:
            if not self._stopped:
                raise
        finally:
            self._preparation = None

    async def _execute(self, arguments: list[str], launched: Callable[[], None]) -> Outcome:
        status, writer = os.pipe()
        try:
            try:
                self._keeper = keeper = await self._start_keeper(arguments, writer)
            finally:
                os.close(writer)
            if self._stopped:
                self.kill()
            refused = await _read_all(status)
        finally:
            os.close(status)
        if refused:
            await keeper.wait()
            return Outcome(None, _launch_failure(arguments[0], int(refused)))
        launched()
        return Outcome(_exit_code(await keeper.wait()))

    async def _start_keeper(self, arguments: list[str], status: int) -> asyncio.subprocess.Process:
        with contextlib.ExitStack() as stack:
            stdout, stderr = (stack.enter_context((self._directory / name).open("ab")) for name in _OUTPUTS)
            return await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", _KEEPER, _PACKAGE_ROOT,
                str(os.getpid()), str(status), str(self._grace), self._host_name, *arguments,
                cwd=self._directory / "wd", env=dict(self._environment), stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout, stderr=stderr, pass_fds=(status,), start_new_session=True,
            )  # fmt: skip

    async def abandon(self) -> None:
        """Kill the keeper itself and what it kept: the last resort against a keeper that hangs."""
        if self._keeper is not None and self._keeper.returncode is None:
            await asyncio.to_thread(processes.kill_tree, self._keeper.pid)


def _exit_code(status: int) -> int:
    """A keeper that was itself killed tells no status: its signal stands for the command's."""
    return status if status >= 0 else 128 - status


async def _read_all(descriptor: int) -> bytes:
    """What comes through a pipe until its other end is closed."""
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

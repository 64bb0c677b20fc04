"""The nodes of the local Batch service: a directory each, and real processes.

A node's directory is laid out as on Azure: `shared`, `startup`, `workitems/<job>/job-1/<task>` with `wd`,
`stdout.txt` and `stderr.txt`. A command runs without a shell, in its `wd`, with an environment of its own, below a
keeper (`batchflow.local.keeper`) that ends whatever it leaves behind. Node directories carry the short host name,
so that a socket's path within one stays below the kernel's limit.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import aiohttp
from yarl import URL

from batchflow.local import processes
from batchflow.local.batch_entities import Failure, Outcome, ResourceFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from batchflow.local.batch_entities import CommandSpec, Node, Task

STOP_GRACE = 5.0
"""Seconds between asking a task's command to end and killing its tree."""

KEEPER_PATIENCE = 5.0
"""Seconds that a keeper may take to end what it kept, before it is killed itself."""

DOWNLOAD_ATTEMPTS = 3
DOWNLOAD_TIMEOUT = 300.0
RETRY_DELAY = 0.2

_CHUNK = 1 << 16
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_KEEPER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    " from batchflow.local.keeper import main; sys.exit(main(sys.argv[1:]))"
)
_MACHINE_VARIABLES = ("PATH", "LANG")


class PreparationError(Exception):
    """A command could not be made ready to run; `failure` says why in the service's words."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Account:
    """What a command is told of the account that it runs under."""

    name: str
    url: str
    """Without a trailing slash."""


class NodeDisks:
    """The nodes' directories below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trash = root / "trash"

    def of(self, node: Node) -> Path:
        """A node's root directory."""
        return self._root / node.host_name

    def task(self, node: Node, job_id: str, task_id: str) -> Path:
        """A task's directory on a node."""
        return self.of(node) / "workitems" / job_id / "job-1" / task_id

    def startup(self, node: Node) -> Path:
        """The start task's directory on a node."""
        return self.of(node) / "startup"

    def lay_out(self, node: Node) -> None:
        """Make the directories that every node has."""
        for name in ("shared", "startup/wd", "workitems", "fsmounts"):
            (self.of(node) / name).mkdir(parents=True, exist_ok=True)

    async def discard(self, path: Path) -> None:
        """Take a directory away: out of sight at once, off the disk when there is time. None there: no error."""
        grave = self._trash / uuid.uuid4().hex
        self._trash.mkdir(exist_ok=True)
        try:
            path.rename(grave)
        except FileNotFoundError:
            return
        await asyncio.to_thread(shutil.rmtree, grave, ignore_errors=True)


def task_environment(account: Account, disks: NodeDisks, node: Node, task: Task) -> dict[str, str]:
    """The environment of a task: the machine's few, the service's AZ_BATCH_ ones, the user's."""
    job_id, task_id = task.job.spec.id, task.spec.id
    directory = disks.task(node, job_id, task_id)
    preparation = disks.of(node) / "workitems" / job_id / "job-1" / "jobpreparation"
    return {
        **_common_environment(account, disks, node, directory),
        "AZ_BATCH_JOB_ID": job_id,
        "AZ_BATCH_TASK_ID": task_id,
        "AZ_BATCH_JOB_PREP_DIR": str(preparation),
        "AZ_BATCH_JOB_PREP_WORKING_DIR": str(preparation / "wd"),
        **task.spec.command.environment,
    }


def start_task_environment(
    account: Account, disks: NodeDisks, node: Node, command: CommandSpec
) -> dict[str, str]:
    """The environment of a start task."""
    return {**_common_environment(account, disks, node, disks.startup(node)), **command.environment}


def _common_environment(account: Account, disks: NodeDisks, node: Node, directory: Path) -> dict[str, str]:
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


class Command:
    """One execution of a command: its files fetched, its processes run, all of them gone at the end."""

    def __init__(
        self,
        spec: CommandSpec,
        directory: Path,
        environment: Mapping[str, str],
        host_name: str,
        *,
        grace: float = STOP_GRACE,
    ) -> None:
        self._spec = spec
        self._directory = directory
        self._environment = environment
        self._host_name = host_name
        self._grace = grace
        self._stopped = False
        self._preparation: asyncio.Timeout | None = None
        self._keeper: asyncio.subprocess.Process | None = None

    async def run(self, http: aiohttp.ClientSession, launched: Callable[[], None]) -> Outcome:
        """Fetch, run, wait. Never raises for what goes wrong with the command; `launched` tells that it runs.

        Cancelling it leaves the processes to their keeper: call `kill` and wait instead.
        """
        try:
            arguments = _split(self._spec.command_line)
            await self._prepare(http)
            if self._stopped:
                return Outcome(None)
            return await self._execute(arguments, launched)
        except PreparationError as error:
            return Outcome(None, error.failure)
        except OSError as error:
            return Outcome(None, _disk_failure(error))

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

    async def _prepare(self, http: aiohttp.ClientSession) -> None:
        (self._directory / "wd").mkdir(parents=True, exist_ok=True)
        for name in ("stdout.txt", "stderr.txt"):
            (self._directory / name).write_bytes(b"")
        try:
            async with asyncio.timeout(None) as self._preparation:
                for file in self._spec.files:
                    await fetch(http, file, self._directory / "wd")
        except TimeoutError:
            if not self._stopped:
                raise
        finally:
            self._preparation = None

    async def _execute(self, arguments: list[str], launched: Callable[[], None]) -> Outcome:
        reader, writer = os.pipe()
        with open(reader, "rb", buffering=0) as status:
            try:
                self._keeper = await self._start_keeper(arguments, writer)
            finally:
                os.close(writer)
            if self._stopped:
                self.kill()
            refused = await _read_all(status.fileno())
            if refused:
                await self._keeper.wait()
                return Outcome(None, _launch_failure(arguments[0], int(refused)))
            launched()
            return Outcome(_exit_code(await self._keeper.wait()))

    async def _start_keeper(self, arguments: list[str], status: int) -> asyncio.subprocess.Process:
        with (
            open(self._directory / "stdout.txt", "ab") as stdout,
            open(self._directory / "stderr.txt", "ab") as stderr,
        ):
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


async def fetch(http: aiohttp.ClientSession, file: ResourceFile, directory: Path) -> None:
    """Download a resource file, or those of a container, into a directory. Raises PreparationError, OSError."""
    if file.url is not None:
        await _download(http, file.url, directory / file.path, file.mode)
        return
    assert file.container_url is not None
    async for name, url in _container_blobs(http, file.container_url, file.prefix):
        await _download(http, url, directory / file.path / name, file.mode)


async def _container_blobs(
    http: aiohttp.ClientSession, container_url: str, prefix: str
) -> AsyncIterator[tuple[str, str]]:
    container = URL(container_url)
    marker = ""
    while True:
        query = {"restype": "container", "comp": "list", "prefix": prefix, "marker": marker}
        listing = ElementTree.fromstring(await _get(http, str(container.update_query(query))))
        for blob in listing.iter("Blob"):
            name = blob.findtext("Name") or ""
            yield name, str((container / name).with_query(container.query))
        marker = listing.findtext("NextMarker") or ""
        if not marker:
            return


async def _get(http: aiohttp.ClientSession, url: str) -> bytes:
    try:
        async with http.get(_encoded(url)) as response:
            _check(response.status, url)
            return await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PreparationError(_download_failure(url, _reason(error))) from error


async def _download(http: aiohttp.ClientSession, url: str, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            await _download_once(http, url, target)
            break
        except (aiohttp.ClientError, TimeoutError) as error:
            if attempt == DOWNLOAD_ATTEMPTS:
                raise PreparationError(_download_failure(url, _reason(error))) from error
            await asyncio.sleep(RETRY_DELAY * attempt)
    target.chmod(mode)


async def _download_once(http: aiohttp.ClientSession, url: str, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    async with http.get(_encoded(url)) as response:
        if response.status >= 500:
            raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
        _check(response.status, url)
        with open(partial, "wb") as file:
            async for chunk in response.content.iter_chunked(_CHUNK):
                file.write(chunk)
    partial.replace(target)


def _encoded(url: str) -> URL:
    return URL(url, encoded=True)


def _check(status: int, url: str) -> None:
    details = (("BlobSource", without_query(url)), ("HttpStatusCode", str(status)))
    if status == 404:
        message = "One of the specified Azure Blob(s) is not found"
        raise PreparationError(Failure("usererror", "BlobNotFound", message, details))
    if status in (401, 403):
        message = "Access for one of the specified Azure Blob(s) is denied"
        raise PreparationError(Failure("usererror", "BlobAccessDenied", message, details))
    if status != 200:
        raise PreparationError(_download_failure(url, f"HTTP status {status}"))


def without_query(url: str) -> str:
    """A URL without what may be its signature."""
    return url.partition("?")[0]


def _reason(error: Exception) -> str:
    """What an HTTP error says, without the URL that its text may hold."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP status {error.status}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{type(error).__name__}: {error.os_error.strerror}"
    return type(error).__name__


def _download_failure(url: str, reason: str) -> Failure:
    return Failure(
        "servererror",
        "BlobDownloadMiscError",
        "Miscellaneous error encountered while downloading one of the specified Azure Blob(s)",
        (("BlobSource", without_query(url)), ("Message", reason)),
    )


def _disk_failure(error: OSError) -> Failure:
    if error.errno == errno.ENOSPC:
        return Failure("servererror", "DiskFull", "There is not enough disk space on the node")
    message = "Failure encountered creating a resource file for the task"
    return Failure(
        "servererror",
        "ResourceFileCreateFailed",
        message,
        (("FilePath", str(error.filename)), ("Message", str(error))),
    )


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


def _launch_failure(program: str, number: int) -> Failure:
    missing = number in (errno.ENOENT, errno.ENOTDIR)
    code = "CommandProgramNotFound" if missing else "CommandLaunchFailed"
    return _launch_error(code, program, os.strerror(number))


def _launch_error(code: str, program: str, reason: str) -> Failure:
    message = {
        "CommandProgramNotFound": "The specified command program is not found",
        "CommandLaunchFailed": "Failed to launch the specified command line",
    }[code]
    return Failure("usererror", code, message, (("Program", program), ("Message", reason)))

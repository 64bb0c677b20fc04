"""Processes: who dies with whom. Real ones, real signals.

What a test starts is told from all else on the machine by how long it sleeps: an age, and each test its own.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchflow.local.batch.core.entities import CommandSpec, Outcome
from batchflow.local.batch.nodes.commands import NodeCommand
from batchflow.local.batch.nodes.resource_files import NodeDownloads
from batchflow.support import linux
from tests.support.batch_sdk import pool_options
from tests.support.processes import is_alive
from tests.support.waiting import eventually

PATIENCE = 20.0
SERVER = """
import asyncio, pathlib, sys
from batchflow.local.batch.server import BatchServer

async def main():
    server = BatchServer(account="local", key=sys.argv[2], root=pathlib.Path(sys.argv[1]))
    await server.start()
    print(server.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def age() -> str:
    """Seconds that nothing else on the machine sleeps."""
    return str(10**9 + secrets.randbelow(10**9))


def living(marker: str) -> list[int]:
    """The processes whose command line holds the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if marker in path.read_text() and is_alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


@pytest.fixture
async def web() -> AsyncIterator[NodeDownloads]:
    """What commands fetch their files with."""
    web = NodeDownloads()
    yield web
    await web.aclose()


def command(line: str, tmp_path: Path, **options: Any) -> NodeCommand:
    """A command to run in a directory of its own."""
    environment = {"PATH": os.environ["PATH"]}
    return NodeCommand(CommandSpec(line), tmp_path / "task", environment, "node000001", **options)


def test_descendants_are_found_by_tree_not_by_group() -> None:
    """Children and their children are found, parents first, also those in sessions of their own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild:
            os.write(writer, b"%d" % grandchild)
        time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(reader, 16))
    os.close(reader)
    os.close(writer)
    assert linux.descendants(child) == [grandchild]
    ours = [pid for pid in linux.descendants(os.getpid()) if pid in (child, grandchild)]
    assert ours == [child, grandchild]
    assert linux.kill_tree(child) == []
    os.waitpid(child, 0)
    assert not is_alive(child)
    with suppress(ChildProcessError):
        os.waitpid(grandchild, 0)


def test_unknown_process_has_no_descendants() -> None:
    """A process that does not exist is not alive, has no descendants, and killing it is harmless."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not is_alive(child)
    assert linux.descendants(child) == []
    assert linux.kill_tree(child) == []


def test_host_name_is_the_process_own() -> None:
    """A process can get a host name of its own; that of the machine stays."""
    before = os.uname().nodename
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        granted = linux.enter_uts_namespace("node000007")
        os.write(writer, os.uname().nodename.encode() if granted else b"refused")
        os._exit(0)
    told = os.read(reader, 64).decode()
    os.close(reader)
    os.close(writer)
    os.waitpid(child, 0)
    assert told in ("node000007", "refused")
    assert os.uname().nodename == before


async def test_command_tells_its_exit_code(tmp_path: Path, web: NodeDownloads) -> None:
    """A command's exit code and output are those of its process, and `launched` is called once."""
    calls: list[bool] = []
    run = command("/bin/sh -c 'hostname; exit 7'", tmp_path)
    assert await run.run(web, lambda: calls.append(True)) == Outcome(7)
    assert calls == [True]
    assert (tmp_path / "task" / "stdout.txt").read_text()


async def test_killed_reaper_takes_its_command_along(tmp_path: Path, web: NodeDownloads, age: str) -> None:
    """When the reaper itself is killed, the kernel kills the command."""
    run = asyncio.create_task(command(f"sleep {age}", tmp_path).run(web, lambda: None))
    await eventually(lambda: any(_is_command(pid, "sleep") for pid in living(age)), pause=0.01)
    reapers = [pid for pid in living(age) if not _is_command(pid, "sleep")]
    os.kill(reapers[0], signal.SIGKILL)
    assert await run == Outcome(137)
    await eventually(lambda: not living(age), pause=0.01)


def _is_command(pid: int, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


async def test_command_stopped_before_it_runs(tmp_path: Path, web: NodeDownloads) -> None:
    """A command that is stopped before it is started is never started."""
    run = command("touch started", tmp_path)
    run.stop()
    outcome = await run.run(web, lambda: None)
    assert outcome.exit_code is None
    assert not (tmp_path / "task" / "wd" / "started").exists()


async def test_fork_storm_is_ended(tmp_path: Path, web: NodeDownloads, age: str) -> None:
    """A tree that keeps forking into new sessions is ended all the same."""
    script = f"while :; do setsid sleep {age} & sleep 0.01; done"
    run = command(f"/bin/sh -c '{script}'", tmp_path, grace=0.0)
    ended = asyncio.create_task(run.run(web, lambda: None))
    await eventually(lambda: len(living(age)) > 5, pause=0.01)
    run.kill()
    await ended
    assert not [pid for pid in living(age) if _is_command(pid, "sleep")]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_survives_a_killed_server(tmp_path: Path, signum: int, age: str) -> None:
    """When the server is killed, even with SIGKILL, no process of any task is left."""
    key = base64.b64encode(b"batch" * 8).decode()
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), key, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().strip()
    await _start_a_tree(url, key, age)
    await eventually(lambda: len([pid for pid in living(age) if _is_command(pid, "sleep")]) == 3, pause=0.01)
    server.send_signal(signum)
    await server.wait()
    await eventually(lambda: not living(age), pause=0.01)


async def _start_a_tree(url: str, key: str, age: str) -> None:
    from azure.batch import models
    from azure.batch.aio import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    nap = f"sleep {age}"
    script = f"trap : TERM; setsid {nap} & (setsid sh -c '{nap} & wait' &) ; {nap}; wait"
    async with BatchClient(url, AzureNamedKeyCredential("local", key)) as client:
        await client.create_pool(pool_options("pool", 1))
        pool_info = models.BatchPoolInfo(pool_id="pool")
        await client.create_job(models.BatchJobCreateOptions(id="job", pool_info=pool_info))
        task = models.BatchTaskCreateOptions(id="task", command_line=f'/bin/sh -c "{script}"')
        await client.create_task("job", task)

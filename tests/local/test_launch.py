"""The local cloud as a process: `python -m batchflow.local`, and a child that does not outlive its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.storage.blob.aio import BlobServiceClient

from batchflow import Client
from batchflow.config.loader import load_settings
from batchflow.errors import ServiceError
from batchflow.local import launch
from batchflow.local.launch import CLOSE_TIMEOUT, LocalCloudProcess
from batchflow.local.security.certificate import make_server_context
from batchflow.settings import Settings
from batchflow.support.linux import descendants
from tests.support.batch_sdk import pool_options
from tests.support.processes import is_alive
from tests.support.waiting import eventually

BOUND = 20.0

USER_PROGRAM = """
import asyncio, os, sys
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from batchflow.config.loader import load_settings
from batchflow.local.launch import LocalCloudProcess

async def main():
    async with LocalCloudProcess() as config:
        settings = load_settings(config, environment={})
        batch = settings.batch
        credential = AzureNamedKeyCredential(batch.account, batch.key)
        async with BatchClient(batch.url, credential) as client:
            await client.create_pool(models.BatchPoolCreateOptions(
                id="p", vm_size="standard_d2s_v3", target_dedicated_nodes=2,
                virtual_machine_configuration=models.VirtualMachineConfiguration(
                    image_reference=models.BatchVmImageReference(
                        publisher="canonical", offer="ubuntu-24_04-lts", sku="server"),
                    node_agent_sku_id="batch.node.ubuntu 24.04")))
            await client.create_job(models.BatchJobCreateOptions(
                id="j", pool_info=models.BatchPoolInfo(pool_id="p")))
            for name in ("one", "two"):
                await client.create_task("j", models.BatchTaskCreateOptions(
                    id=name, command_line="/bin/sh -c 'setsid sleep 600 & sleep 600'"))
            while [task.state async for task in client.list_tasks("j")] != ["running"] * 2:
                await asyncio.sleep(0.02)
            print(settings.servicebus.ca_file, flush=True)
            await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of temporary files for the test and its children."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def children(directory: Path) -> list[int]:
    """Our children that keep their files in that directory; other tests may have children too."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if str(directory) in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


@dataclass
class Program:
    """A running `python -m batchflow.local`."""

    process: asyncio.subprocess.Process
    config: Path
    said: str

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(BOUND):
            return await self.process.wait()


@asynccontextmanager
async def program(config: Path, *options: str) -> AsyncIterator[Program]:
    """The program, ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "batchflow.local", "--config", str(config), *options),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(BOUND):
            while not (lines and lines[-1].startswith("ready")):
                lines.append((await process.stdout.readline()).decode())
                assert lines[-1], "the program ended before it was ready"
        yield Program(process, config, "".join(lines))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def refusal(*arguments: str) -> tuple[int, list[str]]:
    """Run the program with arguments that it refuses; exit status and the lines of its error output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batchflow.local", *arguments, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(BOUND):
        _, errors = await process.communicate()
    return process.returncode or 0, errors.decode().splitlines()


async def use(settings: Settings) -> None:
    """Use each of the three services once, through its SDK."""
    connection_string = settings.servicebus.connection_string or ""
    ca_file = settings.servicebus.ca_file
    async with ServiceBusAdministrationClient.from_connection_string(
        connection_string, connection_verify=ca_file
    ) as administration:
        await administration.create_queue("q")
    async with ServiceBusClient.from_connection_string(connection_string) as bus:
        async with bus.get_queue_sender("q") as sender:
            await sender.send_messages(ServiceBusMessage("hello"))
        async with bus.get_queue_receiver("q") as receiver:
            [message] = await receiver.receive_messages(1, max_wait_time=BOUND)
            assert str(message) == "hello"
            await receiver.complete_message(message)
    batch = settings.batch
    credential = AzureNamedKeyCredential(batch.account or "", batch.key or "")
    async with BatchClient(batch.url or "", credential) as client:
        assert [pool async for pool in client.list_pools()] == []
    async with BlobServiceClient.from_connection_string(settings.storage.connection_string or "") as blobs:
        container = await blobs.create_container("box")
        await container.upload_blob("b", b"x")


class TestProgram:
    async def test_program_runs_until_it_is_signalled(self, tmp_path: Path, temporary_files: Path) -> None:
        """The file holds what connects, the output tells it as well, and nothing of it stays."""
        config = tmp_path / "cloud.toml"
        async with program(config, "--nodes", "3", "--slots", "2") as cloud:
            settings = load_settings(config, environment={})
            assert (settings.target, settings.pool.nodes, settings.pool.slots) == ("local", 3, 2)
            assert settings.agent.python == sys.executable
            assert stat.S_IMODE(config.stat().st_mode) == 0o600
            for told in (
                settings.servicebus.connection_string,
                settings.servicebus.ca_file,
                settings.storage.connection_string,
                settings.batch.url,
                settings.batch.key,
            ):
                assert told
                assert told in cloud.said
            await use(settings)
            assert await cloud.end(signal.SIGTERM) == 0
        assert not config.exists()
        assert list(temporary_files.iterdir()) == []

    async def test_each_cloud_has_keys_of_its_own(self, tmp_path: Path) -> None:
        """Two clouds share neither keys nor ports."""
        async with program(tmp_path / "a") as first, program(tmp_path / "b") as second:
            one, two = (load_settings(cloud.config, environment={}) for cloud in (first, second))
            assert one.batch.key != two.batch.key
            assert one.storage != two.storage
            assert one.servicebus != two.servicebus

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    async def test_rewritten_configuration_file_is_not_removed(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        """A configuration that somebody else wrote meanwhile is theirs."""
        config = tmp_path / "cloud.toml"
        async with program(config) as cloud:
            config.write_text("mine")
            assert await cloud.end(number) == 0
        assert config.read_text() == "mine"

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("--config", "/nowhere/at/all.toml"),
            ("--config", "x", "--nodes", "-1"),
            ("--config", "x", "--latency", "soon"),
            ("--config", "x", "--batch-port", "70000"),
            ("--config", "x", "--nonsense"),
        ],
    )
    async def test_bad_argument_exits_with_one_line_of_error(self, arguments: tuple[str, ...]) -> None:
        """A bad argument is told in one line, with exit status 2."""
        status, lines = await refusal(*arguments)
        assert (status, len(lines)) == (2, 1)
        assert lines[0].startswith("batchflow.local: ")

    @pytest.mark.parametrize("service", ["servicebus", "batch", "blob"])
    async def test_taken_port_exits_with_one_line_of_error(
        self, tmp_path: Path, temporary_files: Path, service: str
    ) -> None:
        """A port that is taken is told in one line that names it, and nothing stays."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            status, lines = await refusal("--config", str(tmp_path / "x"), f"--{service}-port", port)
        assert (status, len(lines)) == (1, 1)
        assert port in lines[0]
        assert list(temporary_files.iterdir()) == []


@asynccontextmanager
async def outside(tls: ssl.SSLContext) -> AsyncIterator[str]:
    """The address of a file on a server of somebody else's."""

    async def hello(_: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    runner = web.ServerRunner(web.Server(hello))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}/file"
    finally:
        await runner.cleanup()


async def exit_code(settings: Settings, command: str, url: str) -> int | None:
    """Of a task on a node, which has what is at the URL as `file`; None when it never ran."""
    batch = settings.batch
    credential = AzureNamedKeyCredential(batch.account or "", batch.key or "")
    async with BatchClient(batch.url or "", credential) as client:
        await client.create_pool(pool_options("p", 1))
        await client.create_job(
            models.BatchJobCreateOptions(id="j", pool_info=models.BatchPoolInfo(pool_id="p"))
        )
        files = [models.ResourceFile(http_url=url, file_path="file")]
        await client.create_task(
            "j", models.BatchTaskCreateOptions(id="t", command_line=command, resource_files=files)
        )
        async with asyncio.timeout(BOUND):
            while (task := await client.get_task("j", "t")).state != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert task.execution_info is not None
    return task.execution_info.exit_code


class TestChild:
    async def test_child_ends_with_the_context_manager(self, temporary_files: Path) -> None:
        """The context manager yields a configuration that connects, and leaves nothing."""
        async with LocalCloudProcess(nodes=3, slots=2) as config:
            settings = load_settings(config, environment={})
            assert (settings.pool.nodes, settings.pool.slots) == (3, 2)
            [child] = children(temporary_files)
            assert os.getsid(child) == child, "Ctrl-C in the terminal must not reach it"
            await use(settings)
        assert list(temporary_files.iterdir()) == []
        assert children(temporary_files) == []

    async def test_child_is_started_in_one_task_and_closed_in_another(self, temporary_files: Path) -> None:
        """Opening and closing need not happen in the same task, and closing twice is fine."""
        cloud = LocalCloudProcess()
        await asyncio.create_task(cloud.start())
        await asyncio.gather(asyncio.create_task(cloud.aclose()), cloud.aclose())
        await cloud.aclose()
        assert list(temporary_files.iterdir()) == []

    async def test_modules_of_the_current_directory_are_not_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Modules of the user's with the names of the library's do no harm."""
        for name in ("aiohttp", "batchflow", "ssl"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
        monkeypatch.chdir(tmp_path)
        async with LocalCloudProcess() as config:
            assert load_settings(config, environment={}).connected

    async def test_nodes_accept_the_certificates_of_the_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Files come from https of the outside world, although the cloud starts without its certificates."""
        trusted = tmp_path / "trusted.pem"
        tls = make_server_context(trusted)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        async with outside(tls) as url, LocalCloudProcess(nodes=1) as config:
            assert await exit_code(load_settings(config, environment={}), "grep -q hello file", url) == 0
        monkeypatch.delenv("SSL_CERT_FILE")
        async with outside(tls) as url, LocalCloudProcess(nodes=1) as config:
            assert await exit_code(load_settings(config, environment={}), "grep -q hello file", url) is None

    async def test_two_clouds_run_side_by_side(self) -> None:
        """Clouds of one program do not meet."""
        async with LocalCloudProcess() as one, LocalCloudProcess() as two:
            assert load_settings(one).batch.url != load_settings(two).batch.url

    async def test_refused_start_raises_the_reason(self, temporary_files: Path) -> None:
        """A child that refuses to start gives its reason, and leaves nothing."""
        with pytest.raises(ServiceError, match="--nodes"):
            await LocalCloudProcess(nodes=-1).start()
        assert list(temporary_files.iterdir()) == []

    async def test_late_child_is_ended_and_raises_an_error(
        self, temporary_files: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A child that is not ready in time is ended, and that is an error."""
        monkeypatch.setattr(launch, "START_TIMEOUT", 0.001)
        with pytest.raises(ServiceError, match="not ready"):
            await LocalCloudProcess().start()
        assert list(temporary_files.iterdir()) == []
        assert children(temporary_files) == []

    async def test_cancelled_start_leaves_no_process_and_no_directory(self, temporary_files: Path) -> None:
        """Whoever gives up waiting leaves no process and no directory."""
        starting = asyncio.create_task(LocalCloudProcess().start())
        await eventually(lambda: bool(children(temporary_files)))
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert list(temporary_files.iterdir()) == []
        assert children(temporary_files) == []

    async def test_closing_a_client_waits_for_its_cloud(self, temporary_files: Path) -> None:
        """Closing a client that has a cloud of its own may take as long as ending that may take."""
        async with Client.local(nodes=1) as client:
            assert client.close_timeout > CLOSE_TIMEOUT
        assert list(temporary_files.iterdir()) == []

    async def test_directory_of_a_killed_child_is_removed(self, temporary_files: Path) -> None:
        """When the child itself was killed, closing still removes its directory."""
        cloud = LocalCloudProcess()
        await cloud.start()
        [child] = children(temporary_files)
        os.kill(child, signal.SIGKILL)
        await cloud.aclose()
        # `tempfile` probes its folder with a file of its own, which a kill may leave: not ours to judge.
        assert [path for path in temporary_files.iterdir() if path.is_dir()] == []


class TestDeath:
    @asynccontextmanager
    async def user_program(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
        """A user's program with a cloud and tasks that run; it, and its cloud's process id."""
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", USER_PROGRAM, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            assert program.stdout is not None
            async with asyncio.timeout(BOUND):
                assert (await program.stdout.readline()).endswith(b"ca.pem\n")
            yield program, descendants(program.pid)[0]
        finally:
            if program.returncode is None:
                program.kill()
            await program.communicate()

    async def test_killed_program_takes_its_cloud_along(self, temporary_files: Path) -> None:
        """SIGKILL to the program that launched a cloud ends the cloud, all tasks, and the directory."""
        async with self.user_program() as (program, cloud):
            below = descendants(cloud)
            assert len(below) >= 6
            program.kill()
            await program.wait()
            await eventually(lambda: not any(map(is_alive, (cloud, *below))))
            await eventually(lambda: list(temporary_files.iterdir()) == [])

    async def test_killed_cloud_takes_its_nodes_along(self, temporary_files: Path) -> None:
        """SIGKILL to the cloud itself ends all its nodes' processes."""
        async with self.user_program() as (_, cloud):
            below = descendants(cloud)
            os.kill(cloud, signal.SIGKILL)
            await eventually(lambda: not any(map(is_alive, below)))

    async def test_fork_of_the_program_does_not_keep_the_cloud_alive(self, temporary_files: Path) -> None:
        """A forked child of the program, which inherits the lifeline, does not keep the cloud alive."""
        code = (
            "import asyncio, os, sys, time\n"
            "from batchflow.local.launch import LocalCloudProcess\n"
            "async def main():\n"
            "    await LocalCloudProcess().start()\n"
            "    if (fork := os.fork()) == 0: os.close(1), time.sleep(600)\n"
            "    print(fork, flush=True)\n"
            "    os.kill(os.getpid(), 9)\n"
            "asyncio.run(main())\n"
        )
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        assert program.stdout is not None
        fork = int(await program.stdout.readline())
        try:
            await program.wait()
            await eventually(lambda: list(temporary_files.iterdir()) == [])
            assert is_alive(fork)
        finally:
            os.kill(fork, signal.SIGKILL)
            await program.communicate()

"""The three services together, in the test's own process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from time import perf_counter

import aiohttp
import pytest

from batchflow.errors import ConfigurationError
from batchflow.local.server import LocalCloud, Ports


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory for a cloud."""
    directory = tmp_path / "cloud"
    directory.mkdir(mode=0o700)
    return directory


async def test_closing_leaves_no_process_and_no_file(directory: Path) -> None:
    """Closing frees the ports and removes the directory; closing again is fine."""
    cloud = LocalCloud(directory=directory)
    settings = await cloud.start()
    assert settings.connected
    assert sorted(path.name for path in directory.iterdir()) == ["blobs", "ca.pem", "lock", "nodes"]
    async with aiohttp.ClientSession() as http:
        async with http.get(settings.batch.url or "") as response:
            assert response.status in (401, 403)
        await cloud.aclose()
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get(settings.batch.url or "")
    await cloud.aclose()
    assert not directory.exists()


async def test_given_ports_are_used(directory: Path) -> None:
    """The services listen where they are told to."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        batch, blob = one.getsockname()[1], two.getsockname()[1]
    cloud = LocalCloud(directory=directory, ports=Ports(batch=batch, blob=blob))
    settings = await cloud.start()
    await cloud.aclose()
    assert settings.batch.url == f"http://127.0.0.1:{batch}"
    assert f":{blob}/" in (settings.storage.connection_string or "")


async def test_taken_port_raises_a_configuration_error(directory: Path) -> None:
    """A taken port is a ConfigurationError that names the service and the port, and nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"Blob service .*:{port}: the port is taken"):
            await LocalCloud(directory=directory, ports=Ports(blob=port)).start()
    assert not directory.exists()


async def test_a_cancelled_start(directory: Path) -> None:
    """Cancelling the start leaves nothing."""
    starting = asyncio.create_task(LocalCloud(directory=directory).start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not directory.exists()


async def test_latency_reaches_each_service(directory: Path) -> None:
    """No service answers sooner than the latency."""
    cloud = LocalCloud(directory=directory, latency=0.05)
    settings = await cloud.start()
    try:
        endpoint = (settings.storage.connection_string or "").split("BlobEndpoint=")[1].rstrip(";")
        bus = (settings.servicebus.connection_string or "").partition("sb://")[2].partition(";")[0]
        trust = ssl.create_default_context(cafile=settings.servicebus.ca_file)
        async with aiohttp.ClientSession() as http:
            for url in (settings.batch.url or "", endpoint, f"https://{bus}/queue"):
                asked = perf_counter()
                async with http.get(url, ssl=trust) as response:
                    await response.read()
                assert perf_counter() - asked >= 0.05
    finally:
        await cloud.aclose()

"""The Blob service on the wire: what it refuses, and what becomes of broken and concurrent requests."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import aiohttp
import pytest
from azure.storage.blob import generate_account_sas
from yarl import URL

from batchflow.local.blob.server import BlobServer
from batchflow.local.blob.service import READ_AHEAD
from tests.support.waiting import eventually

KEY = base64.b64encode(b"k" * 64).decode()
BLOCK = {"x-ms-blob-type": "BlockBlob"}
APPEND = {"x-ms-blob-type": "AppendBlob"}


@dataclass
class Wire:
    """A server, a plain HTTP client, and the directory of the server's files."""

    server: BlobServer
    http: aiohttp.ClientSession
    root: Path
    sas: str

    def url(self, path: str = "/box/b", query: str = "") -> URL:
        """A signed URL; the path is taken as it is."""
        return URL(f"{self.server.url}{path}?{self.sas}{query}", encoded=True)

    async def ask(
        self,
        method: str,
        path: str = "/box/b",
        query: str = "",
        headers: dict[str, str] | None = None,
        data: object = None,
    ) -> tuple[int, str, bytes]:
        """Ask, and return status, error code and body."""
        async with self.http.request(method, self.url(path, query), headers=headers, data=data) as response:
            body = await response.read()
            return response.status, response.headers.get("x-ms-error-code", ""), body

    async def put(self, data: bytes, path: str = "/box/b") -> None:
        """Put a block blob."""
        assert (await self.ask("PUT", path, headers=BLOCK, data=io.BytesIO(data)))[0] == 201

    def files(self) -> list[str]:
        """The names of the files that the server keeps."""
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with an empty container, `box`."""
    server = BlobServer(account="local", key=KEY, root=tmp_path / "blobs")
    await server.start()
    expiry = datetime.now(UTC) + timedelta(hours=1)
    sas = generate_account_sas("local", KEY, "sco", "racwdl", expiry)
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as http:
            wire = Wire(server, http, tmp_path / "blobs", sas)
            assert (await wire.ask("PUT", "/box", "&restype=container"))[0] == 201
            yield wire
    finally:
        await server.aclose()


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "path", "query", "headers"),
        [
            ("PUT", "/box/b", "&comp=lease", {"x-ms-lease-action": "acquire"}),
            ("PUT", "/box/b", "&comp=snapshot", {}),
            ("PUT", "/box/b", "&comp=nonsense", {}),
            ("PUT", "/box/b", "", {**BLOCK, "x-ms-copy-source": "http://127.0.0.1/x"}),
            ("PUT", "/box/b", "", {**BLOCK, "x-ms-tags": "a=b"}),
            ("PUT", "/box/b", "", {"x-ms-blob-type": "PageBlob"}),
            ("GET", "/box/b", "&snapshot=2030-01-01", {}),
            ("DELETE", "/box/b", "", {"x-ms-delete-snapshots": "only"}),
            ("GET", "/box", "&restype=container&comp=list&include=uncommittedblobs", {}),
            ("GET", "/box", "&restype=container&comp=list&startFrom=x", {}),
            ("GET", "/box", "&restype=nonsense", {}),
            ("GET", "/root-blob", "", {}),
            ("GET", "/", "&restype=service&comp=properties", {}),
            ("POST", "/", "&comp=batch", {}),
        ],
    )
    async def test_what_is_not_there_is_said_to_be_so(
        self, wire: Wire, method: str, path: str, query: str, headers: dict[str, str]
    ) -> None:
        """Every operation, header and parameter that is lacking is answered by 501, in the service's form."""
        await wire.put(b"x")
        status, code, body = await wire.ask(method, path, query, headers)
        assert (status, code) == (501, "NotImplemented")
        assert ElementTree.fromstring(body).findtext("Code") == code
        assert (await wire.ask("GET"))[2] == b"x"

    @pytest.mark.parametrize(
        ("method", "path", "query", "headers", "expected"),
        [
            ("POST", "/box/b", "", {}, (405, "UnsupportedHttpVerb")),
            ("GET", "/box/b", "", {"x-ms-lease-id": "x"}, (412, "LeaseNotPresentWithBlobOperation")),
            ("GET", "/box/b", "", {"If-Modified-Since": "soon"}, (400, "InvalidHeaderValue")),
            ("GET", "/box/b", "", {"x-ms-range": "bytes=5-4"}, (416, "InvalidRange")),
            ("GET", "/box/b", "", {"x-ms-range-get-content-md5": "true"}, (400, "InvalidHeaderValue")),
            ("PUT", "/box/b", "", {}, (400, "MissingRequiredHeader")),
            ("PUT", "/box/b", "", {"x-ms-blob-type": "x"}, (400, "InvalidHeaderValue")),
            ("PUT", "/box/b", "", {**BLOCK, "Content-MD5": "x"}, (400, "InvalidMd5")),
            ("PUT", "/box/b", "", {**BLOCK, "x-ms-meta-a": "x" * 8192}, (400, "MetadataTooLarge")),
            ("PUT", "/box/" + "n" * 1025, "", BLOCK, (400, "InvalidResourceName")),
            ("PUT", "/box/b", "&comp=block&blockid=!", {}, (400, "InvalidQueryParameterValue")),
            ("GET", "/box/b", "&comp=blocklist&blocklisttype=x", {}, (400, "InvalidQueryParameterValue")),
            (
                "GET",
                "/box",
                "&restype=container&comp=list&maxresults=0",
                {},
                (400, "OutOfRangeQueryParameterValue"),
            ),
            (
                "GET",
                "/box",
                "&restype=container&comp=list&marker=%C3%BC",
                {},
                (400, "InvalidQueryParameterValue"),
            ),
        ],
    )
    async def test_bad_requests(
        self,
        wire: Wire,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        expected: tuple[int, str],
    ) -> None:
        """What a client gets wrong is answered by the code that Azure has for it."""
        await wire.put(b"x")
        assert (await wire.ask(method, path, query, headers))[:2] == expected

    async def test_another_account(self, wire: Wire) -> None:
        """A path that names another account is refused."""
        async with wire.http.get(URL(f"{wire.server.url}x/box/b?{wire.sas}", encoded=True)) as response:
            assert (response.status, response.headers["x-ms-error-code"]) == (400, "InvalidUri")

    async def test_a_path_that_is_not_utf8(self, wire: Wire) -> None:
        """A path that is no text is refused."""
        assert (await wire.ask("GET", "/box/%ff"))[:2] == (400, "InvalidUri")

    @pytest.mark.parametrize(
        "body", [b"<BlockList>", b"<Other/>", b"<BlockList><Odd>x</Odd></BlockList>", b"\xff"]
    )
    async def test_a_broken_document(self, wire: Wire, body: bytes) -> None:
        """XML that is broken, or is something else, is refused."""
        assert (await wire.ask("PUT", query="&comp=blocklist", data=body))[:2] == (400, "InvalidXmlDocument")

    async def test_an_error_to_head_has_no_body(self, wire: Wire) -> None:
        """A refused HEAD tells its code in the header."""
        assert await wire.ask("HEAD") == (404, "BlobNotFound", b"")

    async def test_no_credential(self, wire: Wire) -> None:
        """A request without credential gets 401 with a challenge."""
        async with wire.http.get(f"{wire.server.url}/box/b") as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "SharedKey")


class TestBodies:
    async def test_a_length_is_required(self, wire: Wire) -> None:
        """A body of untold length is refused, as by Azure."""

        async def body() -> AsyncIterator[bytes]:
            yield b"x"

        assert (await wire.ask("PUT", headers=BLOCK, data=body()))[:2] == (411, "MissingContentLengthHeader")

    async def test_an_append_block_has_a_limit(self, wire: Wire) -> None:
        """A block that is too large to append is refused before it is received."""
        assert (await wire.ask("PUT", headers=APPEND))[0] == 201
        raw = await asyncio.open_connection("127.0.0.1", wire.server.port)
        target = wire.url(query="&comp=appendblock").raw_path_qs
        raw[1].write(f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {5 << 20}\r\n\r\n".encode())
        assert (await raw[0].readline()).split()[1] == b"413"
        raw[1].close()
        await raw[1].wait_closed()

    async def test_a_client_that_waits_for_leave_to_send(self, wire: Wire) -> None:
        """`Expect: 100-continue` is answered before the body is sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.server.port)
        head = f"PUT {wire.url().raw_path_qs} HTTP/1.1\r\nHost: x\r\nx-ms-blob-type: BlockBlob\r\n"
        writer.write(f"{head}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"100"
        writer.write(b"abc")
        assert (await reader.readline()).split()[1] == b"201"
        writer.close()
        await writer.wait_closed()
        assert (await wire.ask("GET"))[2] == b"abc"

    async def test_a_client_that_goes_away(self, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
        """Half a body makes no blob, leaves no file, and is nothing to log."""
        _, writer = await asyncio.open_connection("127.0.0.1", wire.server.port)
        head = f"PUT {wire.url().raw_path_qs} HTTP/1.1\r\nHost: x\r\nx-ms-blob-type: BlockBlob\r\n"
        writer.write(f"{head}Content-Length: {8 << 20}\r\n\r\n".encode() + b"x" * (2 << 20))
        await writer.drain()
        await eventually(lambda: bool(wire.files()))
        writer.transport.abort()
        await eventually(lambda: not wire.files())
        assert (await wire.ask("GET"))[0] == 404
        assert not caplog.records

    async def test_a_client_that_stops_reading(self, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
        """A client that leaves in the middle of an answer is nothing to log, and holds no file open."""
        await wire.put(b"x" * (32 << 20))
        before = len(os.listdir("/proc/self/fd"))
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.server.port)
        writer.write(f"GET {wire.url().raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"200"
        writer.transport.abort()
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert not caplog.records

    async def test_ranges_as_browsers_ask(self, wire: Wire) -> None:
        """Range works like x-ms-range, and one that is not understood is ignored."""
        await wire.put(b"0123456789")
        assert (await wire.ask("GET", headers={"Range": "bytes=2-3"}))[::2] == (206, b"23")
        assert (await wire.ask("GET", headers={"Range": "bytes=-3"}))[::2] == (200, b"0123456789")

    async def test_a_name_that_xml_cannot_hold(self, wire: Wire) -> None:
        """A listing percent-encodes a name with control characters, and says so."""
        await wire.put(b"x", "/box/a%01b")
        body = (await wire.ask("GET", "/box", "&restype=container&comp=list"))[2]
        name = ElementTree.fromstring(body).find("Blobs/Blob/Name")
        assert name is not None
        assert (name.get("Encoded"), name.text) == ("true", "a%01b")


class TestFiles:
    async def test_no_file_outlives_its_use(self, wire: Wire) -> None:
        """Replaced, committed, refused and deleted content is removed from the disk."""
        for data in (b"one", b"two"):
            await wire.put(data)
        assert len(wire.files()) == 1
        await wire.ask("PUT", query="&comp=block&blockid=AAAA", data=b"abc")
        await wire.ask("PUT", query="&comp=block&blockid=AAAA", data=b"def")
        assert len(wire.files()) == 2
        listed = b"<BlockList><Latest>AAAA</Latest></BlockList>"
        assert (await wire.ask("PUT", query="&comp=blocklist", data=listed))[0] == 201
        assert (await wire.ask("GET"))[2] == b"def"
        assert len(wire.files()) == 1
        bad = {**BLOCK, "Content-MD5": base64.b64encode(b"x" * 16).decode()}
        assert (await wire.ask("PUT", headers=bad, data=b"x"))[1] == "Md5Mismatch"
        assert len(wire.files()) == 1
        assert (await wire.ask("DELETE", "/box", "&restype=container"))[0] == 202
        assert wire.files() == []

    async def test_a_reader_sees_one_version(self, wire: Wire) -> None:
        """Whoever reads while others overwrite gets one version, whole."""
        size = READ_AHEAD + (2 << 20)
        await wire.put(b"0" * size)

        async def write(digit: int) -> None:
            await wire.put(str(digit).encode() * size)

        async def read() -> bytes:
            return (await wire.ask("GET"))[2]

        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(read()) for _ in range(4)]
            for digit in range(1, 5):
                group.create_task(write(digit))
            readers += [group.create_task(read()) for _ in range(4)]
        for reader in readers:
            content = reader.result()
            assert len(content) == size
            assert content == content[:1] * size

    async def test_appends_and_changes_at_once(self, wire: Wire) -> None:
        """Appends that meet changes of metadata are all there, in one piece each."""
        assert (await wire.ask("PUT", headers=APPEND))[0] == 201
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(wire.ask("PUT", query="&comp=appendblock", data=f"{number:03}\n".encode()))
                group.create_task(
                    wire.ask("PUT", query="&comp=metadata", headers={"x-ms-meta-n": str(number)})
                )
        lines = (await wire.ask("GET"))[2].decode().split()
        assert sorted(lines) == [f"{number:03}" for number in range(20)]

    async def test_a_lost_file_is_an_internal_error(self, wire: Wire) -> None:
        """When somebody removes the server's files, the answer is an error and the server goes on."""
        await wire.put(b"x")
        for file in wire.root.iterdir():
            file.unlink()
        assert (await wire.ask("GET"))[:2] == (500, "InternalError")
        await wire.put(b"y")
        assert (await wire.ask("GET"))[2] == b"y"


class TestServer:
    async def test_latency_delays_each_answer(self, tmp_path: Path) -> None:
        """An answer leaves no sooner than the latency."""
        server = BlobServer(account="local", key=KEY, root=tmp_path, latency=0.05)
        await server.start()
        try:
            async with aiohttp.ClientSession() as http:
                asked = perf_counter()
                async with http.get(server.url) as response:
                    assert response.status == 401
                assert perf_counter() - asked >= 0.05
        finally:
            await server.aclose()

    async def test_taken_port_exits_with_one_line_of_error(self, tmp_path: Path) -> None:
        """A port that is taken is an OSError, and nothing is left open."""
        first = BlobServer(account="local", key=KEY, root=tmp_path)
        second = BlobServer(account="local", key=KEY, root=tmp_path)
        await first.start()
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its errno is looked at)
            await second.start(port=first.port)
        assert caught.value.errno == errno.EADDRINUSE
        await second.aclose()
        await first.aclose()
        await first.aclose()
        await second.start(port=first.port)
        await second.aclose()

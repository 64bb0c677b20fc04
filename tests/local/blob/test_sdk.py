"""The Blob service seen through the unmodified Azure SDK."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import (
    AccessPolicy,
    BlobBlock,
    BlobSasPermissions,
    BlobType,
    ContainerSasPermissions,
    ContentSettings,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)
from azure.storage.blob.aio import BlobClient, BlobPrefix, BlobServiceClient, ContainerClient

from batchflow.local.blob.server import BlobServer

ACCOUNT = "local"
KEY = base64.b64encode(b"k" * 64).decode()
MIB = 1024 * 1024
AZURITE = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")


class Service:
    """An endpoint under test: what it is reached with, and how to make a signature for it."""

    def __init__(self, connection_string: str) -> None:
        parts = dict(part.split("=", 1) for part in connection_string.strip(";").split(";"))
        self.connection_string = connection_string
        self.account, self.key = parts["AccountName"], parts["AccountKey"]
        self.url = parts["BlobEndpoint"]
        self.client = BlobServiceClient.from_connection_string(connection_string, retry_total=0)

    def container_sas(self, container: str, permission: str | None = None, **options: Any) -> str:
        """A service SAS for a container, for an hour unless said otherwise."""
        if permission is not None:
            options = {
                "expiry": soon(),
                "permission": ContainerSasPermissions.from_string(permission),
            } | options
        return generate_container_sas(self.account, container, self.key, **options)

    def as_holder(self, container: str, sas: str) -> ContainerClient:
        """The container as someone sees it who has only the SAS."""
        return ContainerClient(self.url, container, credential=sas, retry_total=0)


def soon(**delta: float) -> datetime:
    """An hour from now, or what is said."""
    return datetime.now(UTC) + timedelta(**(delta or {"hours": 1}))


@asynccontextmanager
async def local_service(root: Path) -> AsyncIterator[Service]:
    """A local Blob service of its own."""
    server = BlobServer(account=ACCOUNT, key=KEY, root=root)
    await server.start()
    try:
        yield Service(server.connection_string)
    finally:
        await server.aclose()


@asynccontextmanager
async def azurite(root: Path) -> AsyncIterator[Service]:
    """Azurite, Microsoft's emulator."""
    assert AZURITE is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(AZURITE, "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"),
        *("--blobPort", str(port)),
        cwd=root,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b"successfully listens" not in (line := await process.stdout.readline()):
                assert line, "Azurite ended before it was ready"
        yield Service(
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        )
    finally:
        process.kill()
        await process.communicate()


@pytest.fixture(params=[local_service, azurite] if AZURITE else [local_service])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    """The Blob service: the local one, and for comparison Azurite where it is installed."""
    async with request.param(tmp_path) as service, service.client:
        yield service


@pytest.mark.skipif(AZURITE is None, reason="azurite-blob is not on the PATH, and AZURITE_BLOB names none")
async def test_azurite_takes_part(tmp_path: Path) -> None:
    """The tests below run against Azurite as well."""
    async with azurite(tmp_path) as service, service.client:
        assert (await service.client.create_container("things")).container_name == "things"


@pytest.fixture
async def container(service: Service) -> AsyncIterator[ContainerClient]:
    """An empty container, opened with the account's key."""
    async with await service.client.create_container("things") as client:
        yield client


async def refused(action: object, error: type[HttpResponseError] = HttpResponseError) -> str:
    """Await what must be refused, and return the error code."""
    with pytest.raises(error) as caught:
        await action  # type: ignore[misc]
    code = caught.value.error_code  # type: ignore[attr-defined]  # the SDK leaves codes that it does not know as strings
    return str(getattr(code, "value", code))


async def not_let_in(action: object) -> None:
    """Await what must be refused because its credential is not good; Azurite has its own word for it."""
    assert await refused(action) in ("AuthenticationFailed", "AuthorizationFailure")


async def not_modified(action: object) -> None:
    """Await what must be answered by 304, which the SDK raises like a failed condition."""
    with pytest.raises(ResourceModifiedError) as caught:
        await action  # type: ignore[misc]
    assert caught.value.status_code == 304


class TestContainers:
    async def test_a_container_is_created_seen_and_deleted(self, service: Service) -> None:
        """A container lives from its creation to its deletion, with its metadata."""
        client = service.client.get_container_client("one")
        created = await client.create_container(metadata={"Colour": "blue"})
        properties = await client.get_container_properties()
        assert properties.etag == created["etag"]
        assert properties.metadata == {"Colour": "blue"}
        assert await client.exists()
        await client.delete_container()
        assert not await client.exists()
        assert await refused(client.delete_container(), ResourceNotFoundError) == "ContainerNotFound"

    async def test_a_name_is_taken_once(self, service: Service, container: ContainerClient) -> None:
        """Creating what is there is refused as Azure refuses it."""
        code = await refused(service.client.create_container("things"), ResourceExistsError)
        assert code == "ContainerAlreadyExists"

    async def test_a_bad_name_is_refused(self, service: Service) -> None:
        """Names follow Azure's rules."""
        assert await refused(service.client.create_container("No_Good")) == "InvalidResourceName"
        assert await refused(service.client.create_container("no")) == "OutOfRangeInput"

    async def test_metadata_is_replaced(self, container: ContainerClient) -> None:
        """Setting metadata replaces all of it and changes the ETag."""
        before = (await container.get_container_properties()).etag
        await container.set_container_metadata({"a": "1"})
        await container.set_container_metadata({"b": "2"})
        properties = await container.get_container_properties()
        assert properties.metadata == {"b": "2"}
        assert properties.etag != before

    async def test_containers_are_listed_in_pages(self, service: Service) -> None:
        """A listing goes by name, prefix and page, with metadata when asked for."""
        for number in range(5):
            await service.client.create_container(f"page-{number}", metadata={"n": str(number)})
        await service.client.create_container("other")
        listing = service.client.list_containers("page-", include_metadata=True, results_per_page=2)
        pages = [[item async for item in page] async for page in listing.by_page()]
        assert [[item.name for item in page] for page in pages] == [
            ["page-0", "page-1"],
            ["page-2", "page-3"],
            ["page-4"],
        ]
        assert pages[0][1].metadata == {"n": "1"}

    async def test_policies_are_kept(self, container: ContainerClient) -> None:
        """Stored access policies come back as they were set."""
        policy = AccessPolicy(permission="rl", start="2030-01-01T00:00:00Z", expiry="2031-01-01T00:00:00Z")
        await container.set_container_access_policy({"readers": policy})
        found = await container.get_container_access_policy()
        assert found["public_access"] is None
        [identifier] = found["signed_identifiers"]
        assert identifier.id == "readers"
        assert (identifier.access_policy.permission, identifier.access_policy.expiry) == (
            policy.permission,
            policy.expiry,
        )

    @pytest.mark.parametrize("service", [local_service], indirect=True)
    async def test_public_access_is_refused(self, service: Service) -> None:
        """Nothing can be opened to the public, as in an account that forbids it."""
        code = await refused(service.client.create_container("open", public_access="container"))
        assert code == "PublicAccessNotPermitted"


class TestBlobs:
    @pytest.mark.parametrize("name", ["plain.txt", "a/b c/ü+%25&=.txt", "q?x#y", "日本"])
    async def test_content_goes_in_and_comes_out(self, container: ContainerClient, name: str) -> None:
        """A blob of any name holds what was put there."""
        blob = container.get_blob_client(name)
        await blob.upload_blob(b"hello", metadata={"Kind": "Test"})
        stream = await blob.download_blob()
        assert await stream.readall() == b"hello"
        assert stream.properties.metadata == {"Kind": "Test"}
        assert [item.name async for item in container.list_blobs()] == [name]

    async def test_an_empty_blob(self, container: ContainerClient) -> None:
        """An empty blob can be read, by range and whole."""
        await container.upload_blob("empty", b"")
        assert await (await container.download_blob("empty")).readall() == b""

    async def test_properties(self, container: ContainerClient) -> None:
        """The properties say what was set, and the content's MD5."""
        settings = ContentSettings("text/plain", "identity", "en", "attachment", "no-cache")
        await container.upload_blob("b", b"text", content_settings=settings)
        found = await container.get_blob_client("b").get_blob_properties()
        assert (found.size, found.blob_type) == (4, BlobType.BLOCKBLOB)
        kept = found.content_settings
        assert (kept.content_type, kept.content_language) == ("text/plain", "en")
        assert (kept.content_disposition, kept.cache_control) == ("attachment", "no-cache")
        assert bytes(kept.content_md5 or b"") == hashlib.md5(b"text").digest()
        assert abs(found.last_modified - datetime.now(UTC)) < timedelta(minutes=1)

    async def test_settings_and_metadata_are_replaced(self, container: ContainerClient) -> None:
        """Settings and metadata change without the content."""
        blob = await container.upload_blob("b", b"text", metadata={"a": "1"})
        await blob.set_blob_metadata({"b": "2"})
        await blob.set_http_headers(ContentSettings(content_type="text/css"))
        found = await blob.get_blob_properties()
        assert (found.metadata, found.content_settings.content_type) == ({"b": "2"}, "text/css")
        assert await (await blob.download_blob()).readall() == b"text"

    async def test_a_blob_is_not_overwritten_unasked(self, container: ContainerClient) -> None:
        """`If-None-Match: *` answers 409 BlobAlreadyExists, and overwriting works when asked for."""
        await container.upload_blob("b", b"one")
        assert await refused(container.upload_blob("b", b"two"), ResourceExistsError) == "BlobAlreadyExists"
        await container.upload_blob("b", b"three", overwrite=True)
        assert await (await container.download_blob("b")).readall() == b"three"

    async def test_deleted_is_gone(self, container: ContainerClient) -> None:
        """A deleted blob is not found by any operation."""
        blob = await container.upload_blob("b", b"one")
        await blob.delete_blob()
        assert not await blob.exists()
        assert await refused(blob.download_blob(), ResourceNotFoundError) == "BlobNotFound"
        assert await refused(blob.delete_blob(), ResourceNotFoundError) == "BlobNotFound"
        assert await refused(blob.get_blob_properties(), ResourceNotFoundError) == "BlobNotFound"

    async def test_a_missing_container(self, service: Service) -> None:
        """Without its container, a blob can neither be put nor found."""
        blob = service.client.get_blob_client("nowhere", "b")
        assert await refused(blob.upload_blob(b""), ResourceNotFoundError) == "ContainerNotFound"
        assert await refused(blob.download_blob(), ResourceNotFoundError) == "ContainerNotFound"

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [(0, 4, b"0123"), (3, None, b"3456789"), (8, 100, b"89"), (9, 1, b"9")],
    )
    async def test_ranges(
        self, container: ContainerClient, offset: int, length: int | None, expected: bytes
    ) -> None:
        """Any range within the blob can be read, also one that ends beyond it."""
        await container.upload_blob("b", b"0123456789")
        stream = await container.download_blob("b", offset=offset, length=length, validate_content=True)
        assert await stream.readall() == expected

    async def test_a_range_beyond_the_end(self, container: ContainerClient) -> None:
        """A range that begins after the end is refused."""
        await container.upload_blob("b", b"0123456789")
        assert await refused(container.download_blob("b", offset=11, length=1)) == "InvalidRange"

    async def test_corrupted_content_is_refused(self, container: ContainerClient) -> None:
        """A wrong Content-MD5 is refused and changes nothing."""
        blob = container.get_blob_client("b")
        wrong = ContentSettings(content_md5=bytearray(b"x" * 16))
        code = await refused(blob.upload_blob(b"text", content_settings=wrong))
        assert code in ("Md5Mismatch", "InvalidOperation")  # the second is Azurite's
        assert not await blob.exists()
        await blob.upload_blob(b"text", validate_content=True)

    async def test_metadata_names_are_identifiers(self, container: ContainerClient) -> None:
        """A metadata name that is no identifier is refused."""
        code = await refused(container.upload_blob("b", b"", metadata={"not-good": "x"}))
        assert code == "InvalidMetadata"


class TestConditions:
    async def test_an_unchanged_blob_is_not_sent_again(self, container: ContainerClient) -> None:
        """Reading with the known ETag answers 304."""
        blob = container.get_blob_client("b")
        etag = (await blob.upload_blob(b"one"))["etag"]
        unless = {"etag": etag, "match_condition": MatchConditions.IfModified}
        for action in (blob.download_blob(**unless), blob.get_blob_properties(**unless)):
            await not_modified(action)
        await blob.upload_blob(b"two", overwrite=True)
        assert await (await blob.download_blob(**unless)).readall() == b"two"

    async def test_a_stale_write_is_refused(self, container: ContainerClient) -> None:
        """If-Match lets only the holder of the current version write or delete."""
        blob = container.get_blob_client("b")
        etag = (await blob.upload_blob(b"one"))["etag"]
        only = {"etag": etag, "match_condition": MatchConditions.IfNotModified}
        await blob.upload_blob(b"two", overwrite=True, **only)
        for action in (blob.upload_blob(b"x", overwrite=True, **only), blob.delete_blob(**only)):
            assert await refused(action, ResourceModifiedError) == "ConditionNotMet"

    async def test_only_one_of_many_creates(self, container: ContainerClient) -> None:
        """Of writers that race to create one blob, one wins."""
        outcomes = await asyncio.gather(
            *(container.upload_blob("b", str(n).encode()) for n in range(8)), return_exceptions=True
        )
        assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1

    async def test_by_time(self, container: ContainerClient) -> None:
        """The conditions on time work at a second's resolution."""
        blob = container.get_blob_client("b")
        await blob.upload_blob(b"one")
        await not_modified(blob.download_blob(if_modified_since=soon()))
        await refused(blob.delete_blob(if_unmodified_since=soon(hours=-1)), ResourceModifiedError)
        await blob.delete_blob(if_unmodified_since=soon())


class TestListings:
    async def test_pages_prefixes_and_metadata(self, container: ContainerClient) -> None:
        """Blobs are listed by name, in pages, below a prefix, with metadata when asked for."""
        for name in ("b/2", "a/1", "b/1", "b/3", "c"):
            await container.upload_blob(name, b"x", metadata={"Name": name})
        listing = container.list_blobs("b/", include=["metadata"], results_per_page=2)
        pages = [[item async for item in page] async for page in listing.by_page()]
        assert [[item.name for item in page] for page in pages] == [["b/1", "b/2"], ["b/3"]]
        assert pages[0][0].metadata == {"Name": "b/1"}
        assert pages[0][0].size == 1
        assert bytes(pages[0][0].content_settings.content_md5 or b"") == hashlib.md5(b"x").digest()

    async def test_a_delimiter_gathers(self, container: ContainerClient) -> None:
        """With a delimiter a listing shows one level, in pages."""
        for name in ("a/1", "a/2", "b", "c/d/1", "c/e"):
            await container.upload_blob(name, b"x")
        entries = [item async for item in container.walk_blobs(results_per_page=1)]
        assert [(item.name, isinstance(item, BlobPrefix)) for item in entries] == [
            ("a/", True),
            ("b", False),
            ("c/", True),
        ]
        assert [item.name async for item in container.walk_blobs("c/")] == ["c/d/", "c/e"]

    async def test_the_etag_is_the_blobs(self, container: ContainerClient) -> None:
        """A listing tells the same version as the blob itself."""
        blob = await container.upload_blob("b", b"x")
        [item] = [item async for item in container.list_blobs()]
        assert item.etag.strip('"') == (await blob.get_blob_properties()).etag.strip('"')

    async def test_a_missing_container_cannot_be_listed(self, service: Service) -> None:
        """Listing a container that is not there is refused."""
        client = service.client.get_container_client("nowhere")
        with pytest.raises(ResourceNotFoundError):
            await anext(client.list_blobs())


class TestLargeBlobs:
    async def test_a_large_blob_travels_in_blocks(self, service: Service) -> None:
        """What is uploaded in blocks and downloaded in ranges, several at a time, comes out whole."""
        content = os.urandom(9 * MIB + 7)
        client = BlobServiceClient.from_connection_string(
            service.connection_string,
            max_single_put_size=MIB,
            max_block_size=MIB,
            max_single_get_size=2 * MIB,
            max_chunk_get_size=2 * MIB,
        )
        async with client:
            container = await client.create_container("large")
            blob = await container.upload_blob("b", content, max_concurrency=4)
            assert (await blob.get_blob_properties()).size == len(content)
            assert await (await blob.download_blob(max_concurrency=3)).readall() == content

    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # the SDK's way to send it
    async def test_a_large_blob_in_one_piece(self, container: ContainerClient) -> None:
        """One PUT and one GET of more than is read ahead come out whole."""
        content = os.urandom(9 * MIB + 7)
        await container.upload_blob("b", content)
        assert await (await container.download_blob("b")).readall() == content

    async def test_an_unknown_length(self, container: ContainerClient) -> None:
        """An upload from an asynchronous generator, whose length nobody knows."""

        async def produce() -> AsyncIterator[bytes]:
            for number in range(100):
                yield str(number).encode()

        await container.upload_blob("b", produce())
        expected = "".join(map(str, range(100))).encode()
        assert await (await container.download_blob("b")).readall() == expected

    async def test_blocks_are_staged_listed_and_committed(self, container: ContainerClient) -> None:
        """Blocks count once they are committed, in the order of the list, old ones among new ones."""
        blob = container.get_blob_client("b")
        for name in ("1", "2", "3"):
            await blob.stage_block(name, name.encode() * 2)
        assert not await blob.exists()
        await blob.commit_block_list([BlobBlock("3"), BlobBlock("1")], metadata={"a": "1"})
        assert await (await blob.download_blob()).readall() == b"3311"
        await blob.stage_block("4", b"44")
        committed, uncommitted = await blob.get_block_list("all")
        assert [block.id for block in committed] == ["3", "1"]
        assert [block.id for block in uncommitted] == ["4"]
        await blob.commit_block_list([BlobBlock("1"), BlobBlock("4"), BlobBlock("3")])
        assert await (await blob.download_blob()).readall() == b"114433"

    async def test_an_unknown_block_is_refused(self, container: ContainerClient) -> None:
        """A list that names a block that is not there is refused."""
        blob = container.get_blob_client("b")
        await blob.stage_block("1", b"1")
        code = await refused(blob.commit_block_list([BlobBlock("1"), BlobBlock("2")]))
        assert code == "InvalidBlockList"


class TestAppendBlobs:
    async def test_blocks_are_appended(self, container: ContainerClient) -> None:
        """An append blob grows at its end, and each answer tells where."""
        blob = container.get_blob_client("log")
        await blob.create_append_blob(ContentSettings(content_type="text/plain"))
        assert (await blob.append_block(b"one\n"))["blob_append_offset"] == "0"
        grown = await blob.append_block(b"two\n")
        assert (grown["blob_append_offset"], grown["blob_committed_block_count"]) == ("4", 2)
        assert await (await blob.download_blob()).readall() == b"one\ntwo\n"
        assert (await blob.get_blob_properties()).blob_type == BlobType.APPENDBLOB

    async def test_concurrent_appends_all_arrive(self, container: ContainerClient) -> None:
        """Appends at one time are put one behind the other, none lost or torn."""
        blob = container.get_blob_client("log")
        await blob.create_append_blob()
        await asyncio.gather(*(blob.append_block(f"{n:04d}\n".encode()) for n in range(20)))
        content = await (await blob.download_blob()).readall()
        assert sorted(content.decode().split()) == [f"{n:04d}" for n in range(20)]

    async def test_conditions_on_position_and_size(self, container: ContainerClient) -> None:
        """An append can be tied to a position and to a greatest size."""
        blob = container.get_blob_client("log")
        await blob.create_append_blob()
        await blob.append_block(b"12345", appendpos_condition=0)
        code = await refused(blob.append_block(b"6", appendpos_condition=0))
        assert code == "AppendPositionConditionNotMet"
        assert await refused(blob.append_block(b"6", maxsize_condition=5)) == "MaxBlobSizeConditionNotMet"

    async def test_kinds_do_not_mix(self, container: ContainerClient) -> None:
        """Appending to a block blob is refused, and so are blocks beside an append blob."""
        block, append = container.get_blob_client("block"), container.get_blob_client("append")
        await block.upload_blob(b"x")
        await append.create_append_blob()
        assert await refused(block.append_block(b"x"), HttpResponseError) == "InvalidBlobType"
        assert await refused(append.stage_block("1", b"x"), HttpResponseError) == "InvalidBlobType"

    async def test_upload_appends(self, container: ContainerClient) -> None:
        """The SDK's own way to append a stream works."""
        blob = container.get_blob_client("log")
        await blob.upload_blob(b"one", blob_type=BlobType.APPENDBLOB)
        await blob.upload_blob(b"two", blob_type=BlobType.APPENDBLOB)
        assert await (await blob.download_blob()).readall() == b"onetwo"


class TestRights:
    async def test_a_wrong_key_is_refused(self, service: Service) -> None:
        """A client with another key is not let in."""
        wrong = base64.b64encode(b"w" * 64).decode()
        text = re.sub("AccountKey=[^;]*", f"AccountKey={wrong}", service.connection_string)
        async with BlobServiceClient.from_connection_string(text, retry_total=0) as client:
            await not_let_in(client.create_container("other"))

    async def test_no_credential_is_refused(self, service: Service, container: ContainerClient) -> None:
        """A request without any credential is not let in."""
        await container.upload_blob("b", b"x")
        async with BlobClient(service.url, "things", "b", retry_total=0) as blob:
            await refused(blob.download_blob())

    async def test_a_reader_reads_only(self, service: Service, container: ContainerClient) -> None:
        """A SAS allows what its permissions say, and nothing else."""
        await container.upload_blob("b", b"x")
        async with service.as_holder("things", service.container_sas("things", "rl")) as reader:
            assert await (await reader.download_blob("b")).readall() == b"x"
            assert [item.name async for item in reader.list_blobs()] == ["b"]
            for action in (reader.upload_blob("c", b"x"), reader.delete_blob("b")):
                assert await refused(action) == "AuthorizationPermissionMismatch"

    async def test_a_creator_does_not_overwrite(self, service: Service, container: ContainerClient) -> None:
        """With permission to create alone, an existing blob cannot be replaced or read."""
        async with service.as_holder("things", service.container_sas("things", "c")) as creator:
            await creator.upload_blob("b", b"x")
            assert await refused(creator.upload_blob("b", b"y", overwrite=True)) in (
                "UnauthorizedBlobOverwrite",
                "AuthorizationPermissionMismatch",
            )
            assert await refused(creator.download_blob("b")) == "AuthorizationPermissionMismatch"

    async def test_container_operations_need_the_key(
        self, service: Service, container: ContainerClient
    ) -> None:
        """No service SAS reaches the container itself or its policies."""
        async with service.as_holder("things", service.container_sas("things", "rwdlac")) as holder:
            await refused(holder.delete_container())
            await refused(holder.get_container_access_policy())
        assert await container.exists()

    async def test_a_sas_is_for_its_container(self, service: Service, container: ContainerClient) -> None:
        """A SAS for one container opens no other."""
        await service.client.create_container("other")
        async with service.as_holder("other", service.container_sas("things", "rwl")) as holder:
            await not_let_in(holder.upload_blob("b", b"x"))

    async def test_a_sas_for_one_blob(self, service: Service, container: ContainerClient) -> None:
        """A SAS for one blob opens no other, and does not list."""
        for name in ("mine äö", "yours"):
            await container.upload_blob(name, b"x")
        sas = generate_blob_sas(
            service.account,
            "things",
            "mine äö",
            account_key=service.key,
            permission=BlobSasPermissions(read=True),
            expiry=soon(),
            content_type="text/special",
        )
        async with service.as_holder("things", sas) as holder:
            stream = await holder.download_blob("mine äö")
            assert stream.properties.content_settings.content_type == "text/special"
            await not_let_in(holder.download_blob("yours"))
            with pytest.raises(HttpResponseError):
                await anext(holder.list_blobs())

    @pytest.mark.parametrize(
        "period",
        [{"expiry": {"seconds": -5}}, {"start": {"minutes": 5}, "expiry": {"hours": 1}}],
        ids=["over", "not yet"],
    )
    async def test_a_sas_has_its_time(
        self, service: Service, container: ContainerClient, period: dict[str, dict[str, float]]
    ) -> None:
        """A SAS is good from its start to its expiry."""
        times = {bound: soon(**delta) for bound, delta in period.items()}
        async with service.as_holder("things", service.container_sas("things", "w", **times)) as holder:
            await not_let_in(holder.upload_blob("b", b"x"))

    async def test_a_sas_for_https_only(self, service: Service, container: ContainerClient) -> None:
        """A SAS that demands https is not good over http."""
        sas = service.container_sas("things", "w", protocol="https")
        async with service.as_holder("things", sas) as holder:
            assert await refused(holder.upload_blob("b", b"x")) == "AuthorizationProtocolMismatch"

    async def test_a_changed_sas_is_refused(self, service: Service, container: ContainerClient) -> None:
        """Whoever widens a SAS breaks its signature."""
        sas = service.container_sas("things", "r").replace("sp=r", "sp=rw")
        async with service.as_holder("things", sas) as holder:
            await not_let_in(holder.upload_blob("b", b"x"))

    async def test_removing_a_policy_revokes(self, service: Service, container: ContainerClient) -> None:
        """A SAS tied to a stored access policy follows it: changed, and gone with it."""
        policy = AccessPolicy(permission=ContainerSasPermissions(read=True, write=True), expiry=soon())
        await container.set_container_access_policy({"agents": policy})
        sas = service.container_sas("things", policy_id="agents")
        async with service.as_holder("things", sas) as holder:
            await holder.upload_blob("b", b"x")
            policy.permission = ContainerSasPermissions(read=True)
            await container.set_container_access_policy({"agents": policy})
            assert await refused(holder.upload_blob("c", b"x")) == "AuthorizationPermissionMismatch"
            await container.set_container_access_policy({})
            await not_let_in(holder.download_blob("b"))

    async def test_an_account_sas(self, service: Service) -> None:
        """An account SAS reaches the resource types that it names."""

        def holder(types: str, permission: str) -> BlobServiceClient:
            sas = generate_account_sas(service.account, service.key, types, permission, soon())
            return BlobServiceClient(service.url, credential=sas, retry_total=0)

        async with holder("sco", "rwlc") as wide, holder("o", "rwlc") as narrow:
            container = await wide.create_container("made")
            await container.upload_blob("b", b"x")
            assert [item.name async for item in wide.list_containers()] == ["made"]
            assert await refused(container.delete_blob("b")) == "AuthorizationPermissionMismatch"
            assert await refused(narrow.create_container("other")) == "AuthorizationResourceTypeMismatch"
            assert await (await narrow.get_blob_client("made", "b").download_blob()).readall() == b"x"

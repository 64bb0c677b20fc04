"""The port to the blobs keeps its promises, whoever implements it."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from batchflow.azure.blob import BlobStorage, SignedContainer
from batchflow.errors import BlobConflict, BlobNotFound, StorageError
from batchflow.ports.storage import AccessPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batchflow.ports.storage import Container, Storage


@pytest_asyncio.fixture
async def container(storage: Storage) -> AsyncIterator[Container]:
    name = f"conformance-{secrets.token_hex(6)}"
    assert await storage.create_container(name)
    yield storage.container(name)
    await storage.delete_container(name)


async def test_blob_is_read_as_it_was_written(container: Container) -> None:
    """Its ETag is the one that writing told."""
    etag = await container.put("a/b.json", b"\x00data")
    blob = await container.get("a/b.json")
    assert (blob.data, blob.etag) == (b"\x00data", etag)
    assert (await container.get_if_changed("a/b.json", None)) == blob
    await container.put("empty", b"")
    assert (await container.get("empty")).data == b""


async def test_unchanged_blob_is_not_read_again(container: Container) -> None:
    """A changed one is."""
    first = await container.put("doc", b"1")
    assert await container.get_if_changed("doc", first) is None
    second = await container.put("doc", b"2")
    assert second != first
    blob = await container.get_if_changed("doc", first)
    assert blob is not None
    assert (blob.data, blob.etag) == (b"2", second)


async def test_write_over_another_version_is_refused(container: Container) -> None:
    """So is a creation where a blob is already."""
    first = await container.put("doc", b"1", create=True)
    second = await container.put("doc", b"2", if_match=first)
    with pytest.raises(BlobConflict):
        await container.put("doc", b"3", if_match=first)
    with pytest.raises(BlobConflict):
        await container.put("doc", b"3", create=True)
    with pytest.raises(BlobConflict):
        await container.put("none", b"3", if_match=first)
    assert (await container.get("doc")).etag == second


async def test_one_of_several_concurrent_creations_succeeds(container: Container) -> None:
    """All of them create the same blob."""
    tries = (container.put("doc", bytes([i]), create=True) for i in range(5))
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(each, str) for each in outcomes) == 1
    assert sum(isinstance(each, BlobConflict) for each in outcomes) == 4


async def test_missing_blob_or_container_is_reported(
    container: Container, storage: Storage, tmp_path: Path
) -> None:
    """Each has its own error."""
    nowhere = storage.container("conformance-no-such-container")
    for place in (container, nowhere):
        with pytest.raises(BlobNotFound):
            await place.get("none")
        with pytest.raises(BlobNotFound):
            await place.get_if_changed("none", '"0x1"')
        with pytest.raises(BlobNotFound):
            await place.download("none", tmp_path / "none")
        assert not await place.delete("none")
    with pytest.raises(BlobNotFound):
        await nowhere.put("a", b"")
    with pytest.raises(BlobNotFound):
        await nowhere.append("a", b"x")
    with pytest.raises(BlobNotFound):
        await anext(nowhere.list())
    assert list(tmp_path.iterdir()) == []


async def test_appending_makes_the_blob_and_adds_to_it(container: Container) -> None:
    """The first append makes the blob."""
    await container.append("log", b"")
    await container.append("log", b"one ")
    await container.append("log", b"two")
    assert (await container.get("log")).data == b"one two"


async def test_appending_anew_drops_what_the_blob_held(container: Container) -> None:
    """Also where there was no blob."""
    assert await container.append("ring", b"first", anew=True) == 5
    await container.append("ring", b" second")
    assert await container.append("ring", b"third", anew=True) == 5
    assert (await container.get("ring")).data == b"third"


async def test_reading_from_a_place_gives_the_rest_of_the_blob(container: Container) -> None:
    """Nothing where it ends there, or before."""
    await container.append("log", b"one two")
    assert await container.get_from("log", 0) == b"one two"
    assert await container.get_from("log", 4) == b"two"
    assert await container.get_from("log", 7) == b""
    assert await container.get_from("log", 70) == b""
    with pytest.raises(BlobNotFound):
        await container.get_from("none", 3)


async def test_listing_tells_size_etag_and_time_of_blobs_under_a_prefix(container: Container) -> None:
    """The ETags are those that reading tells."""
    for name in ("a/1", "a/2", "b/1"):
        await container.put(name, name.encode() * 10)
    found = [blob async for blob in container.list("a/")]
    assert [blob.name for blob in found] == ["a/1", "a/2"]
    assert [blob.size for blob in found] == [30, 30]
    assert found[0].etag == (await container.get("a/1")).etag
    assert abs(found[0].modified_at - time.time()) < 60
    assert 0 <= found[0].age < 60
    assert len([blob async for blob in container.list()]) == 3


async def test_no_blob_looks_older_than_it_is(container: Container) -> None:
    """The service's dates have no fractions: what was written before the turn of a second may be new."""
    began = time.time()  # of the clock that dates are of: another may run at another speed
    await container.put("young", b"")
    turns, first = 0, int(time.time())
    while turns < 2:
        (info,) = [blob async for blob in container.list()]
        assert info.age <= time.time() - began
        turns = int(time.time()) - first


async def test_deleted_blob_is_gone(container: Container) -> None:
    """Deleting it again says that there was none."""
    await container.put("a", b"")
    assert await container.delete("a")
    assert not await container.delete("a")
    with pytest.raises(BlobNotFound):
        await container.get("a")


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
async def test_file_of_many_blocks_goes_up_and_comes_down_whole(
    container: Container, tmp_path: Path, size: int
) -> None:
    """It leaves nothing beside it."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(secrets.token_bytes(size))
    await container.upload("file", source)
    with pytest.raises(BlobConflict):
        await container.upload("file", source, create=True)
    target.write_bytes(b"old")
    await container.download("file", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(tmp_path.glob("*t*")) == [target]


async def test_containers_are_made_listed_and_deleted_once(storage: Storage) -> None:
    """They are listed by prefix."""
    name = f"conformance-{secrets.token_hex(6)}"
    assert await storage.create_container(name)
    assert not await storage.create_container(name)
    assert await storage.containers(name) == [name]
    assert await storage.delete_container(name)
    assert not await storage.delete_container("conformance-no-such-container")
    assert await storage.containers(name) == []


async def test_signature_for_a_blob_reads_that_blob_alone(storage: Storage, tmp_path: Path) -> None:
    """In place of the reader's own rights."""
    name = f"conformance-{secrets.token_hex(6)}"
    writing = AccessPolicy("writing", "cw", time.time() + 600)
    await storage.create_container(name, (writing,))
    container = storage.container(name)
    await container.put("a/b c.json", b"1")
    await container.put("other", b"2")
    signature = await storage.blob_signature(name, "a/b c.json", 3600.0)
    if isinstance(storage, BlobStorage):
        container = SignedContainer(container.url, await storage.signature(name, writing))
    assert await container.get_signed("a/b c.json", signature) == b"1"
    with pytest.raises(StorageError):
        await container.get_signed("other", signature)
    await container.download("a/b c.json", tmp_path / "file", signature=signature)
    assert (tmp_path / "file").read_bytes() == b"1"
    odd = "outputs/ü #1?/50%25 & 'x'+y;.csv"
    await container.put(odd, b"2")
    signature = await storage.blob_signature(name, odd, 3600.0)
    await container.download(odd, tmp_path / "file", signature=signature)
    assert (tmp_path / "file").read_bytes() == b"2"
    with pytest.raises(StorageError):
        await container.download("other", tmp_path / "other", signature=signature)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    await container.aclose()
    await storage.delete_container(name)


async def test_signature_opens_what_its_policy_allows_until_the_policy_is_removed(storage: Storage) -> None:
    """The policy is stored in the container."""
    if not isinstance(storage, BlobStorage):
        pytest.skip("signatures open nothing in memory")
    name = f"conformance-{secrets.token_hex(6)}"
    reading = AccessPolicy("reading", "rl", time.time() + 600)
    writing = AccessPolicy("writing", "cw", time.time() + 600)
    await storage.create_container(name, (reading, writing))
    container = storage.container(name)
    await container.put("a", b"1")
    may_read, may_write = [await storage.signature(name, each) for each in (reading, writing)]
    async with (
        SignedContainer(container.url, may_read, setting="reader") as reader,
        SignedContainer(container.url, may_write) as writer,
    ):
        assert (reader.name, reader.url) == (name, container.url)
        assert (await reader.get("a")).data == b"1"
        assert [blob.name async for blob in reader.list()] == ["a"]
        with pytest.raises(StorageError) as caught:
            await reader.put("b", b"")
        assert caught.value.setting == "reader"
        await writer.put("b", b"2", create=True)
        with pytest.raises(StorageError):
            await writer.get("b")
        assert not await storage.create_container(name, (writing,))
        if not container.url.startswith("https"):  # Azure takes up to half a minute to notice
            with pytest.raises(StorageError):
                await reader.get("a")
    await storage.delete_container(name)

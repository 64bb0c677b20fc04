"""The cache of bundles: verified, shared, bounded."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.ports.storage import Blob
from batchflow.protocol.bundle import Bundle, BundleFile
from node_agent.bundles.cache import BundleCache
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from batchflow.ports.storage import Container


class Shelf:
    """The part of a container that the cache uses; counts requests, and can be made to wait or fail."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def get(self, name: str) -> Blob:
        return Blob(await self._read(name), "1")

    async def download(self, name: str, path: Path) -> None:
        path.write_bytes(await self._read(name))

    async def _read(self, name: str) -> bytes:
        self.requests.append(name)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if name not in self.blobs:
            raise BlobNotFound(name)
        return self.blobs[name]

    def put(self, **contents: str) -> Bundle:
        """A bundle of these files; "x__py" is "x.py", upper case makes it executable."""
        files = []
        for name, text in contents.items():
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.blobs[f"files/{digest}"] = text.encode()
            files.append(BundleFile(name.lower().replace("__", "."), digest, len(text), name.isupper()))
        bundle = Bundle.of(files)
        self.blobs[bundle.blob] = bundle.document
        return bundle


def cache(shelf: Shelf, root: Path, limit: int = 10**9) -> BundleCache:
    return BundleCache(root / "cache", cast("Container", shelf), limit)


async def test_a_bundle_is_fetched_once_and_lies_there_by_name(tmp_path: Path) -> None:
    """Names, content, modes; the second use asks nobody."""
    shelf = Shelf()
    bundle = shelf.put(task__py="code", TOOL="bin", script="#!/bin/sh")
    bundles = cache(shelf, tmp_path)
    for _ in range(2):
        async with bundles.use(bundle.hash) as (found, folder):
            assert found == bundle
            assert (folder / "task.py").read_text() == "code"
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
            assert modes == {"task.py": 0o444, "tool": 0o555, "script": 0o555}
    assert len(shelf.requests) == 4
    assert bundles.size == 16


async def test_callers_at_once_share_one_fetch(tmp_path: Path) -> None:
    """Three ask, one asks the container; one that gives up does not stop the others."""
    shelf = Shelf()
    bundle = shelf.put(task__py="code")
    bundles = cache(shelf, tmp_path)
    shelf.gate.clear()

    async def use() -> str:
        async with bundles.use(bundle.hash) as (_, folder):
            return (folder / "task.py").read_text()

    async with asyncio.timeout(20):
        users = [asyncio.create_task(use()) for _ in range(3)]
        await eventually(lambda: shelf.requests)
        users[0].cancel()
        await asyncio.wait([users[0]])
        shelf.gate.set()
        assert await asyncio.gather(*users[1:]) == ["code", "code"]
    assert len(shelf.requests) == 2


async def test_a_fetch_that_nobody_waits_for_any_more_ends(tmp_path: Path) -> None:
    """Cancelled by its last user; the next one starts anew."""
    shelf = Shelf()
    bundle = shelf.put(task__py="code")
    bundles = cache(shelf, tmp_path)
    shelf.gate.clear()

    async def use() -> None:
        async with bundles.use(bundle.hash):
            pass

    async with asyncio.timeout(20):
        user = asyncio.create_task(use())
        await eventually(lambda: shelf.requests)
        user.cancel()
        await asyncio.wait([user])
        shelf.gate.set()
        await use()
    assert shelf.requests == [bundle.blob, bundle.blob, bundle.files[0].blob]


async def test_content_shared_by_bundles_is_fetched_once(tmp_path: Path) -> None:
    """A changed file costs that file."""
    shelf = Shelf()
    bundles = cache(shelf, tmp_path)
    for bundle in (shelf.put(big="x" * 100, task__py="1"), shelf.put(big="x" * 100, task__py="2")):
        async with bundles.use(bundle.hash):
            pass
    assert sum(name.startswith("files/") for name in shelf.requests) == 3
    assert bundles.size == 102


async def test_wrong_content_and_wrong_lists_are_refused(tmp_path: Path) -> None:
    """A hash is checked against what was fetched; nothing wrong is kept."""
    shelf = Shelf()
    bundle = shelf.put(task__py="code")
    bundles = cache(shelf, tmp_path)
    shelf.blobs[bundle.files[0].blob] = b"evil"
    with pytest.raises(ProtocolError, match=r"'task.py' is not what its hash says"):
        async with bundles.use(bundle.hash):
            pass
    assert not list((tmp_path / "cache/files").iterdir())
    shelf.blobs[bundle.blob] += b" "
    with pytest.raises(ProtocolError, match="not what its name says"):
        await cache(shelf, tmp_path).bundle(bundle.hash)


async def test_hashes_that_are_none_are_refused(tmp_path: Path) -> None:
    """They become names of blobs and files: no traversal by them."""
    shelf = Shelf()
    bundles = cache(shelf, tmp_path)
    with pytest.raises(ProtocolError, match="not the hash of a bundle"):
        await bundles.bundle("../../etc")
    bad = Bundle.of([BundleFile("x", "../../../etc/passwd", 1)])
    shelf.blobs[bad.blob] = bad.document
    with pytest.raises(ProtocolError, match="is not the SHA-256 of 'x'"):
        await bundles.bundle(bad.hash)


@pytest.mark.parametrize("failure", [StorageError("down", retryable=True), BlobNotFound("gone")])
async def test_what_the_container_says_reaches_the_user_and_may_be_tried_again(
    tmp_path: Path, failure: StorageError
) -> None:
    """A failed fetch leaves nothing behind."""
    shelf = Shelf()
    bundle = shelf.put(task__py="code")
    bundles = cache(shelf, tmp_path)
    await bundles.bundle(bundle.hash)
    shelf.failure = failure
    with pytest.raises(type(failure)):
        async with bundles.use(bundle.hash):
            pass
    shelf.failure = None
    async with bundles.use(bundle.hash) as (_, folder):
        assert (folder / "task.py").read_text() == "code"


async def test_the_least_recently_used_goes_first_and_nothing_in_use(tmp_path: Path) -> None:
    """The limit holds for what is idle."""
    shelf = Shelf()
    first, second, third = (shelf.put(data=letter * 40) for letter in "abc")
    bundles = cache(shelf, tmp_path, limit=100)
    for bundle in (first, second, first):
        async with bundles.use(bundle.hash):
            pass
    async with bundles.use(third.hash):
        assert _kept(tmp_path) == {first.hash, third.hash}
    async with AsyncExitStack() as stack:
        folders = [
            (await stack.enter_async_context(bundles.use(bundle.hash)))[1]
            for bundle in (first, second, third)
        ]
        assert bundles.size == 120
        assert [(folder / "data").read_text()[0] for folder in folders] == ["a", "b", "c"]
    assert bundles.size <= 100
    assert len(list((tmp_path / "cache/files").iterdir())) == len(_kept(tmp_path))


def _kept(root: Path) -> set[str]:
    return {path.name for path in (root / "cache/bundles").iterdir()}


async def test_a_bundle_above_the_limit_can_be_used_by_many_and_goes_afterwards(tmp_path: Path) -> None:
    """Being too large is no reason not to run."""
    shelf = Shelf()
    bundle = shelf.put(data="x" * 500)
    bundles = cache(shelf, tmp_path, limit=100)

    async def use(_: Any) -> int:
        async with bundles.use(bundle.hash) as (_bundle, folder):
            return (folder / "data").stat().st_size

    assert await asyncio.gather(*map(use, range(5))) == [500] * 5
    assert bundles.size == 0


async def test_files_on_disk_that_were_changed_are_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a look at the stamps before the next use."""
    monkeypatch.setattr("node_agent.bundles.cache._LOOK_INTERVAL", 0.0)
    shelf = Shelf()
    bundle = shelf.put(task__py="code")
    bundles = cache(shelf, tmp_path)
    async with bundles.use(bundle.hash) as (_, folder):
        pass
    (folder / "task.py").chmod(0o644)
    (folder / "task.py").write_text("evil")
    async with bundles.use(bundle.hash) as (_, folder):
        assert (folder / "task.py").read_text() == "code"


async def test_a_bundle_that_is_not_trusted_is_checked_by_content(tmp_path: Path) -> None:
    """A task may put back the times of what it changed. What is right is not fetched again."""
    shelf = Shelf()
    bundle = shelf.put(bad="code", good="good")
    bundles = cache(shelf, tmp_path)
    async with bundles.use(bundle.hash) as (_, folder):
        before = (folder / "bad").stat()
        (folder / "bad").chmod(0o644)
        (folder / "bad").write_text("evil")
        os.utime(folder / "bad", ns=(before.st_atime_ns, before.st_mtime_ns))
        shelf.requests.clear()
        bundles.distrust(bundle.hash)
        async with bundles.use(bundle.hash) as (_, again):
            assert (again / "bad").read_text() + (again / "good").read_text() == "codegood"
    assert shelf.requests == [f"files/{hashlib.sha256(b'code').hexdigest()}"]


async def test_a_restarted_agent_checks_what_it_finds_and_keeps_what_is_right(tmp_path: Path) -> None:
    """No second download of good content; bad content is replaced; strangers go when room is needed."""
    shelf = Shelf()
    bundle = shelf.put(good="good", bad="bad!")
    async with cache(shelf, tmp_path).use(bundle.hash):
        pass
    files = tmp_path / "cache/files"
    bad = files / hashlib.sha256(b"bad!").hexdigest()
    bad.chmod(0o644)
    bad.write_text("evil")
    (files / "stranger").write_text("x" * 60)
    shelf.requests.clear()
    bundles = cache(shelf, tmp_path, limit=50)
    async with bundles.use(bundle.hash) as (_, folder):
        assert (folder / "good").read_text() + (folder / "bad").read_text() == "goodbad!"
    assert shelf.requests == [bundle.blob, f"files/{bad.name}"]
    assert not (files / "stranger").exists()
    assert bundles.size == 8

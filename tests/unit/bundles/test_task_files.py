"""The files of tasks that an agent has at hand."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from batchflow.errors import StorageError
from node_agent.bundles.stored_file import StoredFile
from node_agent.bundles.task_files import FileCache


def made(folder: Path, content: bytes, name: str = "made") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_a_file_loses_its_name_and_is_copied_as_it_was(tmp_path: Path) -> None:
    """A copy is never written over something that is there."""
    file = StoredFile(made(tmp_path, b"data" * 100_000))
    assert (list(tmp_path.iterdir()), file.size) == ([], 400_000)
    for _ in range(2):
        file.copy_to(str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == b"data" * 100_000
        with pytest.raises(FileExistsError):
            file.copy_to(str(tmp_path / "copy"))
        (tmp_path / "copy").unlink()


def test_a_file_that_was_changed_is_not_used(tmp_path: Path) -> None:
    """The next fetch downloads it."""
    cache = FileCache(tmp_path / "files")
    path = made(tmp_path, b"data")
    writer = os.open(path, os.O_RDWR)
    file = cache.add("a", path)
    os.write(writer, b"DATA!")
    os.close(writer)
    with pytest.raises(OSError, match="was changed"):
        file.copy_to(str(tmp_path / "copy"))
    assert (cache.get("a"), cache.size) == (None, 0)


def test_files_used_least_recently_go_first(tmp_path: Path) -> None:
    """Past the limit of bytes, or of descriptors. One that does not fit is not kept."""
    cache = FileCache(tmp_path, limit=10, most=2)
    kept = cache.add("a", made(tmp_path, b"1234"))
    cache.add("b", made(tmp_path, b"1234"))
    assert cache.get("a") is kept
    cache.add("c", made(tmp_path, b"12345"))
    assert [cache.get(name) is not None for name in "abc"] == [True, False, True]
    cache.add("a", made(tmp_path, b"1"))
    assert cache.size == 6
    assert cache.add("e", made(tmp_path, b"x" * 11)).size == 11
    assert cache.get("e") is None


async def test_calls_at_once_share_one_download(tmp_path: Path) -> None:
    """When it fails, the next of them tries, and what an earlier agent left is removed."""
    folder = tmp_path / "files"
    folder.mkdir()
    made(folder, b"left by an agent that was killed")
    cache, go, tries = FileCache(folder), asyncio.Event(), 0

    async def download(path: Path) -> None:
        nonlocal tries
        tries += 1
        await go.wait()
        if tries == 1:
            raise StorageError("away")
        path.write_bytes(b"data")

    calls = [asyncio.create_task(cache.fetch("a", download)) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, StorageError)
    assert isinstance(second, StoredFile)
    assert second is third
    assert tries == 2
    assert list(folder.iterdir()) == []

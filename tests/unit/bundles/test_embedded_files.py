"""The pool's small bundle comes with the agent's configuration, and everything else from storage as ever."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.files import BundleSource, collect, upload
from batchflow.pools import embedded_files
from batchflow.protocol.bundle import bundle_blob
from batchflow.testing import MemoryStorage
from node_agent.bundles.cache import BundleCache
from node_agent.bundles.embedded_files import EmbeddedFiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchflow.testing import MemoryContainer

FILES = {"task.py": b"code", "same.py": b"code", "data/table.csv": b"1,2\n"}


async def container(name: str = "ctl") -> MemoryContainer:
    storage = MemoryStorage()
    await storage.create_container(name)
    return storage.container(name)


async def packed(
    ctl: MemoryContainer, bundle_hash: str | None, sources: Sequence[BundleSource] = ()
) -> dict[str, str]:
    into: dict[str, str] = {}
    await embedded_files.pack(ctl, bundle_hash, into, sources)
    return into


async def test_what_was_packed_is_all_that_the_cache_needs(tmp_path: Path) -> None:
    """It lays the bundle out without asking the container for anything."""
    ctl = await container()
    bundle = await upload(await collect(FILES), ctl)
    brought = await packed(ctl, bundle.hash)
    assert len(brought) == 3  # the list, and each content once
    cache = BundleCache(tmp_path, EmbeddedFiles(brought, await container("empty")), 1 << 20)
    async with cache.use(bundle.hash) as (found, folder):
        assert found == bundle
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES


async def test_what_was_not_packed_comes_from_the_container(tmp_path: Path) -> None:
    """Other bundles, and contents that they share with the one that was packed."""
    ctl = await container()
    bundle = await upload(await collect(FILES), ctl)
    other = await upload(await collect({"other.py": b"other", "task.py": b"code"}), ctl)
    cache = BundleCache(tmp_path, EmbeddedFiles(await packed(ctl, bundle.hash), ctl), 1 << 20)
    async with cache.use(other.hash) as (_, folder):
        assert (folder / "other.py").read_bytes() == b"other"
        assert (folder / "task.py").read_bytes() == b"code"


async def test_what_is_here_is_not_fetched(tmp_path: Path) -> None:
    """The files that were brought just now: the container is not asked, whether they lie on disk or not."""
    (tmp_path / "data.csv").write_bytes(b"1,2\n")
    sources = await collect([{"task.py": b"code"}, tmp_path / "data.csv"])
    ctl = await container()
    bundle = await upload(sources, ctl)
    assert await packed(await container("empty"), bundle.hash, sources) == await packed(ctl, bundle.hash)


async def test_what_changed_since_is_fetched(tmp_path: Path) -> None:
    """A file that is another one by now, or gone; and all of a bundle that is not of these files."""
    for name in ("changed", "gone", "same"):
        (tmp_path / name).write_text(name)
    sources = await collect(tmp_path)
    ctl = await container()
    bundle = await upload(sources, ctl)
    whole = await packed(ctl, bundle.hash)
    (tmp_path / "changed").write_text("something else")
    (tmp_path / "gone").unlink()
    assert await packed(ctl, bundle.hash, sources) == whole
    other = await upload(await collect({"other.py": b"other", "same": b"same"}), ctl)
    assert await packed(ctl, other.hash, sources) == await packed(ctl, other.hash)


@pytest.mark.parametrize("spoiled", ["list", "content"])
async def test_nothing_wrong_is_run(tmp_path: Path, spoiled: str) -> None:
    """What came along is checked by its hash like anything that was fetched."""
    ctl = await container()
    bundle = await upload(await collect({"task.py": b"code"}), ctl)
    brought = await packed(ctl, bundle.hash)
    name = bundle.hash if spoiled == "list" else bundle.files[0].sha256
    brought[name] = b64encode(b"evil").decode()
    cache = BundleCache(tmp_path, EmbeddedFiles(brought, ctl), 1 << 20)
    with pytest.raises(ProtocolError, match="not what its"):
        async with cache.use(bundle.hash):
            pass


async def test_what_cannot_be_read_is_told_at_once() -> None:
    """The configuration is unusable, and says so."""
    with pytest.raises(ProtocolError, match="bring along"):
        EmbeddedFiles({"a" * 64: "!"}, await container())


async def test_a_large_bundle_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes or its files; one that is just small enough is."""
    ctl = await container()
    few = await upload(await collect({"a": b"x" * 30, "b": b"y" * 30}), ctl)
    for limits in ((2, 59), (1, 60)):
        monkeypatch.setattr(embedded_files, "MOST_FILES", limits[0])
        monkeypatch.setattr(embedded_files, "MOST_BYTES", limits[1])
        assert await packed(ctl, few.hash) == {}
    monkeypatch.setattr(embedded_files, "MOST_FILES", 2)
    assert len(await packed(ctl, few.hash)) == 3


@pytest.mark.parametrize("gone", ["list", "content"])
async def test_a_bundle_that_is_gone_is_not_packed(gone: str) -> None:
    """The task that needs it is told, and the agents start."""
    ctl = await container()
    bundle = await upload(await collect({"task.py": b"code"}), ctl)
    await ctl.delete(bundle_blob(bundle.hash) if gone == "list" else bundle.files[0].blob)
    assert await packed(ctl, bundle.hash) == {}
    with pytest.raises(BlobNotFound):
        await EmbeddedFiles({}, ctl).get(bundle_blob("b" * 64))


async def test_a_pool_without_a_bundle_packs_nothing() -> None:
    """And asks for nothing."""
    assert await packed(await container(), None) == {}

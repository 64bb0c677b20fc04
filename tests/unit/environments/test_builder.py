"""The user's cache of environments: what a cancelled or failed build leaves of it."""

from __future__ import annotations

import asyncio
import tarfile
from pathlib import Path

import pytest

from batchflow.environments import uv
from batchflow.environments.builder import EnvironmentBuilder, LockedEnvironment
from batchflow.environments.uv import TargetPython
from batchflow.errors import EnvironmentFailed

TARGET = TargetPython("3.11", "manylinux_2_28_x86_64")
LOCKED = LockedEnvironment("tiny==1.0 --hash=sha256:00\n", TARGET)


async def _installed(locked: str, target: TargetPython, site: Path) -> None:
    site.mkdir()
    (site / "tiny.py").write_text("x = 1\n")


async def test_a_cancelled_build_leaves_the_cache_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, begun = EnvironmentBuilder(tmp_path), asyncio.Event()

    async def stuck(locked: str, target: TargetPython, site: Path) -> None:
        await _installed(locked, target, site)
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(uv, "install", stuck)
    building = asyncio.create_task(builder.build(LOCKED, lambda line: None))
    await begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(uv, "install", _installed)
    archive = await builder.build(LOCKED, lambda line: None)
    with tarfile.open(archive) as members:
        assert members.getnames() == ["tiny.py"]
    assert list(tmp_path.iterdir()) == [archive]


async def test_a_failed_build_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(locked: str, target: TargetPython, site: Path) -> None:
        await _installed(locked, target, site)
        raise EnvironmentFailed("no wheel")

    monkeypatch.setattr(uv, "install", failing)
    with pytest.raises(EnvironmentFailed, match="no wheel"):
        await EnvironmentBuilder(tmp_path).build(LOCKED, lambda line: None)
    assert not list(tmp_path.iterdir())


async def test_what_the_cache_has_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    async def counted(locked: str, target: TargetPython, site: Path) -> None:
        built.append(locked)
        await _installed(locked, target, site)

    monkeypatch.setattr(uv, "install", counted)
    builders = [EnvironmentBuilder(tmp_path), EnvironmentBuilder(tmp_path)]
    first, *more = [await builder.build(LOCKED, lambda line: None) for builder in builders * 2]
    assert more == [first] * 3
    assert len(built) == 1

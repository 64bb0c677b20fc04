"""The user's cache of environments: what a cancelled or failed build leaves of it."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from batchflow.environments import uv
from batchflow.environments.builder import EnvironmentBuilder, LockedEnvironment
from batchflow.environments.uv import TargetPython
from batchflow.errors import EnvironmentFailed

Heard = Callable[[str], object]
TARGET = TargetPython("3.11", "manylinux_2_28_x86_64")
LOCKED = LockedEnvironment("tiny==1.0 --hash=sha256:00\n", TARGET)


async def _installed(locked: str, target: TargetPython, site: Path, heard: Heard) -> None:
    site.mkdir()
    (site / "tiny.py").write_text("x = 1\n")


async def test_a_cancelled_build_leaves_the_cache_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, begun = EnvironmentBuilder(tmp_path), asyncio.Event()

    async def stuck(locked: str, target: TargetPython, site: Path, heard: Heard) -> None:
        await _installed(locked, target, site, heard)
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(uv, "install", stuck)
    building = asyncio.create_task(builder.build(LOCKED, lambda line: None))
    await begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert [file.name for file in tmp_path.iterdir()] == ["building.lock"]

    monkeypatch.setattr(uv, "install", _installed)
    archive = await builder.build(LOCKED, lambda line: None)
    with tarfile.open(archive) as members:
        assert members.getnames() == ["tiny.py"]
    assert {*tmp_path.iterdir()} == {archive, tmp_path / "building.lock"}


async def test_a_failed_build_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(locked: str, target: TargetPython, site: Path, heard: Heard) -> None:
        await _installed(locked, target, site, heard)
        raise EnvironmentFailed("no wheel")

    monkeypatch.setattr(uv, "install", failing)
    with pytest.raises(EnvironmentFailed, match="no wheel"):
        await EnvironmentBuilder(tmp_path).build(LOCKED, lambda line: None)
    assert [file.name for file in tmp_path.iterdir()] == ["building.lock"]


async def test_what_the_cache_has_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    async def counted(locked: str, target: TargetPython, site: Path, heard: Heard) -> None:
        built.append(locked)
        await _installed(locked, target, site, heard)

    monkeypatch.setattr(uv, "install", counted)
    builders = [EnvironmentBuilder(tmp_path), EnvironmentBuilder(tmp_path)]
    first, *more = [await builder.build(LOCKED, lambda line: None) for builder in builders * 2]
    assert more == [first] * 3
    assert len(built) == 1


async def test_a_hundred_sessions_of_several_programs_build_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each builder stands for a program: the lock of a file is between them."""
    built: list[str] = []

    async def slow(locked: str, target: TargetPython, site: Path, heard: Heard) -> None:
        built.append(locked)
        await asyncio.sleep(0)
        await _installed(locked, target, site, heard)

    monkeypatch.setattr(uv, "install", slow)
    builders = [EnvironmentBuilder(tmp_path) for _ in range(4)]
    await asyncio.gather(*(builder.build(LOCKED, lambda line: None) for builder in builders * 25))
    assert len(built) == 1


async def test_progress_tells_the_packages_and_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def downloading(locked: str, target: TargetPython, site: Path, heard: Heard) -> None:
        heard("Downloading tiny (10.0MiB)")
        heard("Downloading other (48.2MiB)")
        await _installed(locked, target, site, heard)

    monkeypatch.setattr(uv, "install", downloading)
    lines: list[str] = []
    await EnvironmentBuilder(tmp_path).build(LOCKED, lines.append)
    assert lines == [f"building an environment: tiny{size}" for size in ("", ", 10 MB", ", 61 MB")]


async def test_archives_that_were_long_unused_are_removed_when_another_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv, "install", _installed)
    unused, used = tmp_path / "environment-a.tar.gz", tmp_path / "environment-b.tar.gz"
    for each in (unused, used):
        each.write_bytes(b"")
    os.utime(unused, (0, 0))
    await EnvironmentBuilder(tmp_path).build(LOCKED, lambda line: None)
    assert (unused.exists(), used.exists()) == (False, True)

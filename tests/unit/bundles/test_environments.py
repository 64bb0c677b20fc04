"""Environments on a node: unpacked once, whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import re
import tarfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from anyio import CancelScope

from batchflow.errors import ProtocolError
from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.protocol.environments import ARCHIVE, target_name
from batchflow.protocol.functions import PYTHON
from node_agent.bundles import environments
from node_agent.bundles.environments import EnvironmentCache
from node_agent.system import process_groups
from tests.support.waiting import eventually
from tests.support.wheels import zip_of

HASH = "e" * 64
SPAWN = process_groups.spawn
MACHINE = os.uname().machine


@pytest.fixture(autouse=True)
def _no_byte_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process makes byte code, which would outlive its test's event loop."""

    async def spawn(*arguments: object, **options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(process_groups, "spawn", spawn)


class OneBundle:
    """A cache of bundles that has one, whose only file is an archive."""

    def __init__(
        self,
        folder: Path,
        members: dict[str, str],
        kind: bytes = tarfile.REGTYPE,
        names: tuple[str, ...] = (),
    ) -> None:
        """`names`: of further files."""
        self._names = (ARCHIVE, *names)
        self._folder = folder
        folder.mkdir()
        self.archive = folder / ARCHIVE
        with tarfile.open(self.archive, "w:gz") as out:
            for name, text in members.items():
                member = tarfile.TarInfo(name)
                member.type, member.size = kind, len(text)
                out.addfile(member, io.BytesIO(text.encode()))
        self._content = self.archive.read_bytes()

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[tuple[Bundle, Path]]:
        digest, size = hashlib.sha256(self._content).hexdigest(), len(self._content)
        yield Bundle(tuple(BundleFile(name, digest, size) for name in self._names)), self._folder

    def distrust(self, bundle_hash: str) -> None:
        """Fetch it again."""
        self.archive.write_bytes(self._content)


def _cache(tmp_path: Path, members: dict[str, str], *, limit: int = 1000) -> EnvironmentCache:
    return EnvironmentCache(tmp_path / "environments", OneBundle(tmp_path / "bundle", members), limit)


async def test_an_environment_is_unpacked_and_cannot_be_written(tmp_path: Path) -> None:
    cache = _cache(tmp_path, {"pack/core.py": "x = 1\n"})
    async with cache.use(HASH) as folder:
        assert (folder / "pack/core.py").read_text() == "x = 1\n"
        assert (folder / "pack/core.py").stat().st_mode & 0o777 == 0o444
    await close(cache)


async def test_what_is_unused_goes_when_there_is_too_much_and_comes_again(tmp_path: Path) -> None:
    cache = _cache(tmp_path, {"core.py": "x = 1\n"}, limit=1)
    for _ in range(2):
        async with cache.use(HASH) as folder:
            assert (folder / "core.py").is_file()
        assert not (folder / "core.py").exists()
    await close(cache)


async def test_a_cancelled_unpacking_leaves_an_environment_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that unpacks cannot be cancelled, so the next use must find what it made."""
    cache = _cache(tmp_path, {"core.py": "x = 1\n"})
    begun, go_on, unpack = threading.Event(), threading.Event(), environments.unpack

    def slow(archive: Path, folder: Path, sha256: str) -> tuple[int, environments.Signatures]:
        begun.set()
        go_on.wait(20)
        return unpack(archive, folder, sha256)

    monkeypatch.setattr(environments, "unpack", slow)

    async def use() -> str:
        async with cache.use(HASH) as folder:
            return (folder / "core.py").read_text()

    with CancelScope() as scope:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:

            async def cancel() -> None:
                await asyncio.to_thread(begun.wait, 20)
                scope.cancel()
                go_on.set()

            group.create_task(cancel())
            await use()

    assert await use() == "x = 1\n"
    await close(cache)


@pytest.mark.parametrize(
    ("members", "kind"), [({"../out.py": ""}, tarfile.REGTYPE), ({"link": ""}, tarfile.SYMTYPE)]
)
async def test_an_archive_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, members: dict[str, str], kind: bytes
) -> None:
    source = OneBundle(tmp_path / "bundle", members, kind)
    cache = EnvironmentCache(tmp_path / "environments", source, 1000)
    with pytest.raises(ProtocolError):
        async with cache.use(HASH):
            pass
    assert not list((tmp_path / "environments").glob("*"))
    assert not (tmp_path / "out.py").exists()


@pytest.mark.parametrize(
    ("python", "platform", "said"),
    [
        (PYTHON, f"manylinux_2_28_{MACHINE}", None),
        ("3.7", f"manylinux_2_28_{MACHINE}", f"built for Python 3.7 on manylinux_2_28_{MACHINE}"),
        (PYTHON, "manylinux_2_28_pdp11", f"and this node has Python {PYTHON} on {MACHINE}: the client's"),
    ],
)
async def test_an_environment_of_another_platform_is_refused_by_name(
    tmp_path: Path, python: str, platform: str, said: str | None
) -> None:
    bundle = OneBundle(tmp_path / "bundle", {"core.py": ""}, names=(target_name(python, platform),))
    cache = EnvironmentCache(tmp_path / "environments", bundle, 1000)
    with pytest.raises(ProtocolError, match=re.escape(said)) if said else nullcontext():
        async with cache.use(HASH) as folder:
            assert (folder / "core.py").exists()
    cache.close()


async def test_unused_environments_make_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is not enough, the disk's error says so, and what was unpacked before is still there."""
    cache, unpack = _cache(tmp_path, {"core.py": "x = 1\n"}), environments.unpack
    old, used = "a" * 64, "b" * 64
    room = 2

    def unpack_where_there_is_room(
        archive: Path, folder: Path, sha256: str
    ) -> tuple[int, environments.Signatures]:
        if len([*folder.parent.glob("*-*")]) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return unpack(archive, folder, sha256)

    monkeypatch.setattr(environments, "unpack", unpack_where_there_is_room)
    async with cache.use(old):
        pass
    async with cache.use(used) as folder:
        async with cache.use(HASH) as other:
            assert (other / "core.py").exists()
            with pytest.raises(OSError, match="No space left on device"):
                async with cache.use("c" * 64):
                    pass
        assert (folder / "core.py").exists()
    cache.close()


@pytest.mark.parametrize("forged", ["archive", "no archive"])
async def test_an_archive_that_was_changed_in_the_cache_is_fetched_again(tmp_path: Path, forged: str) -> None:
    """Whether what another task wrote there can be unpacked or not."""
    source = OneBundle(tmp_path / "bundle", {"core.py": "x = 1\n"})
    other = OneBundle(tmp_path / "other", {"core.py": "x = 'forged'\n"})
    source.archive.write_bytes(other.archive.read_bytes() if forged == "archive" else b"no archive")
    cache = EnvironmentCache(tmp_path / "environments", source, 1000)
    async with cache.use(HASH) as folder:
        assert (folder / "core.py").read_text() == "x = 1\n"
    await close(cache)


class Wheels:
    """A cache of bundles that has one, of wheels."""

    def __init__(self, folder: Path, *contents: dict[str, bytes]) -> None:
        self._folder = folder
        folder.mkdir()
        self._made = [zip_of(folder / f"w{number}.whl", files) for number, files in enumerate(contents)]
        self._contents = {path: path.read_bytes() for path, _ in self._made}

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[tuple[Bundle, Path]]:
        files = [BundleFile(path.name, digest, 1) for path, digest in self._made]
        yield (
            Bundle((*files, BundleFile(target_name(PYTHON, f"manylinux_2_28_{MACHINE}"), "", 0))),
            self._folder,
        )

    def distrust(self, bundle_hash: str) -> None:
        for path, content in self._contents.items():
            path.write_bytes(content)


async def test_wheels_are_installed_side_by_side_and_fetched_again_when_one_was_changed(
    tmp_path: Path,
) -> None:
    source = Wheels(tmp_path / "bundle", {"a.py": b"x = 1\n"}, {"b/c.py": b"y = 2\n"})
    (tmp_path / "bundle" / "w1.whl").write_bytes(b"no wheel")
    cache = EnvironmentCache(tmp_path / "environments", source, 1000)
    async with cache.use(HASH) as folder:
        assert ((folder / "a.py").read_text(), (folder / "b/c.py").read_text()) == ("x = 1\n", "y = 2\n")
        assert (folder / "a.py").stat().st_mode & 0o777 == 0o444
    await close(cache)


async def compiled(folder: Path) -> None:
    async def is_there() -> bool:
        return bool(list(folder.glob("__pycache__/*.pyc")))

    await eventually(is_there)
    await asyncio.gather(*_compilations())


async def close(cache: EnvironmentCache) -> None:
    """Leave no process that makes byte code."""
    cache.close()
    await asyncio.gather(*_compilations(), return_exceptions=True)


def _compilations() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("compile environment")]


class Ended:
    """A process that has ended."""

    def __init__(self, code: int) -> None:
        self.returncode = code

    async def wait(self) -> int:
        return self.returncode


@pytest.mark.parametrize(("codes", "logged"), [([0, 0], 0), ([1, 0], 1), ([0, 2], 2), ([1, 2], 1)])
async def test_a_module_without_byte_code_is_logged(
    tmp_path: Path,
    codes: list[int],
    logged: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it belongs to tests or not: the log has the first exit code that is not 0."""
    left = iter(codes)

    async def spawn(*arguments: object, **options: object) -> Ended:
        return Ended(next(left))

    monkeypatch.setattr(process_groups, "spawn", spawn)
    caplog.set_level("INFO")
    cache = _cache(tmp_path, {"core.py": "x = 1\n"})
    async with cache.use(HASH):
        await asyncio.gather(*_compilations())
    await close(cache)
    assert [vars(each)["exit_code"] for each in caplog.records if each.msg == "environment_compiled"] == [
        logged
    ]


@pytest.mark.parametrize("change", ["a file", "byte code", "a new file"])
async def test_an_environment_that_a_task_changed_is_unpacked_again(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the task has put times and modes back; what runs in the old one keeps it till its end."""
    monkeypatch.setattr(process_groups, "spawn", SPAWN)
    monkeypatch.setattr(environments, "_LOOK_INTERVAL", 0.0)
    monkeypatch.setattr(environments, "_LOOK_SHARE", 0.0)
    cache = _cache(tmp_path, {"core.py": "x = 1\n"})
    async with cache.use(HASH) as old:
        await compiled(old)
        (code,) = old.glob("__pycache__/*.pyc")
        victim = {"a file": old / "core.py", "byte code": code, "a new file": old / "json.py"}[change]
        _forge(victim)
        async with cache.use(HASH) as new:
            assert new != old
            assert (new / "core.py").read_text() == "x = 1\n"
            assert not (new / "json.py").exists()
        assert old.exists()
        async with cache.use(HASH) as again:
            assert again == new
    assert not old.exists()
    await close(cache)


def _forge(path: Path) -> None:
    """Change a file as a task might, who has the rights of the agent."""
    before = path.stat() if path.exists() else None
    if before is not None:
        path.chmod(0o644)
    path.write_bytes(b"x = 2\n")
    if before is not None:
        path.chmod(before.st_mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

"""The wheels of a locked environment: found, fetched once, and never others than the lock allows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batchflow.environments import uv
from batchflow.environments.uv import TargetPython
from batchflow.environments.wheels import Wheel, WheelCache, WheelsUnknown, locked_wheels
from tests.support.wheels import zip_of

TARGET = TargetPython("3.11", "manylinux_2_28_x86_64")
HASH = "a" * 64
LOCK = f"tiny==1.0 --hash=sha256:{HASH}\n"


def _listing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    async def listed(requirements: str, target: TargetPython, scratch: Path) -> str:
        return f'[[packages]]\nname = "tiny"\nversion = "1.0"\n{text}\n'

    monkeypatch.setattr(uv, "lock_file", listed)


async def test_wheels_are_found_by_address_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where, url in (
        (
            'url = "https://x/p/tiny-1.0%2Bcpu-py3-none-any.whl"',
            "https://x/p/tiny-1.0%2Bcpu-py3-none-any.whl",
        ),
        ('path = "../tiny-1.0+cpu-py3-none-any.whl"', (tmp_path / "tiny-1.0+cpu-py3-none-any.whl").as_uri()),
    ):
        _listing(monkeypatch, f'wheels = [{{ {where}, size = 7, hashes = {{ sha256 = "{HASH}" }} }}]')
        (wheel,) = await locked_wheels(LOCK, TARGET, tmp_path / "scratch")
        assert wheel == Wheel("tiny-1.0+cpu-py3-none-any.whl", url, HASH, wheel.size)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ('sdist = { url = "https://x/tiny.tar.gz" }', "tiny has no wheel that can be fetched"),
        ('wheels = [{ url = "https://x/t.whl", hashes = {} }]', "tiny has no wheel"),
        (
            f'wheels = [{{ url = "https://x/t.whl", hashes = {{ sha256 = "{"b" * 64}" }} }}]',
            "not in the lock",
        ),
        (
            f'wheels = [{{ url = "https://me:word@x/t.whl", hashes = {{ sha256 = "{HASH}" }} }}]',
            "needs credentials",
        ),
    ],
)
async def test_what_cannot_be_fetched_here_is_said_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, said: str
) -> None:
    _listing(monkeypatch, listed)
    with pytest.raises(WheelsUnknown, match=said) as raised:
        await locked_wheels(LOCK, TARGET, tmp_path)
    assert "word" not in str(raised.value)


async def test_a_wheel_is_fetched_once_and_long_unused_ones_are_removed(tmp_path: Path) -> None:
    source, sha256 = zip_of(tmp_path / "tiny.whl", {"a.py": b"x = 1\n"})
    wheel = Wheel("tiny.whl", source.as_uri(), sha256, 70)
    cache, heard = WheelCache(tmp_path / "cache"), list[int]()
    first = await cache.fetch([wheel], heard.append)
    source.unlink()
    assert await cache.fetch([wheel], heard.append) == first
    assert first[wheel].read_bytes()[:2] == b"PK"
    assert heard == [70]
    os.utime(first[wheel], (0, 0))
    await cache.fetch([], heard.append)
    assert not first[wheel].exists()


@pytest.mark.parametrize("fault", ["absent", "another", "cut"])
async def test_a_wheel_that_is_not_what_was_locked_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source, sha256 = zip_of(tmp_path / "tiny.whl", {"a.py": b"x = 1\n"})
    if fault == "absent":
        source.unlink()
    elif fault == "another":
        source.write_bytes(b"forged")
    else:

        class Cut:
            def __enter__(self) -> Cut:
                return self

            def __exit__(self, *error: object) -> None: ...

            def read(self, size: int) -> bytes:
                raise ConnectionResetError("reset by peer")

        def opened(url: str, timeout: float) -> Any:
            return Cut()

        monkeypatch.setattr("batchflow.environments.wheels.urlopen", opened)
    cache = WheelCache(tmp_path / "cache")
    with pytest.raises(WheelsUnknown, match=r"tiny.whl (cannot be fetched|is not what was locked)"):
        await cache.fetch([Wheel("tiny.whl", source.as_uri(), sha256, 70)], lambda size: None)
    assert _names(tmp_path / "cache") == []


def _names(folder: Path) -> Sequence[str]:
    return [path.name for path in folder.iterdir()]

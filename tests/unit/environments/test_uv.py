"""What uv says of requirements that cannot be had: each is named, in the resolver's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchflow.environments import uv
from batchflow.environments.builder import EnvironmentBuilder, LockedEnvironment
from batchflow.environments.requirements import read_requirements
from batchflow.environments.uv import TargetPython
from batchflow.errors import EnvironmentFailed
from tests.support.wheels import index_folder, make_wheel

TARGET = TargetPython("3.11", "manylinux_2_28_x86_64")


@pytest.fixture
def index(tmp_path: Path) -> str:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "one_u", "1.0", "", "two_u<2")
    make_wheel(folder, "one_u", "2.0", "", "two_u<2")
    make_wheel(folder, "two_u", "1.0", "")
    make_wheel(folder, "two_u", "2.5", "")
    wheel = make_wheel(folder, "windows_u", "1.0", "")
    wheel.rename(folder / "windows_u-1.0-cp311-cp311-win_amd64.whl")
    return index_folder(folder, yanked="2.0")


async def _locked(folder: Path, *lines: str) -> LockedEnvironment:
    file = folder / "requirements.txt"
    file.write_text("\n".join(lines))
    wanted = read_requirements(file)
    assert wanted is not None
    return await EnvironmentBuilder(folder / "cache").lock(wanted, TARGET, lambda line: None)


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("absent_u", "absent-u was not found"),
        ("two_u>=7", "two-u>=7"),
        ("one_u==2.0", '`one-u==2.0` is yanked (reason: "it loses digits"); require another version'),
        ("one_u>=2", "one-u==2.0 was yanked (reason: it loses digits)"),
        ("one_u\ntwo_u>2", "one-u"),
        ("windows_u", "windows-u"),
    ],
)
async def test_what_cannot_be_had_is_named_in_the_resolvers_words(
    tmp_path: Path, index: str, requirement: str, said: str
) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        await _locked(tmp_path, index, requirement)
    assert said in str(failed.value)


async def test_a_file_that_forbids_indexes_is_built_without_one(tmp_path: Path, index: str) -> None:
    folder = f"--find-links {tmp_path / 'wheels'}"
    locked = await _locked(tmp_path, "--no-index", folder, "two_u")
    assert locked.text.splitlines()[:2] == ["--no-index", folder]
    assert locked.packages == ("two-u==2.5",)


async def test_credentials_of_an_index_are_in_no_lock_that_others_see(tmp_path: Path, index: str) -> None:
    secret = "--extra-index-url http://me:pass-word@127.0.0.1:9/simple"
    locked = LockedEnvironment(f"{secret}\ntwo-u==1.0 \\\n    --hash=sha256:00\n", TARGET)
    assert "pass-word" not in locked.public_text
    assert "http://127.0.0.1:9/simple" in locked.public_text
    assert LockedEnvironment("two-u==1.0 \\\n    --hash=sha256:00\n", TARGET).key == locked.key


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("Downloading numpy (16.1MiB)", 16.1 * 2**20),
        (" Downloaded numpy", None),
        ("Downloading a (2GiB)", 2 * 2**30),
    ],
)
def test_sizes_of_downloads_are_read_from_what_uv_says(line: str, size: float | None) -> None:
    assert uv.downloaded(line) == size

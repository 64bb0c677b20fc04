"""The agent's archive on a node: unpacked once, whole or not at all, whoever starts at the same moment."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from node_agent import bootstrap

AGENT = "import json, sys\nprint(json.dumps([__file__, sys.argv[1:]]))\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "agent-1.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("node_agent/__init__.py", "")
        content.writestr("node_agent/__main__.py", AGENT)
        content.writestr("filler.py", "x = 1\n" * 200_000)
    return path


def test_it_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    """A second start finds it there and touches nothing; nothing lies beside it."""
    site = bootstrap.unpack(archive, tmp_path / "shared")
    before = (site / "filler.py").stat().st_mtime_ns
    assert bootstrap.unpack(archive, tmp_path / "shared") == site
    assert (site / "filler.py").stat().st_mtime_ns == before
    assert list((tmp_path / "shared" / "batchflow").iterdir()) == [site]


def test_many_start_at_once(archive: Path, tmp_path: Path) -> None:
    """Each becomes the agent of the one folder, with the arguments that it was given."""
    environment = {"AZ_BATCH_NODE_SHARED_DIR": str(tmp_path / "shared")}
    command = [sys.executable, str(bootstrap.__file__), str(archive), "--config", "agent.json"]
    starts = [
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = {start.communicate(timeout=60)[0].strip() for start in starts}
    assert [start.returncode for start in starts] == [0] * 6
    site = tmp_path / "shared" / "batchflow" / "agent-1"
    assert said == {f'["{site}/node_agent/__main__.py", ["--config", "agent.json"]]'}
    assert list(site.parent.iterdir()) == [site]


def test_half_an_archive_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    """A download that broke off is refused, and the next one finds a clean place."""
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(zipfile.BadZipFile):
        bootstrap.unpack(archive, tmp_path / "shared")
    assert list((tmp_path / "shared" / "batchflow").iterdir()) == []
    archive.write_bytes(whole)
    assert (bootstrap.unpack(archive, tmp_path / "shared") / "filler.py").is_file()


def test_it_waits_for_room_on_a_full_disk(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what it waits for; another error ends it."""
    errors = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None, PermissionError("not yours")]
    whole = zipfile.ZipFile.extractall

    def extract(self: zipfile.ZipFile, path: Path) -> None:
        if (error := errors.pop(0)) is not None:
            raise error
        whole(self, path)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", extract)
    monkeypatch.setattr(bootstrap, "PAUSE", 0.0)
    site = bootstrap.unpack_patiently(archive, tmp_path / "shared")
    assert (site / "node_agent").is_dir()
    assert "disk is full" in capsys.readouterr().err
    with pytest.raises(PermissionError):
        bootstrap.unpack_patiently(archive, tmp_path / "other")


def test_an_agent_that_a_task_has_removed_is_unpacked_again(archive: Path, tmp_path: Path) -> None:
    """Whatever the task has left of it."""
    site = bootstrap.unpack(archive, tmp_path / "shared")
    shutil.rmtree(site / "node_agent")
    assert bootstrap.unpack(archive, tmp_path / "shared") == site
    assert (site / "node_agent" / "__main__.py").is_file()
    assert list(site.parent.iterdir()) == [site]

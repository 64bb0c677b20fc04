"""A Python that nodes have not: fetched by uv from a mirror on loopback, unpacked as a node does."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from batchflow.environments import interpreters
from batchflow.errors import ConfigurationError
from node_agent import bootstrap
from tests.support.mirror import python_of_mirror, serving

PLATFORM = "manylinux_2_28_x86_64"
AGENT = "import json, os, sys\nprint(json.dumps([os.environ.get('CARRIED'), sys.argv[1:]]))\n"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a mirror that has Python 3.12, as far as uv knows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    downloads = python_of_mirror(tmp_path / "mirror", "3.12")
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", downloads.as_uri())
    with serving(tmp_path / "mirror") as url:
        yield url


async def test_a_python_of_the_mirror_becomes_the_agents_on_a_node(tmp_path: Path, mirror: str) -> None:
    """Packed once, without tests and byte code, unpacked beside the agent's archive, which it then runs."""
    archive = await interpreters.build("3.12", PLATFORM, mirror)
    with tarfile.open(archive) as members:
        names = members.getnames()
    assert {"bin/python3", "bin/python3.12", "lib/python3.12/os.py"} <= set(names)
    assert not [name for name in names if "test" in name or "__pycache__" in name]

    agent = tmp_path / "agent-1.zip"
    with zipfile.ZipFile(agent, "w") as content:
        content.writestr("node_agent/__main__.py", AGENT)
        content.writestr("node_agent/__init__.py", "")
    command = [sys.executable, bootstrap.__file__, str(agent), "--python", str(archive), "--config", "a.json"]
    environment = {**os.environ, "AZ_BATCH_NODE_SHARED_DIR": str(tmp_path / "shared")}
    for _ in range(2):
        said = await anyio.run_process(command, env=environment, cwd=tmp_path)
        assert json.loads(said.stdout) == ["yes", ["--config", "a.json"]]


async def test_what_was_fetched_once_is_used_again(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await interpreters.build("3.12", PLATFORM, mirror)

    async def refuse(*_: object, **__: object) -> str:
        raise AssertionError("uv was asked again")

    monkeypatch.setattr(interpreters, "run_command", refuse)
    assert await interpreters.build("3.12", PLATFORM, mirror) == first


async def test_a_version_that_the_mirror_has_not_is_refused_in_uvs_words(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"python is '3\.14', .*agent\.python_mirror .*3\.14"):
        await interpreters.build("3.14", PLATFORM, mirror)
    next((tmp_path / "mirror").glob("*/*.tar.gz")).unlink()
    with pytest.raises(ConfigurationError, match=r"(?s)python is '3\.12'.*404"):
        await interpreters.build("3.12", PLATFORM, mirror)
    assert not list((tmp_path / "cache" / "batchflow").iterdir())


async def test_a_mirror_that_is_not_there_is_named_without_its_credentials(mirror: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\(http://127\.0\.0\.1:1\)") as raised:
        await interpreters.build("3.12", PLATFORM, "http://me:word@127.0.0.1:1")
    assert "word" not in str(raised.value)

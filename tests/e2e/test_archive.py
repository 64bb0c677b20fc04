"""The agent is carried to nodes that have nothing but Python."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import Client, Settings
from batchflow.config.loader import load_settings
from batchflow.errors import ConfigurationError
from batchflow.pools import agent_archive
from tests.support.cloud import running_cloud

WHERE = {
    "where.py": b"""import sys


def do_action(engine, args):
    import orjson
    return [sys.executable, orjson.__file__, sys.path]
"""
}
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PLATFORM = "manylinux_2_28_x86_64"
OFFLINE = (
    "Connection",
    "connection",
    "Could not find a version",
    "Temporary failure",
    "timed out",
    "ProxyError",
)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The folder of a `python3` without pip and without any package."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python3"
    found = "import importlib.util as u; print([n for n in ('orjson', 'azure', 'pip') if u.find_spec(n)])"
    said = subprocess.run([python, "-c", found], capture_output=True, text=True, check=True, timeout=20)
    assert said.stdout.strip() == "[]"
    return python.parent


@pytest.fixture
def settings(bare: Path, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a local cloud whose nodes find that python3 on their PATH."""
    with running_cloud(tmp_path / "cloud.toml", PATH=f"{bare}:/usr/bin:/bin") as config:
        loaded = load_settings(config, environment={})
        carried = replace(loaded.agent, python=None, node_python=VERSION, node_platform=PLATFORM)
        yield replace(loaded, agent=carried)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
async def archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, fetched by pip into a cache of these tests' own; skips where pip reaches no index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    try:
        return await agent_archive.build(VERSION, PLATFORM)
    except ConfigurationError as error:
        if any(word in str(error) for word in OFFLINE):
            pytest.skip(f"pip cannot fetch the agent's packages here: {error}")
        raise


@pytest.mark.timeout(400)
async def test_node_with_nothing_but_python_runs_tasks(archive: Path, settings: Settings, bare: Path) -> None:
    """From the bare interpreter to a result: archive, bootstrap, agent, task, all from the archive."""
    async with Client(settings) as client:
        pool = await client.ensure_pool("bare", files=WHERE, nodes=1)
        async with pool.session() as session:
            executable, module, path = await session.run("where.py")
        assert executable == str(bare / "python3")
        site = f"/shared/batchflow/{archive.stem}"
        assert f"{site}/orjson/" in module
        assert not [each for each in path if "site-packages" in each and str(bare.parent) not in each]
        await pool.stop()
        async with pool.session() as session:
            assert (await session.run("where.py"))[1] == module


async def test_second_client_finds_the_archive_in_the_cache(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same to the byte, and pip is asked for nothing."""

    async def refuse(*_: object) -> None:
        raise AssertionError("pip was asked again")

    monkeypatch.setattr(agent_archive, "_fetch", refuse)
    assert await agent_archive.build(VERSION, PLATFORM) == archive
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
    assert {"batchflow/protocol/wire.py", "node_agent/__main__.py"} <= set(names)
    assert not [name for name in names if name.startswith("batchflow/local/")]


@pytest.mark.timeout(400)
async def test_archive_for_nodes_with_an_identity_has_azure_identity(archive: Path) -> None:
    """It is another archive, with what azure-identity needs and the rest as well."""
    other = await agent_archive.build(VERSION, PLATFORM, identity=True)
    with zipfile.ZipFile(archive) as without, zipfile.ZipFile(other) as content:
        assert "azure/identity/aio/__init__.py" not in without.namelist()
        assert set(without.namelist()) <= set(content.namelist())
        assert {"azure/identity/aio/__init__.py", "msal/__init__.py"} <= set(content.namelist())


async def test_archive_for_an_unknown_python_is_refused_with_the_words_of_pip(archive: Path) -> None:
    """The error names the settings at fault."""
    with pytest.raises(ConfigurationError, match=r"agent\.node_python.*pip said"):
        await agent_archive.build("2.6", PLATFORM)

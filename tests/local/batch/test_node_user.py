"""Nodes that run as another user than the cloud: their tasks cannot read what is the cloud's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchflow.errors import ConfigurationError
from batchflow.local.batch.core.entities import CommandSpec, Outcome
from batchflow.local.batch.nodes import node_user
from batchflow.local.batch.nodes.commands import NodeCommand
from batchflow.local.batch.nodes.node_user import NodeUser, check_agents, find
from batchflow.local.batch.nodes.resource_files import NodeDownloads
from batchflow.local.server import LocalCloud

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

OTHER = NodeUser("other", 65534, 65534)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may go through."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


async def test_a_command_cannot_read_the_settings_of_its_cloud(folder: Path) -> None:
    """It owns its own folder, and what it is told to stop by still ends it."""
    settings = folder / "local.toml"
    settings.write_text("key")
    settings.chmod(0o600)
    line = f"sh -c 'id -u; echo mine > file; cat file; cat {settings}'"
    command = NodeCommand(
        CommandSpec(line), folder / "task", {"PATH": os.environ["PATH"]}, "host", user=OTHER
    )
    web = NodeDownloads()
    outcome = await command.run(web, lambda: None)
    await web.aclose()
    assert outcome == Outcome(1)
    assert (folder / "task/stdout.txt").read_text().split() == ["65534", "mine"]
    assert "Permission denied" in (folder / "task/stderr.txt").read_text()
    assert (folder / "task/wd/file").stat().st_uid == OTHER.uid


def test_a_user_that_nodes_cannot_run_as_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the cloud starts, with what to do."""
    with pytest.raises(ConfigurationError, match="no user 'nobody-of-this-name'"):
        LocalCloud(node_user="nobody-of-this-name")
    with pytest.raises(ConfigurationError, match="root"):
        find("root")
    program = folder / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setattr(node_user, "_PROBE", (str(program),))
    with pytest.raises(ConfigurationError, match="cannot run agents"):
        check_agents(OTHER, folder)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match="only root"):
        find("nobody")

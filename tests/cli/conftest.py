"""One local cloud, kept by `batchflow up`, and the program as its users start it: in processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import TASKS, Cli


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The program where a local cloud is up, with a pool `demo` of two nodes that has the tests' tasks."""
    top = tmp_path_factory.mktemp("cloud")
    cli = Cli(top)
    for name, text in TASKS.items():
        cli.write(f"tasks/{name}", text)
    with cli.start("up") as up:
        try:
            assert up.stdout is not None
            assert up.stdout.readline().startswith("BATCHFLOW_CONFIG=")
            made = cli("pool", "create", "demo", "--file", "tasks/", "--wait")
            assert made.returncode == 0, made.stderr
            yield cli
        finally:
            up.send_signal(signal.SIGINT)
            _, said = up.communicate(timeout=30)
    assert up.returncode == 0, said
    assert not (top / "runtime" / "batchflow" / "local.toml").exists()


@pytest.fixture
def cli(cloud: Cli, tmp_path: Path) -> Cli:
    """The program in an empty folder, with the cloud and a memory of runs of its own."""
    return cloud.elsewhere(tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """The program in an empty folder, and no cloud that is up."""
    return Cli(tmp_path)

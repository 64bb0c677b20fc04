"""One local cloud, kept by `batchflow up`, and the program as its users start it: in processes of its own."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow.cli.main import main
from tests.support.command_line import TASKS, Cli, Inside
from tests.support.latency import LATENCY


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The program where a local cloud is up, with a pool `demo` of two nodes that has the tests' tasks."""
    top = tmp_path_factory.mktemp("cloud")
    cli = Cli(top)
    for name, text in TASKS.items():
        cli.write(f"tasks/{name}", text)
    with cli.start("up", "--latency", str(LATENCY)) as up:
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
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """The program in the test's own process, which spares the start of one."""

    def run(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cli.folder)
        monkeypatch.setattr(os, "environ", cli.environment)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with warnings.catch_warnings():  # what a command has not closed in time ends with its process
            warnings.simplefilter("ignore", ResourceWarning)
            code = main(arguments)
            gc.collect()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


@pytest.fixture
def cli(cloud: Cli, tmp_path: Path, inside: Inside) -> Cli:
    """The program in an empty folder, with the cloud and a memory of runs of its own."""
    return replace(cloud.elsewhere(tmp_path), inside=inside)


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """The program in an empty folder, and no cloud that is up."""
    return Cli(tmp_path)

"""A local cloud as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.latency import LATENCY


@contextmanager
def cloud_process(config: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a local cloud that has written its configuration to the file `config`; end it with the block."""
    late = ("--latency", str(LATENCY))
    command = [sys.executable, "-m", "batchflow.local", "--config", str(config), *late, *options]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError(f"the local cloud ended with status {process.wait()}")
        yield process
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def running_cloud(config: Path, *options: str, **environment: str) -> Iterator[Path]:
    """Run a local cloud for the block, which needs its configuration file alone."""
    with cloud_process(config, *options, **environment):
        yield config

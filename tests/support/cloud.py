"""A local cloud as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.latency import LATENCY


@contextmanager
def running_cloud(config: Path, *options: str) -> Iterator[Path]:
    """Writes its configuration to the file `config`; ends with the block."""
    late = ("--latency", str(LATENCY))
    command = [sys.executable, "-m", "batchflow.local", "--config", str(config), *late, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError(f"the local cloud ended with status {process.wait()}")
        yield config
        process.terminate()
        process.communicate(timeout=20)

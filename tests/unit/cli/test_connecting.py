"""A command connects by the configuration in its folder."""

from __future__ import annotations

import subprocess
import sys

from tests.support.command_line import Cli


def test_a_local_cloud_without_nodes(alone: Cli) -> None:
    """`pool.nodes = 0` is refused by name, before a cloud is started."""
    alone.write("batchflow.toml", 'target = "local"\n[pool]\nnodes = 0\n')
    program = (
        "import asyncio, batchflow\n"
        "async def main():\n"
        "    await batchflow.Client.from_config()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=alone.folder,
        env=alone.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ConfigurationError: pool.nodes is 0" in ended.stderr

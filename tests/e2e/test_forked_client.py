"""A forked child that exits, through all the ends of `asyncio.run`, leaves its parent's client as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, os, sys
from batchflow import Client

async def main(config):
    async with Client.from_config(config) as client:
        files = {"t.py": b"def do_action(e, a): return 'ok'"}
        pool = await client.ensure_pool("forked", files=files, nodes=1)
        async with pool.session() as session:
            await session.run("t.py")
            if (child := os.fork()) == 0:
                sys.exit(7)
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                await asyncio.sleep(0.01)
            assert os.waitstatus_to_exitcode(ended[1]) == 7, ended
            for _ in range(3):
                print(await asyncio.wait_for(session.run("t.py"), 60))
        await pool.delete()

asyncio.run(main(sys.argv[1]))
"""


def test_exit_of_a_forked_child_closes_nothing_of_its_parent(cloud_config: Path) -> None:
    """It used to close the session, the connections, and a local cloud of the client's own."""
    command = [sys.executable, "-c", PROGRAM, str(cloud_config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.split() == ["ok"] * 3, ended.stderr
    assert ended.returncode == 0, ended.stderr

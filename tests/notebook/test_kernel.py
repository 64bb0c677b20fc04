"""A kernel that is interrupted in the middle of something, and one that ends without closing anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import started_at

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TASK = """
import time
from pathlib import Path

def do_action(engine, args):
    seconds, sign = args
    Path(sign).touch()
    time.sleep(seconds)
    return "woke"
"""
OPEN = """
from batchflow import Client
client = await Client.local(nodes=1)
pool = await client.ensure_pool("kernel", files=["waits.py"])
session = await pool.session()
await session.run("waits.py", 0, sign)
"""
CHILDREN = "from pathlib import Path; import os; Path(f'/proc/self/task/{os.getpid()}/children').read_text()"
SETTLED = """
import asyncio
while session.counts.queued:
    await asyncio.sleep(0.05)
session.counts.cancelled
"""
PATIENCE = 30.0
"""Seconds that anything here may take on a busy machine."""


class Kernel:
    """A notebook's kernel, cell by cell."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def run(self, source: str) -> Any:
        """The value of the cell's last line, as text; or the name of what it raised."""
        cell = nbformat.v4.new_code_cell(source)
        self._client.nb.cells.append(cell)
        await self._client.async_execute_cell(cell, len(self._client.nb.cells) - 1)
        for output in cell.outputs:
            if output.output_type == "error":
                return output.ename
            if "data" in output:
                return output.data["text/plain"]
        return None

    async def interrupt(self) -> None:
        await self._client.km.interrupt_kernel()


@asynccontextmanager
async def kernel(folder: Path) -> AsyncIterator[Kernel]:
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=200,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    async with client.async_setup_kernel():
        yield Kernel(client)


async def there(path: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while not path.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_interrupted_cell_takes_its_task_along(tmp_path: Path) -> None:
    """The stop button ends `run` and its task; the session goes on, and a kernel that ends leaves nothing."""
    (tmp_path / "waits.py").write_text(TASK)
    sign = tmp_path / "sign"
    async with kernel(tmp_path) as notebook:
        assert await notebook.run(f"sign = {str(sign)!r}\n{OPEN}") == "'woke'"
        children = (await notebook.run(CHILDREN)).strip("' ").split()
        starts = {pid: started_at(pid) for pid in map(int, children)}
        sign.unlink()
        waiting = asyncio.create_task(notebook.run("await session.run('waits.py', 600, sign)"))
        await there(sign)
        await notebook.interrupt()
        assert await waiting in ("KeyboardInterrupt", "CancelledError")
        assert await notebook.run(SETTLED) == "1"
        assert await notebook.run("await session.run('waits.py', 0, sign)") == "'woke'"
    assert starts
    async with asyncio.timeout(PATIENCE):
        while any(start is not None and started_at(pid) == start for pid, start in starts.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

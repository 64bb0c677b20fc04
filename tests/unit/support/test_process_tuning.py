"""What a process gives back when it is idle again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from batchflow.support.process_tuning import IdleDetector

PROGRAM = """
import asyncio, pathlib, sys, time
from batchflow.support import process_tuning

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

async def main():
    before = resident()
    values = [b"%d" % n * 25_000 for n in range(1000, 2000)]
    pin = b"1" * 100_000
    while time.process_time() < 0.5:
        pass
    full = resident()
    values.clear()
    kept = resident()
    trimming = asyncio.create_task(process_tuning.trim_heap(0.05, 0.05))
    async with asyncio.timeout(30):
        while resident() - before > (full - before) / 4:
            await asyncio.sleep(0.05)
    print(kept - before > (full - before) / 2)

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_of_an_idle_process_is_returned() -> None:
    """The blocks were freed below one that is still in use, so the C library kept them."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout == "True\n"


def test_process_without_work_is_never_idle_again() -> None:
    """A process that did next to nothing has no memory to return."""
    detector = IdleDetector(0.0)
    assert not any(detector.is_idle_again(0.01 * n, 1.0) for n in range(1, 15))


def test_heap_is_trimmed_once_after_work_and_not_during_it() -> None:
    """Memory that is given back under load has to be got again."""
    detector = IdleDetector(0.0)
    spent = (0.5, 1.4, 2.0, 2.01, 2.02, 2.03)
    assert [detector.is_idle_again(each, 1.0) for each in spent] == [False, False, False, True, False, False]

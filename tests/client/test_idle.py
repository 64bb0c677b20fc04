"""What a process gives back when it is idle again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from batchflow.idle import Exertion

GIVES_BACK = """
import asyncio, pathlib, time
from batchflow import idle

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
    giving = asyncio.create_task(idle.give_back(0.05))
    async with asyncio.timeout(30):
        while resident() - before > (full - before) / 4:
            await asyncio.sleep(0.05)
    giving.cancel()
    print(kept - before > (full - before) / 2)

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_free_memory_goes_back() -> None:
    """What was freed below something that is still in use, and was kept until then."""
    told = subprocess.run(
        [sys.executable, "-c", GIVES_BACK], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout == "True\n"


def test_not_before_there_was_work() -> None:
    """Whoever does next to nothing has nothing to give."""
    exertion = Exertion(0.0)
    assert not any(exertion.is_over(0.01 * n, 1.0) for n in range(1, 15))


def test_not_while_there_is_work_and_once_after_it() -> None:
    """Memory that is given back under load has to be got again."""
    exertion = Exertion(0.0)
    spent = (0.5, 1.4, 2.0, 2.01, 2.02, 2.03)
    assert [exertion.is_over(each, 1.0) for each in spent] == [False, False, False, True, False, False]

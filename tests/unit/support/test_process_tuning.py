"""What a process gives back when it is idle again."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from batchflow.support import process_tuning
from batchflow.support.process_tuning import ActivitySinceTrim, HeapTrimmer

GIVES_BACK = """
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
    if sys.argv[1] == "of our own":
        giving = asyncio.create_task(process_tuning.trim(0.05))
    else:
        process_tuning.HeapTrimmer(lambda: True, look=0.05).moved(process_tuning.MUCH)
    async with asyncio.timeout(30):
        while resident() - before > (full - before) / 4:
            await asyncio.sleep(0.05)
    print(kept - before > (full - before) / 2)

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.parametrize("process", ["of our own", "of a user"])
def test_free_memory_goes_back(process: str) -> None:
    """What was freed below something that is still in use, and was kept until then."""
    told = subprocess.run(
        [sys.executable, "-c", GIVES_BACK, process], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout == "True\n"


def test_not_before_there_was_work() -> None:
    """Whoever does next to nothing has nothing to give."""
    exertion = ActivitySinceTrim(0.0)
    assert not any(exertion.is_over(0.01 * n, 1.0) for n in range(1, 15))


def test_not_while_there_is_work_and_once_after_it() -> None:
    """Memory that is given back under load has to be got again."""
    exertion = ActivitySinceTrim(0.0)
    spent = (0.5, 1.4, 2.0, 2.01, 2.02, 2.03)
    assert [exertion.is_over(each, 1.0) for each in spent] == [False, False, False, True, False, False]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each time that the C library was asked to give back."""
    times = list[int]()
    monkeypatch.setattr(process_tuning, "_trimming", lambda: times.append)
    return times


async def looked(relief: HeapTrimmer) -> None:
    """Until it waits for nothing more."""
    async with asyncio.timeout(10):
        while relief._timer is not None:  # noqa: ASYNC110 - one look follows the other at once
            await asyncio.sleep(0)


async def test_a_client_is_asked_once_after_much(asked: list[int]) -> None:
    """Not for little, not while tasks are under way, and again only after as much again."""
    under_way = [True, True, False]
    relief = HeapTrimmer(lambda: not under_way.pop(0), much=10, look=0.0)
    relief.moved(9)
    assert relief._timer is None
    relief.moved(1)
    relief.moved(50)
    await looked(relief)
    assert (asked, under_way) == ([0], [])
    relief.moved(9)
    assert relief._timer is None


async def test_a_large_process_is_left_alone(asked: list[int]) -> None:
    """It would be held up for longer than anybody wants to wait."""
    relief = HeapTrimmer(lambda: True, much=10, largest=1, look=0.0)
    relief.moved(10)
    await looked(relief)
    assert asked == []


async def test_closing_leaves_no_timer(asked: list[int]) -> None:
    """What is due is done, what is not is not."""
    relief = HeapTrimmer(lambda: False, much=10, look=3600.0)
    relief.moved(5)
    relief.close()
    assert asked == []
    relief.moved(5)
    relief.close()
    relief.close()
    assert (asked, relief._timer) == ([0], None)

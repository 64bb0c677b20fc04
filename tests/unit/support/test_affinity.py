"""Where an object may be used: in the event loop and the process that opened it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

import pytest

from batchflow.errors import WrongEventLoop
from batchflow.support.affinity import LoopAffinity


def in_thread(call: Callable[[], object]) -> object:
    """Return what a call in another thread returns, or the error that it raises."""
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(call())
        except WrongEventLoop as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return ends[0]


async def check(affinity: LoopAffinity) -> None:
    affinity.check()


def test_own_loop_and_own_thread_pass() -> None:
    """So does a function without a running loop, in the thread of the opening."""
    affinity = LoopAffinity("client")
    affinity.check()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def opens() -> None:
            affinity.bind()
            affinity.check()
            assert affinity.loop is loop

        runner.run(opens())
        affinity.check()
        runner.run(check(affinity))
    assert affinity.loop is None


def test_another_thread_is_refused() -> None:
    """With a loop of its own, and without one."""
    affinity = LoopAffinity("client")

    async def main() -> None:
        affinity.bind()
        for call in (affinity.check, lambda: asyncio.run(check(affinity))):
            error = in_thread(call)
            assert isinstance(error, WrongEventLoop)
            assert "client belongs to the event loop that opened it" in str(error)
            assert "run_coroutine_threadsafe" in str(error)

    asyncio.run(main())


def test_second_asyncio_run_is_named() -> None:
    """The misuse of every beginner, who opens a client in one and uses it in the next."""
    affinity = LoopAffinity("client")

    async def opens() -> None:
        affinity.bind()

    asyncio.run(opens())
    with pytest.raises(WrongEventLoop, match=r"each asyncio.run\(\) has a loop of its own"):
        asyncio.run(check(affinity))


def told_in_a_fork(affinity: LoopAffinity) -> str:
    """Return what a forked child is told when it uses the object."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            affinity.check()
        except WrongEventLoop as error:
            assert affinity.is_forked
            assert affinity.loop is None
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading) as said:
        return said.read()


def test_forked_child_is_refused() -> None:
    """It is told what to do, and its loop is none that anything may be scheduled in."""
    affinity = LoopAffinity("client")

    async def main() -> str:
        affinity.bind()
        return told_in_a_fork(affinity)

    said = asyncio.run(main())
    assert f"opened in process {os.getpid()}" in said
    assert "spawn" in said

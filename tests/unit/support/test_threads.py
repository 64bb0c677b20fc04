"""Blocking calls in threads, which keep no interpreter from ending."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import batchflow
from batchflow.support.threads import in_thread
from tests.support.waiting import eventually, within

ROOT = Path(batchflow.__file__).parent
OF_THE_CLOUD = ("blob", "batch", "servicebus", "queues")
"""Folders of the local cloud's own process."""
WAITED_FOR = {"to_thread", "run_in_executor", "ThreadPoolExecutor", "Timer", "run_sync"}
"""Ways to start threads that the interpreter waits for at its end."""

HANGS = """
import asyncio, threading
from batchflow.support.threads import in_thread
async def main():
    asyncio.ensure_future(in_thread(threading.Event().wait))
    await asyncio.sleep(0)
    raise KeyboardInterrupt
asyncio.run(main())
"""


async def test_it_returns_what_the_call_returns() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    assert await in_thread(threading.get_ident) != threading.get_ident()


async def test_it_raises_what_the_call_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_cancelled_wait_lets_the_call_go_on() -> None:
    """And what it returns then is dropped."""
    go_on, ended = threading.Event(), threading.Event()

    def call() -> None:
        go_on.wait()
        ended.set()

    waiting = asyncio.ensure_future(in_thread(call))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    go_on.set()
    await eventually(ended.is_set)


def test_interpreter_ends_while_a_call_hangs() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, timeout=60, check=False)
    assert b"KeyboardInterrupt" in ended.stderr


def starts_waited_for_threads(path: Path) -> bool:
    """Whether a module starts threads other than as daemons."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in WAITED_FOR:
                return True
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Thread"):
            return all(each.arg != "daemon" for each in node.keywords)
    return False


def test_the_client_starts_daemon_threads_alone() -> None:
    """Nothing of a client keeps an interpreter from ending, however often Ctrl-C is pressed."""
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[:2] not in {("local", name) for name in OF_THE_CLOUD}
        and starts_waited_for_threads(path)
    }
    assert found <= {"local/server.py", "local/__main__.py"}

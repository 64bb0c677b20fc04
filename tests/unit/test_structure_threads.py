"""Where the agent uses threads: where neither a task of the event loop nor a process would do."""

from __future__ import annotations

import ast
from pathlib import Path

import node_agent

ROOM = Path(node_agent.__file__).parent
WHY = {
    "cache": "hashes and copies files: the kernel offers no waiting for a disk",
    "workspace": "copies and removes folders",
    "slot": "puts a folder in order",
    "environments": "unpacks archives",
    "wheels": "inflates files on several processors",
    "resources": "hashes files",
    "removal": "removes folders of tens of thousands of files",
    "process_state": "ends what a task of multiprocessing left, which may hang, in the process of the task",
    "replay": "waits for the Java of an async task in the foreground, in a process of its own",
    "process": "imports, while the links are being opened",
}
STARTERS = {"to_thread", "run_in_executor", "Thread", "ThreadPoolExecutor", "Timer", "run_sync"}


def starts_threads(source: str) -> bool:
    """Whether one of the ways to have something run in a thread is named there."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return not STARTERS.isdisjoint(names)


def test_where_the_agent_starts_threads() -> None:
    """In these rooms and for these reasons; whoever adds one has to say why."""
    found = {path.stem for path in ROOM.rglob("*.py") if starts_threads(path.read_text("utf-8"))}
    assert found == WHY.keys()


def test_what_the_look_at_the_sources_sees() -> None:
    """Every way by which Python starts a thread."""
    ways = (
        "asyncio.to_thread(f)",
        "loop.run_in_executor(None, f)",
        "threading.Thread(target=f).start()",
        "from threading import Thread\nThread(target=f)",
        "concurrent.futures.ThreadPoolExecutor()",
        "anyio.to_thread.run_sync(f)",
        "threading.Timer(1, f)",
    )
    assert all(map(starts_threads, ways))
    assert not starts_threads("lock = threading.Lock()")

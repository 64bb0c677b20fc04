"""A supervisor with an agent of the tests' own, as real processes.

``python -m tests.support.agent_process DIRECTORY BEHAVIOUR``
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from batchflow.protocol import wire
from node_agent.startup import callbacks
from node_agent.supervision.crash_record import RunningRecord
from node_agent.supervision.supervisor import EX_CONFIG, UNFIT, Supervisor
from node_agent.system import json_log

DIRECTORY = Path(sys.argv[1]) if len(sys.argv) > 2 else Path()
UID = "abc123:7"


def note(word: str) -> int:
    """Append a line to the diary; return how many lines there are now."""
    with open(DIRECTORY / "diary", "a", encoding="utf-8") as diary:
        diary.write(f"{word} {os.getpid()}\n")
    return len((DIRECTORY / "diary").read_text(encoding="utf-8").splitlines())


def crash_once() -> int:
    """End with 1 the first time and with 0 the second."""
    return 1 if note("life") == 1 else 0


def refuse() -> int:
    note("life")
    return EX_CONFIG


def leave_orphans() -> int:
    """Start a child, a grandchild in a session of its own, and an orphan of it; then wait for the end."""
    if note("life") > 4:
        time.sleep(3600)
    note("child " + str(subprocess.Popen(["sleep", "3600"]).pid))
    script = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\n"
    script += f"open({str(DIRECTORY / 'diary')!r}, 'a').write(f'orphan {{os.getpid()}} 0\\n')\n"
    script += "time.sleep(3600)"
    subprocess.run([sys.executable, "-c", script], check=True)
    note("waiting")
    time.sleep(3600)
    return 1


def drain() -> int:
    """End with 0 on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: (note("term"), os._exit(0)))
    note("waiting")
    time.sleep(3600)
    return 1


def ignore() -> int:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: note("term"))
    note("waiting")
    while True:
        time.sleep(3600)


def die_at_work() -> int:
    """Be killed twice while a task runs, then end."""
    record = RunningRecord(DIRECTORY / "running", 2)
    lives = note("life")
    if lives > 2:
        return 0
    record.begin(0, [UID])
    if lives == 2:
        record.begin(1, ["abc123:8", "abc123:9"])
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def unfit() -> int:
    """Ends twice because its node cannot run tasks, with one that it has handed back, then for good."""
    with RunningRecord(DIRECTORY / "running", 1) as record:
        record.begin(0, [UID])
        return UNFIT if note("life") < 3 else 0


def fail_in_a_callback() -> int:
    """Raise in a callback of the event loop while a task runs; the second time nothing does."""
    if note("life") == 1:
        asyncio.run(_wait_with_a_bad_callback())
    return 0


def fail_and_stay() -> int:
    """Raise as `fail_in_a_callback` does; what would end the agent in order never returns."""
    if note("life") == 1:
        callbacks.BOUND = 0.1  # type: ignore[misc]
        asyncio.run(_wait_with_a_bad_callback(stay=True))
    return 0


async def _wait_with_a_bad_callback(*, stay: bool = False) -> None:
    with RunningRecord(DIRECTORY / "running", 1) as record, callbacks.fatal():
        record.begin(0, [UID])
        asyncio.get_running_loop().call_later(0.0, wire.decode, b"no message")
        try:
            await asyncio.Event().wait()
        finally:
            if stay:
                await asyncio.Event().wait()


BEHAVIOURS: dict[str, Callable[[], int]] = {
    each.__name__: each
    for each in (
        crash_once,
        refuse,
        leave_orphans,
        drain,
        ignore,
        die_at_work,
        unfit,
        fail_in_a_callback,
        fail_and_stay,
    )
}

if __name__ == "__main__":
    json_log.configure()
    sys.exit(Supervisor(BEHAVIOURS[sys.argv[2]], DIRECTORY, float(os.environ.get("STOP_WITHIN", "60"))).run())

"""One measurement of many sessions or nodes, as a program of its own: it prints its figures as JSON.

It uses public names alone, so that another checkout's interpreter can run it as well. `folder` of the task
files is given to it, because that checkout may not have them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from batchflow import Client
from batchflow.local.usage import operations

CLOUD, AGENT = "batchflow.local.embedded", "-m node_agent"
"""What is in the command lines of the local cloud, and of agents, their supervisors and children."""
SETTLED = 12.0
"""Seconds until what was started is idle: the first renewals and heartbeats have passed."""


def wake_ups(pid: int) -> int:
    """How often the threads of a process have given up the processor to wait, since they began."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                found += int(line.split()[1])
    return found


def cpu_seconds(pid: int) -> float:
    """The processor time of a process, and of those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def processes(words: str) -> list[int]:
    """The processes below this one in whose command line these words are."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if above == os.getpid() and words.encode() in command:
            found.append(pid)
    return found


async def waits(pids: Sequence[int], seconds: float) -> list[dict[str, float]]:
    """For each process, in a second: how often it waited, and how often it polled (where strace is there)."""
    before = [wake_ups(pid) for pid in pids]
    started = time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - started
    counts = [{"waits": (wake_ups(pid) - first) / took} for pid, first in zip(pids, before, strict=True)]
    if (strace := shutil.which("strace")) is not None:
        polled = await asyncio.gather(*(_polls(strace, pid, seconds) for pid in pids))
        for count, polls in zip(counts, polled, strict=True):
            if polls is not None:
                count["polls"] = polls / seconds
    return counts


async def _polls(strace: str, pid: int, seconds: float) -> int | None:
    """How often a process calls epoll_wait in so many seconds; None where it must not be traced."""
    options = ["-qq", "-f", "-c", "-U", "calls,name", "-e", "trace=epoll_wait,epoll_pwait", "-p", str(pid)]
    tracer = await asyncio.create_subprocess_exec(strace, *options, stderr=asyncio.subprocess.PIPE)
    await asyncio.sleep(seconds)
    if tracer.returncode is not None:
        return None
    tracer.send_signal(signal.SIGINT)
    _, told = await tracer.communicate()
    rows = [line.split() for line in told.decode().splitlines()]
    return sum(int(row[0]) for row in rows if len(row) == 2 and row[1].startswith("epoll"))


async def idle(options: argparse.Namespace) -> dict[str, Any]:
    """A client and an agent with no work to do: without a session, with one, and with many."""
    found: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.local(nodes=1))
        pool = await client.ensure_pool("bench", files=[options.folder])
        await pool.start()
        await pool.wait_ready(1)
        opened = 0
        for name, wanted in (("none", 0), ("one", 1), ("many", options.sessions)):
            for number in range(opened, wanted):
                await stack.enter_async_context(pool.session(f"s-{number}" if options.named else None))
            opened = wanted
            await asyncio.sleep(min(SETTLED, options.seconds))
            agents = [] if wanted else processes(AGENT)
            found[name], *others = await waits([os.getpid(), *agents], options.seconds)
            if others:  # an agent's supervisor wakes less often than the agent
                found["agent"] = max(others, key=lambda count: count["waits"])
    return found


async def rate(options: argparse.Namespace) -> dict[str, Any]:
    """No-ops through one session and through many, in alternation: a second, and what one of them costs."""
    found: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.local(nodes=2))
        pool = await client.ensure_pool("bench", files=[options.folder])
        sessions = [await stack.enter_async_context(pool.session()) for _ in range(options.sessions)]
        await pool.wait_ready(2)
        await _through_map(sessions, 10 * len(sessions))
        for _ in range(2):
            await _through_map(sessions[:1], options.tasks // 10)
        for _ in range(options.rounds):
            for name, chosen in (("one", sessions[:1]), ("many", sessions)):
                for quantity, value in (await _measured(client, chosen, options.tasks)).items():
                    found.setdefault(f"{name} {quantity}", []).append(value)
    return found


async def _measured(client: Client, sessions: Sequence[Any], tasks: int) -> dict[str, float]:
    """The rate of so many no-ops, and for each the processor time in microseconds and the credits."""
    before = _spent()
    counted = await operations(client.settings)
    took = await _through_map(sessions, tasks)
    spent = await operations(client.settings) - counted
    costs = {name: (seconds - before[name]) / tasks * 1e6 for name, seconds in _spent().items()}
    return {"rate": tasks / took, "credits": spent.credits / tasks, **costs}


def _spent() -> dict[str, float]:
    """The processor time of client, broker and agents until now.

    An agent's children are replaced now and then. What has ended is in the time of its parent.
    """
    parts = {"client": [os.getpid()], "broker": processes(CLOUD), "agents": processes(AGENT)}
    return {name: sum(_seconds(pids)) for name, pids in parts.items()}


def _seconds(pids: Iterable[int]) -> Iterator[float]:
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            yield cpu_seconds(pid)


async def _through_map(sessions: Sequence[Any], tasks: int) -> float:
    """Seconds until the last result of all sessions is there."""

    async def run(session: Any, count: int) -> None:
        async for result in session.map("noop.py", range(count)):
            result.unwrap()

    started = time.perf_counter()
    await asyncio.gather(*(run(session, tasks // len(sessions)) for session in sessions))
    return time.perf_counter() - started


async def nodes(options: argparse.Namespace) -> dict[str, Any]:
    """What a no-op costs with so many nodes, and how long a lone one takes, in milliseconds."""
    found: dict[str, list[float]] = {}
    async with Client.local(nodes=options.nodes) as client:
        pool = await client.ensure_pool("bench", files=[options.folder])
        async with pool.session() as session:
            await pool.wait_ready(options.nodes, timeout=300)
            for _ in range(2):
                await _through_map([session], options.tasks // 5)
            for _ in range(options.rounds):
                for quantity, value in (await _measured(client, [session], options.tasks)).items():
                    found.setdefault(quantity, []).append(value)
                trips = []
                for _ in range(100):
                    started = time.perf_counter()
                    await session.run("noop.py")
                    trips.append((time.perf_counter() - started) * 1e3)
                found.setdefault("trip", []).append(sorted(trips)[50])
    return found


MEASURES = {"idle": idle, "rate": rate, "nodes": nodes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(MEASURES[options.measure](options))))


if __name__ == "__main__":
    main()

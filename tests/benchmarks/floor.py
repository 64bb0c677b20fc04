"""What the SDK alone takes for what batchflow does with it: the floor of what is measured."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchflow import Client
from batchflow.azure.servicebus_admin import ServiceBusAdmin
from batchflow.ports.broker import QueueSpec
from tests.benchmarks.harness import Figure, process_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.cases import Effort

PROGRAM: Final = Path(__file__).parent / "sdk_echo.py"
WORKERS: Final = 2
FIRST: Final = 10
"""One of so many messages only warms."""
LARGE: Final = 200_000
"""Bytes of a message that two values of 100 KB share."""


def sdk(effort: Effort) -> Iterator[Figure]:
    """Two workers, and a client on uvloop: one message after another as in the contest, then large ones all
    at once; and how long the workers take to come up."""
    echoed = asyncio.run(_echoes("client", effort.round_trips))
    taken, started = echoed.taken, [echoed.started]
    values = [seconds * 1e3 for seconds in taken[len(taken) // FIRST :]]
    yield Figure("the SDK alone: a message there and back, no task", values, "ms")
    yield Figure("  CPU of these two, in client, cloud and workers", [echoed.cpu / len(taken) * 1e3], "ms")
    messages = max(1, effort.large // 2)
    rates = []
    for _ in range(effort.runs):
        echoed = asyncio.run(_echoes("flood", messages, LARGE))
        started.append(echoed.started)
        rates.append(2 * messages / echoed.taken[0])
    yield Figure(f"the SDK alone: {2 * messages} values of 100 KB, two a message", rates, "values/s")
    yield Figure("the SDK alone: start of both workers until their links are open", started, "s")


@dataclass(frozen=True)
class _Echoed:
    """What one client measured, in seconds."""

    started: float
    """Until the workers had their links."""
    taken: list[float]
    cpu: float
    """Of all processes, but for their start."""


async def _echoes(*how: object) -> _Echoed:
    async with Client.local(nodes=1) as client:
        settings = client.settings.servicebus
        assert settings.connection_string is not None
        async with ServiceBusAdmin(settings.connection_string, ca_file=settings.ca_file) as admin:
            await admin.create_queue(QueueSpec("there"))
            await admin.create_queue(QueueSpec("back", sessions=True))
        environment = {**os.environ, "SDK_ECHO_CONNECTION": settings.connection_string}
        return await asyncio.to_thread(_measure, environment, [str(word) for word in how])


def _measure(environment: dict[str, str], how: list[str]) -> _Echoed:
    begun = time.perf_counter()
    workers = [_start(environment, "worker") for _ in range(WORKERS)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()  # ready
        started, used = time.perf_counter() - begun, _cpu()
        with _start(environment, *how) as client:
            printed, _ = client.communicate()
        if client.returncode != 0:
            raise RuntimeError(f"{PROGRAM.name} ended with exit code {client.returncode}")
        told = json.loads(printed)
        return _Echoed(started, told["taken"], told["cpu"] + _cpu() - used)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _cpu() -> float:
    """Seconds of all processes that live below this one."""
    below = [process.pid for process in process_tree(os.getpid()) if process.pid != os.getpid()]
    texts = [Path(f"/proc/{pid}/stat").read_text(encoding="utf-8") for pid in below]
    ticks = sum(sum(map(int, text.rpartition(")")[2].split()[11:13])) for text in texts)
    return ticks / os.sysconf("SC_CLK_TCK")

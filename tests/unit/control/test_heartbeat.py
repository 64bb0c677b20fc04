"""What a heartbeat says, field by field, against what is so."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from batchflow.protocol.documents import Heartbeat
from batchflow.support.version import own_version
from node_agent.control import heartbeat
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.links.broker_clock import BrokerClock
from node_agent.supervision import crash_record
from tests.support.agent_world import World, succeed, task


async def beats(world: World, state: str) -> Heartbeat:
    """The first heartbeat in that state that tells of a running task."""
    found: list[Heartbeat] = []

    async def told() -> bool:
        found[:] = [beat for beat in await world.heartbeats() if beat.state == state and beat.running]
        return bool(found)

    await world.until(told)
    return found[0]


async def test_who_where_and_what_runs_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and node, process, slots, the interval; the running task with its session and its start; then the
    same while draining, and the end."""
    monkeypatch.setenv("HOSTNAME", "host-7")
    monkeypatch.setenv("AZ_BATCH_NODE_ID", "tvm-7")
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    before = time.time()
    async with world.agent(heartbeat_interval=0.3, slots=3) as agent:
        await world.submit(task(0, "held"))
        beat = await beats(world, "ready")
        agent.drain(60.0)
        draining = await beats(world, "draining")
        gate.set()
        await world.results(1)
    (last,) = await world.heartbeats()
    for each in (beat, draining, last):
        assert (each.host, each.node, each.pid, each.boot_id) == ("host-7", "tvm-7", os.getpid(), "boot")
        assert (each.slots, each.interval, each.trouble) == (3, 0.3, None)
        assert before <= each.started_at <= each.beat_at <= time.time()
    (running,) = beat.running
    assert (running.uid, running.task_id, running.client, running.job) == ("abc123:0", "0", "client", "job")
    assert running.command == "held"
    assert before <= running.since <= beat.beat_at
    assert draining.running[0].uid == running.uid
    assert (last.state, last.running, last.completed, last.failed) == ("exiting", (), 1, 0)


async def test_how_the_machine_is() -> None:
    """Load, memory and disk are what the kernel says at that time."""
    one, _, _ = os.getloadavg()
    load = heartbeat.load()
    assert load is not None
    assert abs(load - one) < 5
    memory, disk = heartbeat.memory_available(), heartbeat.disk_free()
    assert memory is not None
    assert disk is not None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory <= pages
    space = os.statvfs(".")
    assert abs(disk - space.f_bavail * space.f_frsize) < 2**30


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Python, batchflow, and of Java where there is one, by what the installation says of itself."""
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    versions = heartbeat.versions()
    assert versions["python"] == platform.python_version()
    assert versions["batchflow"] == own_version()
    assert versions["java"] == "unknown"
    (tmp_path / "jdk" / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="21.0.4"\n')
    assert heartbeat.versions()["java"] == "21.0.4"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "java" not in heartbeat.versions()


def test_a_boot_is_told_from_others() -> None:
    """By the kernel's own id, the same for every process."""
    assert (
        crash_record.boot_id()
        == crash_record.boot_id()
        == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    )


@pytest.mark.parametrize("skew", [-20.0, 0.0, 20.0])
def test_clock_skew_is_what_the_freshest_message_tells(skew: float) -> None:
    """A message that waited says little, a fresh one much; an old one after it takes nothing back."""
    now = 1000.0
    clock = BrokerClock(lambda: now)
    clock.seen(now - skew - 300.0)
    assert clock.ahead == skew + 300.0
    clock.seen(now - skew - 0.01)
    assert clock.ahead == pytest.approx(skew + 0.01)
    clock.seen(now - skew - 60.0)
    assert clock.ahead == pytest.approx(skew + 0.01)
    assert clock.age(now - skew - 5.0) >= min(5.0, 5.0 + skew)


class WrittenBeats:
    """A container that notes when heartbeats are written."""

    def __init__(self) -> None:
        self.written = 0
        self.some = asyncio.Event()

    async def put(self, name: str, data: bytes) -> None:
        self.written += 1
        self.some.set()

    async def next(self) -> None:
        self.some.clear()
        await asyncio.wait_for(self.some.wait(), 5.0)


async def test_a_change_is_written_before_the_next_turn_soon_and_late() -> None:
    """Just after a heartbeat, and when the least time between two has long passed."""
    beats, beat = WrittenBeats(), SimpleNamespace(encode=lambda: b"")

    async def ticked() -> None:
        pass

    out: Any = beats
    writer = heartbeat.HeartbeatWriter(out, "agent", 600.0, lambda: cast(Any, beat), ticked)
    running = asyncio.create_task(writer.run())
    await beats.next()
    for pause in (0.0, 0.3):
        await asyncio.sleep(pause)
        writer.changed()
        await beats.next()
    assert beats.written == 3
    assert not running.done()
    running.cancel()

"""A run of real processes on the local cloud under fire, and its history.

Clients submit and read, as processes; agents run, as processes of the cloud's nodes. By a seed's chance
processes are killed with signal 9 or stand still for longer than a lock lasts, connections to the Service Bus
are cut or pass nothing on for a while, and the disk of the nodes is full for a while. A killed client is
followed by another one of the same name, which goes on with what was not submitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchflow import Client, Pool
from batchflow.config.loader import load_settings
from tests.chaos import fleet, graphs
from tests.chaos.client import JOB, POOL
from tests.chaos.proxy import Relay
from tests.model import history
from tests.model.checker import Checker

TASKS = Path(__file__).parent / "tasks"
_ROOT = Path(__file__).parents[2]
_CLOSING = 25.0
"""Seconds that a client has to close in."""
_QUIET = 0.2
"""Seconds between two looks at the queues in the end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run."""

    tasks: int
    faults: int
    seed: int
    clients: int = 2
    graphs: int = 1
    """How many of the clients, the last ones, submit graphs of tasks that wait for others."""
    nodes: int = 2
    slots: int = 2
    lock: float = 5.0
    """Seconds."""
    batch: int = 25
    seconds: float = 0.01
    """Of work for each task."""
    apart: float = 0.5
    """Seconds between two faults, on average."""
    kill_clients: bool = True
    disk: int = 0
    """MiB of the nodes' disk, a tmpfs that is filled now and then; it needs root. 0: the host's disk."""
    patience: float = 60.0
    """Seconds without an outcome or a fault after which the run is given up."""


@dataclass(slots=True)
class Log:
    """The history as it grows, its verdict, and what the end of the run depends on."""

    checker: Checker
    records: list[history.Record] = field(default_factory=list)
    owed: set[str] = field(default_factory=set)
    """Accepted and not shown."""
    shown: set[str] = field(default_factory=set)
    statuses: dict[str, int] = field(default_factory=dict)
    moved_at: float = field(default_factory=time.monotonic)

    def add(self, record: history.Record) -> None:
        self.records.append(record)
        self.checker.add(record)
        match record:
            case history.Accepted(_, task) if task not in self.shown:
                self.owed.add(task)
            case history.Shown():
                self.shown.add(record.task)
                self.owed.discard(record.task)
                self.statuses[record.status] = self.statuses.get(record.status, 0) + 1
                self.moved_at = time.monotonic()
            case history.Fault():
                self.moved_at = time.monotonic()


class Disk:
    """The nodes' disk: a file system of its own, of so many MiB."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._filler = path / "filler"
        options = f"size={size}m,mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], check=True)

    def fill(self) -> bool:
        """Take all that is left; False when it is full already."""
        if self._filler.exists():
            return False
        with self._filler.open("wb") as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        return True

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self._path)], check=True)


@dataclass(slots=True, eq=False)
class Cloud:
    """A local cloud as a process, with a relay before its Service Bus."""

    process: Process
    relay: Relay
    disk: Disk | None
    config: Path
    client: Client
    pool: Pool


@asynccontextmanager
async def cloud(plan: Plan, directory: Path) -> AsyncIterator[Cloud]:
    """A cloud with the pool of the run, whose agents live."""
    config, home = directory / "cloud.toml", directory / "cloud"
    home.mkdir(mode=0o700)
    command = [sys.executable, "-m", "batchflow.local", "--config", str(config), "--directory", str(home)]
    command += ["--nodes", str(plan.nodes), "--slots", str(plan.slots)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=_ROOT)
    assert process.stdout is not None
    try:
        while not (line := await process.stdout.readline()).startswith(b"ready"):
            if not line:
                raise RuntimeError(f"the local cloud ended with status {await process.wait()}")
        relay, relayed = await _relayed(config, plan)
        disk = Disk(home / "nodes", plan.disk) if plan.disk else None
        try:
            async with Client.from_config(relayed) as client:
                pool = await client.ensure_pool(POOL, files=[TASKS])
                await pool.start()
                await pool.wait_ready(timeout=30)
                yield Cloud(process, relay, disk, relayed, client, pool)
        finally:
            if disk is not None:
                disk.unmount()
            await relay.aclose()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def _relayed(config: Path, plan: Plan) -> tuple[Relay, Path]:
    """A relay, and a configuration that leads through it."""
    settings = load_settings(config, environment={})
    connection = settings.servicebus.connection_string or ""
    found = re.search(r"127\.0\.0\.1:(\d+)", connection)
    assert found is not None, "the local Service Bus listens on a port of 127.0.0.1"
    relay = Relay("127.0.0.1", int(found[1]))
    port = await relay.start()
    through = replace(
        settings,
        servicebus=replace(
            settings.servicebus, connection_string=connection.replace(found[0], f"127.0.0.1:{port}")
        ),
        pool=replace(settings.pool, lock_duration=plan.lock),
    )
    path = config.with_name("relayed.toml")
    path.write_text(through.to_toml())
    return relay, path


class Program:
    """A client's lives, one after another."""

    def __init__(
        self,
        plan: Plan,
        config: Path,
        log: Log,
        name: str,
        tasks: int,
        journal: Path | None,
        notes: Path | None,
    ) -> None:
        """`notes`: the file into which the tasks of graphs write; None: the client submits none."""
        self._notes = notes
        self._plan = plan
        self._journal = journal
        self._config = config
        self._log = log
        self._name = name
        self._tasks = tasks
        self._next = 0
        self._life = 0
        self._ending = False
        self._accepted = 0
        self.process: Process | None = None

    @property
    def submitted_all(self) -> bool:
        """And the broker has what was submitted in this life."""
        return self._next == self._tasks and not self._open

    _open = 0
    """Submitted in this life, and not known as accepted."""

    async def run(self) -> None:
        """Until it is told to end."""
        while not self._ending:
            self._life += 1
            self._open = 0
            await self._live()
            self._log.add(history.Gone(time.monotonic(), f"{self._name}.{self._life}"))

    async def _live(self) -> None:
        plan = self._plan
        numbers = (self._life, self._next, self._tasks, plan.batch, plan.seconds)
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.client", str(self._config), self._name),
            *map(str, numbers),
            *("" if path is None else str(path) for path in (self._journal, self._notes)),
            stdin=PIPE,
            stdout=PIPE,
            cwd=_ROOT,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                self._heard(line)
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        if code not in (0, -signal.SIGKILL, os.EX_TEMPFAIL):
            raise RuntimeError(f"client {self._name} ended with status {code}")

    def _heard(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # it was killed in the middle of a word
        for record in history.read([line.decode()]):
            match record:
                case history.Submitted():
                    self._next += 1
                    self._open += 1
                case history.Accepted():
                    self._open -= 1
            self._log.add(record)

    @property
    def pid(self) -> int | None:
        """None while no process of it lives."""
        if self.process is None or self.process.returncode is not None:
            return None
        return self.process.pid

    def kill(self) -> bool:
        """False when none lives that could be killed."""
        if self.process is None or self.process.returncode is not None:
            return False
        self.process.kill()
        return True

    async def end(self) -> bool:
        """Close in order; one that does not end tells where it stands, and is killed: then False."""
        self._ending = True
        process = self.process
        if process is None:
            return True
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_CLOSING):
                await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(1.0)
            process.kill()
            return False
        return True


class Fire:
    """Makes things fail, one at a time."""

    def __init__(self, plan: Plan, cloud: Cloud, programs: list[Program], log: Log) -> None:
        self._plan = plan
        self._cloud = cloud
        self._programs = programs
        self._log = log
        self._chance = random.Random(plan.seed)
        self._stalled: set[asyncio.Task[None]] = set()
        self.left = plan.faults

    async def run(self) -> None:
        """Until there were as many as wished."""
        kinds: list[tuple[str, Callable[[], bool]]] = [
            ("agent killed", lambda: self._kill("agent")),
            ("agent killed", lambda: self._kill("agent")),
            ("child killed", lambda: self._kill("child")),
            ("supervisor killed", lambda: self._kill("supervisor")),
            ("agent stalled", lambda: self._stall("agent")),
            ("child stalled", lambda: self._stall("child")),
            ("supervisor stalled", lambda: self._stall("supervisor")),
            ("connection stalled", lambda: self._cloud.relay.stall(1, self._chance, self._stop) > 0),
            ("all connections stalled", lambda: self._cloud.relay.stall(1000, self._chance, self._stop) > 0),
            ("connection cut", lambda: self._cloud.relay.cut(1, self._chance) > 0),
            ("all connections cut", lambda: self._cloud.relay.cut(1000, self._chance) > 0),
        ]
        if self._plan.kill_clients:
            kinds.append(("client killed", lambda: self._chance.choice(self._programs).kill()))
            kinds.append(("client stalled", self._stall_client))
        if (disk := self._cloud.disk) is not None:
            kinds.append(("disk full", lambda: self._fill(disk)))
        while self.left:
            await asyncio.sleep(self._chance.uniform(0.2, 1.8) * self._plan.apart)
            what, make = self._chance.choice(kinds)
            if make():
                self.left -= 1
                self._log.add(history.Fault(time.monotonic(), what))

    def wake_all(self) -> None:
        """Let those that stand still go on."""
        for waking in self._stalled:
            waking.cancel()

    def _kill(self, kind: fleet.Kind) -> bool:
        return self._signal(kind, signal.SIGKILL) is not None

    def _signal(self, kind: fleet.Kind, number: signal.Signals) -> int | None:
        pids = sorted(found.pid for found in fleet.find(self._cloud.process.pid) if found.kind == kind)
        if not pids:
            return None
        pid = self._chance.choice(pids)
        return pid if _send(pid, number) else None

    @property
    def _stop(self) -> float:
        """Seconds for which something stands still: longer than a lock lasts."""
        return self._plan.lock * 1.5

    def _stall(self, kind: fleet.Kind) -> bool:
        pid = self._signal(kind, signal.SIGSTOP)
        if pid is not None:
            self._undo_later(lambda: _send(pid, signal.SIGCONT))
        return pid is not None

    def _stall_client(self) -> bool:
        pid = self._chance.choice(self._programs).pid
        if pid is None or not _send(pid, signal.SIGSTOP):
            return False
        self._undo_later(lambda: _send(pid, signal.SIGCONT))
        return True

    def _fill(self, disk: Disk) -> bool:
        if not disk.fill():
            return False
        self._undo_later(disk.free)
        return True

    def _undo_later(self, undo: Callable[[], object]) -> None:
        waking = asyncio.create_task(self._undo(undo))
        self._stalled.add(waking)
        waking.add_done_callback(self._stalled.discard)

    async def _undo(self, undo: Callable[[], object]) -> None:
        try:
            await asyncio.sleep(self._stop)
        finally:
            undo()


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


async def run(plan: Plan, directory: Path) -> Log:
    """One run, judged. The history is in the log, whatever its verdict."""
    log = Log(Checker(patience=plan.patience))
    async with cloud(plan, directory) as here:
        share = -(-plan.tasks // plan.clients)
        programs = [
            Program(
                plan,
                here.config,
                log,
                f"c{n}",
                min(share, plan.tasks - n * share),
                None if n % 2 else directory / f"c{n}.journal",
                directory / f"c{n}.notes" if n >= plan.clients - plan.graphs else None,
            )
            for n in range(plan.clients)
        ]
        fire = Fire(plan, here, programs, log)
        async with asyncio.TaskGroup() as group:
            for program in programs:
                group.create_task(program.run())
            burning = group.create_task(fire.run())
            try:
                halted = not await _settled(plan, here, programs, log, fire)
            finally:
                burning.cancel()
                fire.wake_all()
            ended = await asyncio.gather(*(program.end() for program in programs))
            halted = halted or not all(ended)
        await _note_queues(here, log)
    for notes in sorted(directory.glob("*.notes")):
        with notes.open() as lines:
            for note in graphs.noted(lines):
                log.add(note)
    log.add(history.Ended(time.monotonic(), halted))
    return log


async def _settled(plan: Plan, here: Cloud, programs: Iterable[Program], log: Log, fire: Fire) -> bool:
    """Wait until everything is done and the queues are empty; False when that takes too long."""
    while time.monotonic() - log.moved_at < plan.patience:
        await asyncio.sleep(_QUIET)
        if fire.left or log.owed or not all(program.submitted_all for program in programs):
            continue
        if not any(sum(record_counts) for record_counts in await _queues(here)):
            return True
    return False


async def _queues(here: Cloud) -> list[tuple[int, int, int]]:
    manifest, admin = here.pool.runtime.manifest, here.client.connections.admin
    figures = [
        await admin.figures(queue.entity) for queue in (*manifest.task_queues, *manifest.results_queues)
    ]
    return [(each.active, each.scheduled, each.dead) for each in figures]


async def _note_queues(here: Cloud, log: Log) -> None:
    for name, counts in zip(("tasks", "results"), await _queues(here), strict=True):
        log.add(history.Queue(time.monotonic(), name, *counts))


async def recovery(plan: Plan, directory: Path, times: int) -> list[float]:
    """Seconds from the killing of an agent to the outcome of the task that it ran, so many times."""
    taken = []
    async with cloud(plan, directory) as here, here.pool.session("recovery", job=JOB) as session:
        for number in range(times):
            note = directory / f"note-{number}"
            task = await session.submit("work.py", args=[f"r:{number}", 1.0, str(note), ""])
            agent = fleet.agent_of(await _noted(note), here.process.pid)
            assert agent is not None
            killed_at = time.monotonic()
            os.kill(agent, signal.SIGKILL)
            assert await task == f"r:{number}"
            taken.append(time.monotonic() - killed_at - 1.0)
    return taken


async def _noted(note: Path) -> int:
    """The process that a task has noted."""
    while True:
        if note.exists() and (text := note.read_text()):
            return int(text)
        await asyncio.sleep(0.02)


def save(log: Log, path: Path) -> None:
    """The history as a file."""
    with path.open("w") as file:
        history.write(log.records, file)


def summary(log: Log) -> str:
    """What happened, in a few lines."""
    lines = [log.checker.summary(), json.dumps(dict(log.checker.faults)), json.dumps(log.statuses)]
    return "\n".join(lines + log.checker.told)

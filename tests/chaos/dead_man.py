"""The dead-man's switch of elastic pools: every client and agent is killed, and no node may stay.

In each round a client, a process, submits tasks to an elastic pool without nodes, and is killed with signal 9
at a moment of a seed's choice: before its tasks are sent, while nodes boot, while agents work, or later. In
some rounds agents and their supervisors are killed as well. Nobody lives then who knows of the pool. It must
have no nodes within the idle time and two evaluations after the last task has ended. A session of the same
name, opened afterwards, must have every task that the broker had.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from batchflow import Client, Pool, PoolSpec
from batchflow.config.loader import load_settings
from tests.chaos import fleet
from tests.support.cloud import cloud_process

PROGRAM = Path(__file__).with_name("elastic_client.py")
TASKS = Path(__file__).parents[1] / "e2e" / "tasks"
POOL = "dead-man"


@dataclass(frozen=True, slots=True)
class Times:
    """The times of the cloud and the pool, in seconds: Azure's are minutes."""

    boot: float = 1.0
    idle: float = 2.0
    interval: float = 3.0
    task: float = 0.05
    lock: float = 5.0
    slack: float = 10.0
    """For what a busy machine needs longer for."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round has come to."""

    number: int
    tasks: int
    killed_after: float
    """Seconds after the client had sent its tasks; negative: while it opened or sent."""
    agents_killed: int
    nodes: int
    """That were there when the client was killed."""
    empty_after: float | None
    """Seconds from the last death to a pool without nodes; None: some stayed."""
    lost: int

    @property
    def holds(self) -> bool:
        return self.empty_after is not None and not self.lost

    def __str__(self) -> str:
        emptied = "NODES STAY" if self.empty_after is None else f"no nodes after {self.empty_after:.1f} s"
        return (
            f"round {self.number}: {self.tasks} tasks, client killed at {self.killed_after:+.1f} s, "
            f"{self.nodes} nodes, {self.agents_killed} agents killed: {emptied}, {self.lost} tasks lost"
        )


@dataclass(frozen=True, slots=True)
class _Scene:
    times: Times
    config: Path
    cloud: int
    """The process of the local cloud."""
    client: Client
    pool: Pool
    """Of a client that has no session: it keeps nothing alive."""

    async def nodes(self) -> int:
        return len(await self.pool.runtime.connections.compute.nodes(self.pool.id))


async def dead_man(
    rounds: int, seed: int, directory: Path, *, tell: Callable[[Round], None] = lambda _: None
) -> list[Round]:
    """Play so many rounds, and tell each when it is over. In every third one the agents live."""
    chance, played = random.Random(seed), list[Round]()
    async with _scene(Times(), directory) as scene:
        for number in range(rounds):
            if number:
                await _until_empty(scene)  # what was lost was looked for
            played.append(await _play(scene, number, chance))
            tell(played[-1])
    return played


@asynccontextmanager
async def _scene(times: Times, directory: Path) -> AsyncIterator[_Scene]:
    file = directory / "cloud.toml"
    options = ("--nodes", "0", "--boot-time", str(times.boot), "--autoscale-interval", str(times.interval))
    with cloud_process(file, *options) as process:
        settings = load_settings(file, environment={})
        agent = replace(settings.agent, idle_exit=times.idle, heartbeat_interval=0.5)
        pool = replace(settings.pool, lock_duration=times.lock)
        file.write_text(replace(settings, agent=agent, pool=pool).to_toml())
        async with Client.from_config(file) as client:
            made = await client.create_pool(PoolSpec(POOL, max_nodes=3, files=(str(TASKS),)))
            yield _Scene(times, file, process.pid, client, made)


async def _play(scene: _Scene, number: int, chance: random.Random) -> Round:
    times, tasks, name = scene.times, chance.randint(1, 12), f"round-{number}"
    moment = chance.uniform(-0.5, times.boot + 2.0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(scene.config), POOL, str(tasks), str(times.task), name),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    told = b""
    if moment >= 0:
        told = await process.stdout.readline()
        await asyncio.sleep(moment)
    else:
        await asyncio.sleep(chance.uniform(0.1, 1.0))
    nodes = await scene.nodes()
    process.kill()
    told += await process.stdout.read()
    await process.wait()
    killed = 0
    if number % 3 < 2:
        await _until_agents(scene)
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        killed = _kill_agents(scene.cloud, chance)
    empty_after = await _until_empty(scene)
    lost = await _lost(scene, name, tasks if told == b"flushed\n" else 0)
    return Round(number, tasks, moment, killed, nodes, empty_after, lost)


async def _until_agents(scene: _Scene) -> None:
    """Wait for agents, which do not come if the client had asked for none."""
    with suppress(TimeoutError):
        async with asyncio.timeout(scene.times.boot + 3.0):
            while not any(each.kind == "agent" for each in fleet.find(scene.cloud)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def _kill_agents(cloud: int, chance: random.Random) -> int:
    """Kill all agents, or their supervisors too; return how many processes were killed."""
    kinds = chance.choice([("agent",), ("supervisor",), ("supervisor", "agent")])
    found = [each.pid for each in fleet.find(cloud) if each.kind in kinds]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


async def _until_empty(scene: _Scene) -> float | None:
    times, began = scene.times, time.monotonic()
    steady = 0.0
    limit = times.boot + times.idle + 2 * times.interval + times.lock + times.slack
    while time.monotonic() - began < limit:
        if await scene.nodes():
            steady = 0.0
        elif not steady:
            steady = time.monotonic()
        elif time.monotonic() - steady > times.interval:  # and none comes again
            return steady - began
        await asyncio.sleep(0.1)
    return None


async def _lost(scene: _Scene, name: str, tasks: int) -> int:
    """Return how many of the tasks that were sent have no outcome in the session of this name."""
    if not tasks:
        return 0
    found: set[str] = set()
    async with scene.pool.session(name) as session:
        with suppress(TimeoutError):
            async with asyncio.timeout(scene.times.lock + scene.times.boot + scene.times.slack):
                async for result in session.results(follow=True):
                    found.add(result.task_id)
                    if len(found) >= tasks:
                        break
    return tasks - len(found)


def main() -> int:
    """`python -m tests.chaos.dead_man`: ends with status 1 when a node stayed or a task was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.dead_man", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="default: any")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    sys.stdout.write(f"seed {seed}\n")
    with tempfile.TemporaryDirectory() as directory:
        rounds = asyncio.run(dead_man(options.rounds, seed, Path(directory), tell=_say))
    return not all(each.holds for each in rounds)


def _say(played: Round) -> None:
    sys.stdout.write(f"{played}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

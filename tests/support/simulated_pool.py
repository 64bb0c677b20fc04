"""A pool of made-up nodes for the live page: no cloud, no agent, any number of nodes and of ends a second."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from batchflow.dashboard.handlers import PagePools
from batchflow.errors import PoolNotFound
from batchflow.pools.open_sessions import OpenSession
from batchflow.ports.compute import NodeInfo
from batchflow.protocol.activity import RETENTION, ActivityBatch, SlotRun
from batchflow.protocol.documents import Heartbeat, Running, Usage

COMMANDS = ("simulate.py", "render.py", "score.py:evaluate", "pi.jar", "merge.py")
ERRORS = (
    "ValueError: row 1841 of 'prices-2026-07.parquet' has no date",
    "TaskTimeout: it ran for longer than 30 s",
    "MemoryError: the task used more than 2,147,483,648 bytes",
)


class SimulatedPool:
    """A source of the page. Each look moves it on to the clock's time."""

    def __init__(
        self,
        nodes: int = 12,
        slots: int = 4,
        rate: float = 20.0,
        *,
        history: float = RETENTION,
        clock: Callable[[], float] = time.time,
        seed: int = 1,
    ) -> None:
        self.pool_id = "simulated"
        self.slots, self.rate, self.clock = slots, rate, clock
        self.chance = random.Random(seed)
        self.names = [f"node-{number:04}" for number in range(nodes)]
        self.done = dict.fromkeys(self.names, 0)
        self.failed = dict.fromkeys(self.names, 0)
        self.free = {name: [0.0] * slots for name in self.names}
        """When each slot ended its last task."""
        self.number = 0
        self.batches = 0
        self.at = clock() - history
        self.extra: list[ActivityBatch] = []
        self.sessions_here: list[OpenSession] = []
        self.broken: set[str] = {name for name in self.names if self.chance.random() < 0.01}

    async def activity(self) -> list[ActivityBatch]:
        """Return what ended since the last look."""
        now, found = self.clock(), []
        while self.at < now:
            begin, self.at = self.at, min(self.at + 10.0, now)
            found += self._between(begin)
        extra, self.extra = self.extra, []
        return found + extra

    def _between(self, begin: float) -> list[ActivityBatch]:
        by_node: dict[str, list[SlotRun]] = {}
        ends = sorted(
            self.chance.uniform(begin, self.at) for _ in range(round((self.at - begin) * self.rate))
        )
        for end in ends:
            self.number += 1
            number = self.chance.randrange(len(COMMANDS))
            took = self.chance.lognormvariate(-0.3 + 0.5 * number, 0.5)
            node = self.chance.choice(self.names)
            free = self.free[node]
            slot = min(range(self.slots), key=free.__getitem__)
            took = max(0.05, min(took, end - free[slot]))
            free[slot] = max(free[slot], end)
            error = self.chance.choice(ERRORS) if self.chance.random() < 0.02 else ""
            status = "failed" if error else "cancelled" if self.chance.random() < 0.005 else "succeeded"
            label = f"{number}-{self.number}"
            times = (end - took - 0.4, end - took, end)
            run = SlotRun(
                f"sim:{self.number}", label, COMMANDS[number], "nightly", "alice", *times, status, error
            )
            by_node.setdefault(node, []).append(run)
            self.done[node] += 1
            self.failed[node] += bool(error)
        found = []
        for node, runs in by_node.items():
            self.batches += 1
            failed = sum(run.status == "failed" for run in runs)
            cancelled = sum(run.status == "cancelled" for run in runs)
            found.append(
                ActivityBatch(node, node, node, self.batches, self.at, len(runs), failed, cancelled, runs)
            )
        return found

    async def beats(self) -> list[Heartbeat]:
        """Return a heartbeat of each node."""
        now = self.clock()
        return [self._beat(name, now) for name in self.names]

    def _beat(self, name: str, now: float) -> Heartbeat:
        busy = 0 if name in self.broken else self.chance.choice([self.slots, self.slots, self.slots - 1, 0])
        running = tuple(
            Running(
                f"run:{name}:{slot}", f"{slot}-{name[-4:]}", "alice", "nightly", COMMANDS[slot % 5], now - 1.7
            )
            for slot in range(busy)
        )
        dedicated = int(name[-4:]) % 4 != 3
        beat = Heartbeat(name, name, name, "boot", 1, "ready", self.slots, now - 4000, now, 5.0, running)
        trouble = "the results queue cannot be reached: timed out" if name in self.broken else None
        return replace(
            beat,
            completed=self.done[name],
            failed=self.failed[name],
            load=0.9 * busy,
            memory_available=6_200_000_000,
            disk_free=31_000_000_000,
            usage=Usage(dedicated=dedicated, seconds=4000.0),
            trouble=trouble,
        )

    async def nodes(self) -> list[NodeInfo]:
        """Return the nodes, one of which still starts."""
        infos = [NodeInfo(name, "running", int(name[-4:]) % 4 != 3) for name in self.names]
        return [*infos, NodeInfo("tvm-starting", "starting", True)]

    async def queues(self) -> list[dict[str, Any]]:
        """Return two queues."""
        tasks = {
            "name": "bf-simulated-1a2b3c4d-tasks",
            "kind": "tasks",
            "active": 214,
            "scheduled": 3,
            "dead": 1,
        }
        return [
            tasks,
            {**tasks, "name": "bf-simulated-1a2b3c4d-results", "kind": "results", "active": 2, "dead": 0},
        ]

    async def dead_letters(self) -> list[dict[str, Any]]:
        """Return one dead letter."""
        reason = "no agent got to the end of it in 1000 deliveries"
        tasks = [["sim:1", "pi-77", "pi.jar", "nightly/alice"]]
        row = {"queue": "bf-simulated-1a2b3c4d-tasks", "number": 9, "at": self.clock() - 400, "count": 1}
        return [{**row, "reason": reason, "tasks": tasks}]

    async def sessions(self) -> list[dict[str, Any]]:
        """Return two sessions of other programs."""
        counts = {"queued": 214, "running": 31, "succeeded": self.number, "failed": 12, "waiting": 40}
        alice = {"job": "nightly", "name": "alice", "here": False, "holder": "build-7, process 4121"}
        return [
            {**alice, "counts": counts},
            {**alice, "name": "review", "job": "default", "counts": {"succeeded": 18}},
        ]

    async def jobs(self) -> list[dict[str, Any]]:
        """Return two jobs."""
        at = self.clock()
        return [
            {"name": "default", "state": "open", "created": at},
            {"name": "nightly", "state": "open", "created": at},
        ]

    async def cost(self) -> dict[str, Any]:
        """Return what it has cost."""
        known = {"short": "8.12 EUR", "node_hours": 53.3, "dedicated_hours": 40.1, "spot_hours": 13.2}
        known |= {
            "idle_share": 0.21,
            "amount": 8.12,
            "currency": "EUR",
            "tasks": self.number,
            "per_task": 0.0004,
        }
        return known | {"remaining": 285, "to_finish": 0.31, "budget": "20.00 EUR", "spent": 8.12}

    async def explain(self) -> dict[str, Any]:
        """Return no reason."""
        return {"summary": "tasks run", "causes": []}

    def own_sessions(self) -> list[OpenSession]:
        """Return what a test put here."""
        return self.sessions_here


class SimulatedPools(PagePools):
    """One simulated pool."""

    def __init__(self, pool: SimulatedPool) -> None:
        self.pool = pool

    async def names(self) -> list[str]:
        return [self.pool.pool_id]

    async def source(self, pool_id: str) -> SimulatedPool:
        if pool_id != self.pool.pool_id:
            raise PoolNotFound(f"there is no pool {pool_id!r}")
        return self.pool

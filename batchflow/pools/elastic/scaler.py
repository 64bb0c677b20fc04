"""Brings an elastic pool to the size that its work needs, as far as one client can.

A client decides by `scaling.policy` and writes its wish. If it may act on Batch, it also carries out the
greatest of all clients' wishes (`acting`). Azure owns the size, the clients own the number of wanted agents,
and agents own their leaving.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import anyio

from batchflow.errors import PoolError
from batchflow.pools.agent_launch import idle_exit
from batchflow.pools.elastic.acting import Standing, WishExecutor
from batchflow.pools.elastic.keepers import keeper_lives
from batchflow.pools.elastic.observing import AgentsView, PoolObserver
from batchflow.pools.elastic.wish_store import WishStore
from batchflow.pools.scaling.formula import FormulaWish, is_ours, scaling_formula
from batchflow.pools.scaling.policy import decide
from batchflow.pools.scaling.values import Decision, ScalingMemory
from batchflow.pools.scaling.wishes import MergedWish, Wish, merge
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from batchflow.pools.elastic.observing import BatchView
    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.documents import ScalingLimits

_FEWEST_SECONDS: Final = 0.5
"""Seconds for which what one session of the client has found serves its other sessions."""


class PoolScaler:
    """One client's part in the size of one elastic pool."""

    def __init__(
        self, runtime: PoolRuntime, start_agents: Callable[[int], Coroutine[Any, Any, None]]
    ) -> None:
        """`start_agents`: adds agent tasks until there are so many, within the pool's limits."""
        self._runtime = runtime
        self._observer = PoolObserver(runtime)
        self._executor = WishExecutor(runtime, self._observer.boots, start_agents)
        self._who = uuid.uuid4().hex[:12]
        self._wishes = WishStore()
        self._written: Wish | None = None
        self._memory = ScalingMemory()
        self._turn = anyio.Lock()
        self._last = Standing()
        self._last_at = float("-inf")
        self._last_outstanding = 0
        self._served_at = float("-inf")

    @property
    def limits(self) -> ScalingLimits | None:
        """The bounds of the pool; None: its size is fixed."""
        return self._runtime.manifest.elastic

    @property
    def idle_exit(self) -> float:
        """Seconds without a task after which the pool's agents leave."""
        setting = self._runtime.settings.agent.idle_exit
        return idle_exit(setting, elastic=True) or 0.0

    @property
    def _interval(self) -> float:
        return self._runtime.settings.pool.autoscale_interval

    # ---- what the client wants

    async def step(self, sample: Sample) -> Standing:
        """Decide how many agents are wanted, tell it, and bring it about. `sample`: of the heartbeats.

        Several sessions of a client may call it as often as they like. Raises `ServiceError`.
        """
        async with self._turn:
            outstanding = self._outstanding()
            age = time.monotonic() - self._last_at
            if age < _FEWEST_SECONDS and outstanding <= self._last_outstanding:
                return self._last
            standing = await self._step(sample, outstanding)
            self._last, self._last_at = standing, time.monotonic()
            self._last_outstanding = outstanding
            return standing

    async def want(self, agents: int) -> Standing:
        """Ask for so many agents, whatever work there is, for as long as a wish lasts."""
        async with self._turn:
            self._executor.gave_up = False
            now, limits = time.time(), self.limits
            if limits is None:
                return Standing()
            bounded = max(limits.least, min(limits.most, agents))
            spot = max(limits.min_spot, bounded - limits.max_nodes)
            why = "they were asked for"
            decision = Decision(bounded, bounded - spot, spot, why, self._memory, needed=bounded)
            await self._write(decision, now)
            return await self._carry_out(await self._merged(now), now)

    async def serve(self, pause: float = 0.0) -> Standing:
        """Carry out what other clients wish for, of a client that wants nothing itself.

        `pause`: seconds for which what one session of the client has done serves its other sessions.
        """
        async with self._turn:
            if time.monotonic() - self._served_at < pause:
                return self._last
            now, self._served_at = time.time(), time.monotonic()
            merged = await self._merged(now)
            if not merged.agents:
                return Standing()
            return await self._carry_out(merged, now)

    async def _carry_out(self, merged: MergedWish, now: float) -> Standing:
        return await self._executor.carry_out(merged, await self._observer.look(), AgentsView(), now)

    async def let_go(self) -> bool:
        """Take a pool without agents to its least size at once, unless a client wants some.

        Its formula does so too, an evaluation later. False: Batch does not take it now.
        """
        async with self._turn:
            limits = self.limits
            if limits is None or self._runtime.connections.restricted:
                return True
            now = time.time()
            compute, pool_id = self._runtime.connections.compute, self._runtime.pool_id
            info = await compute.pool(pool_id)
            if not is_ours(info.formula) or info.target <= limits.least:
                return True
            if (await self._merged(now)).agents > limits.least:
                return True
            until = now + self._interval
            text = scaling_formula(limits, FormulaWish(0, 0, until, until), self._interval)
            return await compute.enable_autoscale(pool_id, text, self._interval)

    def _outstanding(self) -> int:
        """Return how many tasks of the client's sessions have no outcome."""
        counts = [session.counts() for session in self._runtime.open_sessions]
        return sum(each.sending + each.queued + each.running for each in counts)

    async def _step(self, sample: Sample, outstanding: int) -> Standing:
        limits, now = self.limits, time.time()
        if limits is None:
            return Standing()
        agents = AgentsView.of(sample)
        seen, queued = await self._look()
        observation = self._observer.observe(
            limits, agents, seen, queued=queued, outstanding=outstanding, idle_exit=self.idle_exit, now=now
        )
        decision = decide(observation, self._memory)
        self._memory = decision.memory
        if observation.waiting + observation.running:
            await self._write(decision, now)
        merged = await self._merged(now)
        if seen is None:
            return await self._stand_by(merged, sample)
        surplus = agents.ready - max(decision.needed, merged.needed)
        await self._executor.drain(agents, seen, surplus, decision.needed_dedicated)
        return await self._executor.carry_out(merged, seen, agents, now)

    async def _look(self) -> tuple[BatchView | None, int]:
        """Return what Batch says and the messages of the task queues, as far as this client may ask."""
        if self._runtime.connections.restricted:
            return None, 0
        queued = 0

        async def count() -> None:
            nonlocal queued
            queued = await self._observer.queued()

        async with task_group() as group:
            group.start_soon(count)
            seen = await self._observer.look()
        return seen, queued

    async def _stand_by(self, merged: MergedWish, sample: Sample) -> Standing:
        """Return how far a client is that must leave Batch to others."""
        if sample.alive or not merged.agents or await keeper_lives(self._runtime.ctl):
            return Standing(merged.agents)
        text = (
            f"pool {self._runtime.pool_id!r} has no agents, and this client may not start nodes (settings "
            "access.*): open a session of the pool with a client that has the accounts' keys, or a role in "
            "Entra ID"
        )
        return Standing(merged.agents, PoolError(text, retryable=True))

    # ---- wishes

    async def _write(self, decision: Decision, now: float) -> None:
        """Write this client's wish, unless the one that is there says the same for a while."""
        wish = Wish(
            self._who,
            decision.agents,
            now,
            now + self._interval,
            decision.dedicated,
            decision.why,
            decision.memory,
            decision.agents - decision.needed,
        )
        last = self._written
        if last is not None and last.asks_for == wish.asks_for and last.until - now > self._interval / 2:
            return
        await self._wishes.write(self._runtime.ctl, wish)
        self._written = wish

    async def _merged(self, now: float) -> MergedWish:
        return merge(await self._wishes.read_all(self._runtime.ctl), now)

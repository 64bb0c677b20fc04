"""Watches a pool's agents for a session: starts them, and reports when there are none."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from batchflow.errors import (
    BatchflowError,
    NoAgents,
    ServiceError,
)
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.pools.spending.budgets import shrink_spent, spent_reason
from batchflow.protocol.passed import FILES, VALUES
from batchflow.sessions.records.tracker import RunningOn
from batchflow.support.cadence import sleep_until_turn
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen
from batchflow.support.version import own_version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.model import Explanation
    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.protocol.documents import Heartbeat
    from batchflow.sessions.needs_watch import NeedsWatch
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.scaling_watch import ScalingWatch

logger = event_logger(__name__)
_SOON: Final = 0.5
"""Seconds to the second look for agents by a session that has found none; then twice as many each time."""
_LATER: Final = 2.0
"""Seconds after which a look also asks whether agents can come at all: most pools have theirs by then."""
_AGENTS_PATIENCE: Final = 60.0
"""Seconds that started agents have for their first sign of life before that is told."""


@frozen
class AgentSource:
    """The agents of a pool, as far as its sessions may have to do something about them."""

    start: Callable[[], Awaitable[None]]
    """Starts them where none live."""
    explain: Callable[[], Awaitable[Explanation]]
    """Says why none do."""
    hopeless: Callable[[], Awaitable[Callable[[str], ServiceError] | None]]
    """Chooses the error for a pool whose nodes can never have an agent; None while they can."""


class AgentsWatch:
    """Starts the pool's agents where none live, and makes it a problem when none can be."""

    def __init__(
        self,
        context: SessionContext,
        source: AgentSource,
        *,
        refuse: Callable[[str], Awaitable[None]],
        scaling: ScalingWatch,
        needs: NeedsWatch,
    ) -> None:
        """`refuse`: ends the session's tasks, because the pool's budget is spent; called with those words.

        `scaling`: has an elastic pool scaled. `needs`: ends tasks that no node can run.
        """
        self._refuse = refuse
        self._context = context
        self._source = source
        self._scaling = scaling
        self._needs = needs
        self._sample: Sample | None = None
        """The heartbeats that were read last."""
        self._alone_since: float | None = None
        """When it was first seen that no agent lives; None while some do."""
        self._spent = False
        """Whether no agent lives because the pool's budget is spent."""
        self._strange = set[str]()
        """Other versions than ours, of agents that were told of."""
        self.pythons: frozenset[str] = frozenset()
        """The minor versions of Python of the agents that live, as far as they are known."""

    @property
    def take_values(self) -> bool:
        """Whether all agents that were seen fetch values that other tasks left. False while none was seen."""
        beats = [] if self._sample is None else self._sample.beats
        return bool(beats) and all(VALUES in beat.accepts for beat in beats)

    @property
    def refuse_files(self) -> bool:
        """Whether an agent was seen that brings no files of other tasks."""
        beats = [] if self._sample is None else self._sample.beats
        return any(FILES not in beat.accepts for beat in beats)

    async def start(self) -> None:
        """Start the pool's agents where they do not live. A failure becomes the session's problem."""
        if self._scaling.concerns and self._context.runtime.connections.restricted:
            return  # a client with rights on Batch does so, as the first task's wish asks it to
        try:
            await self._source.start()
        except BatchflowError as error:
            if await self._alive():
                logger.info("agents_not_started", extra={"error": str(error)})
                return
            if await self._refuse_unpaid():
                return
            retryable = isinstance(error, ServiceError) and error.retryable
            problem = NoAgents(f"the pool's agents cannot be started: {error}", retryable=retryable)
            problem.__cause__ = error
            self._context.problems.set("agents", problem)

    async def _leave_if_spent(self) -> None:
        """Shrink the pool if its agents have left because its budget is spent. It starts no agents."""
        if not await self.meet():
            await self._refuse_unpaid()

    async def _refuse_unpaid(self) -> bool:
        """Return whether the pool's budget is spent. Then end the session's tasks, and shrink the pool."""
        runtime = self._context.runtime
        try:
            if (reason := await spent_reason(runtime)) is None:
                return False
            self._spent = True
            await self._refuse(reason)
            await shrink_spent(runtime)
        except ServiceError as error:
            logger.info("spent_pool_not_left", extra={"error": str(error)})
            return False
        return True

    async def _alive(self) -> bool:
        """Return whether agents live, whichever client started them."""
        try:
            return bool(await read_heartbeats(self._context.runtime.out))
        except ServiceError:
            return False

    async def run(self, starting: asyncio.Task[None]) -> None:
        await starting
        interval, soon = self._context.runtime.settings.agent.heartbeat_interval, _SOON
        await self._try(self._look if self._scaling.concerns else self.meet)
        while not self._context.policy.slots and soon < interval and not self._scaling.concerns:
            await asyncio.sleep(soon)
            soon *= 2
            await self._try(self._look if soon > _LATER and len(self._context.tracker) else self.meet)
        while True:
            if self._scaling.concerns:
                await self._scaling.until_due(interval)
            else:
                await sleep_until_turn(interval)
            if len(self._context.tracker):
                await self._try(self._look)
                continue
            runtime = self._context.runtime
            if runtime.manifest.budget is not None and not self._spent and not runtime.at_rest:
                await self._try(self._leave_if_spent)
            if self._scaling.concerns:
                await self._try(self._scaling.look_idle)

    async def before_leaving(self, starting: asyncio.Task[None]) -> None:
        """Have agents for the tasks that stay: a user who leaves at once still wants them run."""
        await asyncio.wait({starting})
        if self._scaling.concerns:
            await self._try(self._look)

    async def _try(self, look: Callable[[], Awaitable[object]]) -> None:
        try:
            await look()
        except ServiceError as error:
            self._context.notices.warn(f"the agents' heartbeats cannot be read: {error}")

    async def meet(self) -> bool:
        """Return whether there are agents, and note their free slots and versions."""
        sample = self._sample = await self._context.runtime.sample()
        self._context.policy.slots = sample.open_slots
        if (monitor := self._context.runtime.sessions.monitor) is not None:
            monitor.see(self._context.runtime)
        telemetry = self._context.telemetry
        if telemetry is not None and telemetry.meters is not None:
            telemetry.meters.slots(self._context.runtime.pool_id, sample.busy, sample.slots)
        if sample.alive:
            self._alone_since = None
            self._tell_versions(sample.beats)
            self._note_running(sample)
            self._context.problems.clear("agents", f"{sample.alive} agents are alive")
        await self._needs.see(sample)
        return bool(sample.alive)

    def _note_running(self, sample: Sample) -> None:
        """Note which of the session's tasks run where, as the heartbeats say."""
        context = self._context
        seen: dict[int, RunningOn] = {}
        for beat in sample.beats:
            for task in beat.running:
                incarnation, _, number = task.uid.rpartition(":")
                if incarnation == context.incarnation and number.isdecimal():
                    seen[int(number)] = RunningOn(beat.host, task.since)
        read = {beat.host for beat in sample.beats}
        all_read = sample.alive == len(sample.beats)
        context.tracker.seen_running(seen, lambda host: all_read or host in read)

    def _tell_versions(self, beats: list[Heartbeat]) -> None:
        """Warn of each other version once, and note the versions of Python."""
        self.pythons = frozenset(
            ".".join(found.split(".")[:2]) for beat in beats if (found := beat.versions.get("python"))
        )
        own = own_version()
        versions = Counter(beat.versions.get("batchflow", "unknown") for beat in beats)
        for version in sorted(versions.keys() - self._strange - {own}):
            self._strange.add(version)
            self._context.notices.warn(
                f"{versions[version]} of {len(beats)} agents are of batchflow {version}, this is {own}: "
                "await pool.stop(), then pool.start() brings this version"
            )

    async def _look(self) -> None:
        is_alive, limited = await self.meet(), self._context.runtime.manifest.budget is not None
        if self._scaling.concerns and self._sample is not None:
            if limited and not is_alive and await self._refuse_unpaid():
                return
            await self._scaling.look(self._sample)
        if is_alive:
            return
        if not len(self._context.tracker):
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
        if not self._scaling.concerns:
            await self.start()  # agents that lived may have gone: drained, idle or dead
        if self._spent or "agents" in self._context.problems:
            return
        standing, restricted = self._scaling.standing, self._context.runtime.connections.restricted
        cause = None if standing is None else standing.problem
        is_late = now - self._alone_since > self._patience
        error: Callable[[str], ServiceError] | None = NoAgents if is_late or cause is not None else None
        if error is None and not restricted:
            error = await self._source.hopeless()
        if error is not None:
            why = cause if cause is not None and restricted else await self._source.explain()
            problem = error(f"no agent of pool {self._context.runtime.pool_id} is alive. {why}")
            problem.__cause__ = cause
            self._context.problems.set("agents", problem)

    @property
    def _patience(self) -> float:
        """Seconds that agents have for their first sign of life before that is told."""
        return self._scaling.patience if self._scaling.concerns else _AGENTS_PATIENCE

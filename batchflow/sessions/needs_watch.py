"""Ends the tasks that no node of the pool can run, as soon as the pool's nodes are known.

All nodes of a pool are of one VM size, so one agent tells the slots, the memory and the GPUs of each of them.
Their tags may differ. So what tags there are is known when each node that the pool wants has an agent, and
never in a pool that grows by itself.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from batchflow.errors import ServiceError
from batchflow.model import Status
from batchflow.protocol.needs import NEEDS, Needs, unmet
from batchflow.sessions.records.tracker import rejected_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Any

    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.protocol.documents import Heartbeat
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry


_PAUSE: Final = 1.0
"""Seconds between two looks that tasks cause, at least."""


class NeedsWatch:
    """The tasks of one session that require something, as long as they have no outcome."""

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        refuse: Callable[[list[Entry], str], Awaitable[None]],
    ) -> None:
        """`refuse`: ends tasks as `TaskRejected`, also those that were sent."""
        self._context = context
        self._outcomes = outcomes
        self._refuse = refuse
        self._needs: dict[int, tuple[Entry, Needs]] = {}
        """By their numbers; some have ended."""
        self._beats: Sequence[Heartbeat] = ()
        self._tags_known = False
        self._look_at = float("-inf")
        """When a task may cause a look of its own again."""

    def add(self, entry: Entry, requires: Mapping[str, Any] | None) -> None:
        """Watch a task, or end it at once. It is in the outbox, or waits for others."""
        if requires is None or entry.done:
            return
        needs = Needs.read(requires)
        if (reason := self._hopeless(needs)) is not None:
            self._outcomes.resolve(entry, rejected_result(entry, reason))
            self._outcomes.change.notify()
            return
        self._needs[entry.sequence] = (entry, needs)
        now = time.monotonic()
        if self._lack(needs) is not None and now >= self._look_at:
            self._look_at = now + _PAUSE
            self._context.background.start(self._look(), "look at what nodes have")

    async def _look(self) -> None:
        """Look now: the task that nothing here can run is not to wait for the next regular look."""
        with suppress(ServiceError):  # the regular look tells of it
            await self.see(await self._context.runtime.sample())

    async def see(self, sample: Sample) -> None:
        """Look at the agents that live; end what none of them, and none to come, can run.

        Raises `ServiceError`.
        """
        self._beats = sample.beats
        self._forget_ended()
        if not self._needs:
            self._tags_known = False
            return
        if any(needs.tags and self._lack(needs) is not None for _, needs in self._needs.values()):
            self._tags_known = await self._has_all(sample)
        hopeless: dict[str, list[Entry]] = {}
        for entry, needs in self._needs.values():
            if (reason := self._hopeless(needs)) is not None:
                hopeless.setdefault(reason, []).append(entry)
        for reason, entries in hopeless.items():
            await self._refuse(entries, reason)

    async def explain(self) -> tuple[list[str], list[str]]:
        """Say how many tasks require what no living agent has, and how many wait until a node has it free."""
        self._forget_ended()
        if not self._needs:
            return [], []
        with suppress(ServiceError):  # else what was read last; the pool's causes say what does not answer
            self._beats = (await self._context.runtime.sample()).beats
        lacking: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for entry, needs in self._needs.values():
            if (lack := self._lack(needs)) is not None:
                lacking[lack] += 1
            elif needs.reserves and entry.status is Status.QUEUED:
                waiting[str(needs)] += 1
        return (
            [f"{count} tasks require {lack}" for lack, count in lacking.items()],
            [f"{count} tasks wait until a node has {what} free" for what, count in waiting.items()],
        )

    def _forget_ended(self) -> None:
        self._needs = {number: each for number, each in self._needs.items() if not each[0].done}

    async def _has_all(self, sample: Sample) -> bool:
        """Return whether every node that there will be has an agent that was seen."""
        runtime = self._context.runtime
        if sample.alive > len(sample.beats) or runtime.manifest.elastic is not None:
            return False
        if runtime.connections.restricted:
            return False
        info = await runtime.connections.compute.pool(runtime.pool_id)
        return not info.autoscale and len({beat.node for beat in sample.beats}) >= info.target

    def _lack(self, needs: Needs) -> str | None:
        """Return what the agents that live lack; None: one has it, or there are none."""
        return unmet(needs, self._beats)

    def _hopeless(self, needs: Needs) -> str | None:
        """Return why no node can ever run such a task; None: one may."""
        if not all(NEEDS in beat.accepts for beat in self._beats):
            return None  # agents of earlier versions do not tell, and run everything
        lack = self._lack(needs if self._tags_known else replace(needs, tags=()))
        return None if lack is None else f"no node of the pool can run it: it requires {lack}"

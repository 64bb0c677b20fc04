"""When a session has its elastic pool scaled: at its first task, then now and then while it has any."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.pools.elastic.acting import Standing
    from batchflow.pools.elastic.scaler import PoolScaler
    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.sessions.records.context import SessionContext

logger = event_logger(__name__)

_GATHER: Final = 0.05
"""Seconds from the first task to the first look, so that it counts the tasks that are submitted with it."""
_PATIENCE: Final = 60.0
"""Seconds beyond twice a boot that agents have for their first sign of life."""
_UNKNOWN_BOOT: Final = 300.0
"""Seconds that stand for a boot where none has been seen."""
_IDLE_LOOK: Final = 60.0
"""Seconds between two looks, of a session without tasks, at what other clients wish for."""
_SERVED: Final = 0.9 * _IDLE_LOOK
"""Seconds for which such a look of one session of the client serves its other sessions."""
_LEAVING_LOOK: Final = 10.0
"""Seconds between two looks, of a session without tasks, for agents that are about to leave."""


class ScalingWatch:
    """Has the session's pool scaled, and keeps what there is to tell about it."""

    def __init__(self, context: SessionContext, scaler: PoolScaler) -> None:
        self._context = context
        self._scaler = scaler
        self._woken = asyncio.Event()
        self._worked_at = float("-inf")
        """When the session had tasks last."""
        self._left = False
        """Whether the pool was seen at its least size since then."""
        self._noted: tuple[str, ...] = ()
        self.standing: Standing | None = None
        """What was found last; None: nothing yet."""

    @property
    def concerns(self) -> bool:
        """Whether the pool is an elastic one."""
        return self._scaler.limits is not None

    @property
    def patience(self) -> float:
        """Seconds that wanted agents have for their first sign of life before that is told."""
        boot = 0.0 if self.standing is None else self.standing.patience
        return _PATIENCE + 2 * (boot or _UNKNOWN_BOOT)

    def wake(self) -> None:
        """Note that a task was submitted. It costs nothing but the first time."""
        self._woken.set()

    async def until_due(self, interval: float) -> None:
        """Return when the next look is due: every `interval` seconds while the session has tasks."""
        if len(self._context.tracker):
            await asyncio.sleep(interval)
            return
        self._woken.clear()
        pause = _IDLE_LOOK if self._left else min(_LEAVING_LOOK, max(interval, self._scaler.idle_exit / 4))
        try:
            async with asyncio.timeout(pause):
                await self._woken.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_GATHER)

    async def look(self, sample: Sample) -> None:
        """Have the pool scaled for the session's tasks. Raises `ServiceError`."""
        if len(self._context.tracker):
            self._worked_at, self._left = time.monotonic(), False
            self._context.runtime.at_rest = False
        self._tell(await self._scaler.step(sample))

    async def look_idle(self) -> None:
        """Do what is due without tasks: let nodes go whose agents left, and serve other clients."""
        runtime = self._context.runtime
        if not self._left and time.monotonic() - self._worked_at >= self._scaler.idle_exit:
            sample = await runtime.sample()
            self._left = not sample.alive and await self._scaler.let_go()
            counts = [session.counts() for session in runtime.open_sessions]
            runtime.at_rest = self._left and all(each.submitted == each.done for each in counts)
        if not runtime.connections.restricted:
            self._tell(await self._scaler.serve(_SERVED))

    def _tell(self, standing: Standing) -> None:
        self.standing = standing
        for note in standing.notes:
            if note not in self._noted:
                self._context.notices.warn(note)
        self._noted = standing.notes

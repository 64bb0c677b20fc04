"""The sessions that a client has open, for the parts that close them or refuse their tasks.

The registry holds records of callables, so that it knows no `Session`.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from batchflow.errors import BatchflowError, BrokerError
from batchflow.pools.shared_load import PoolLoad
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from batchflow.model import Counts
    from batchflow.pools.reports.figures import PoolFigures
    from batchflow.protocol.activity import SlotRun
    from batchflow.protocol.wire import ResultItem

logger = event_logger(__name__)


class SessionTasks(Protocol):
    """The tasks of an open session, as live views see them and act on them."""

    def ended_since(self, seen: int) -> tuple[int, Iterable[tuple[str, SlotRun]]]:
        """Return the number of tasks that ended while views watched, and host and run of those after `seen`.

        The first call begins to watch.
        """

    def detail(self, uid: str) -> dict[str, Any] | None:
        """Return what is known of a task, as texts and numbers; None when the session does not know it."""

    async def cancel(self, uid: str) -> bool:
        """Cancel a task; return False when it has ended or is not known."""

    async def retry(self, uid: str) -> str:
        """Submit a task that ended once more, and return the uid of the new one.

        Raises `ConfigurationError` when the session cannot.
        """


@frozen
class OpenSession:
    """One open session, as other parts see it."""

    pool_id: str
    job: str
    name: str
    counts: Callable[[], Counts]
    refuse: Callable[[str], None]
    """Makes `submit` raise `JobClosed` with this text from now on."""
    close: Callable[[str | None], Awaitable[None]]
    """Close the session. Its pending waiters get a `SessionClosed` with this text, if one is given."""
    tasks: SessionTasks

    def summary(self) -> tuple[str, str, dict[str, int]]:
        """Return the pool, the name and the counts, as a notebook shows them."""
        return self.pool_id, f"{self.job}/{self.name}", asdict(self.counts())


class Monitor(Protocol):
    """What is told of tasks and pools, and never waits. `runtime`: a `PoolRuntime`."""

    def task(self, runtime: Any, item: ResultItem, trace: Any) -> None:
        """Take the outcome of a task. `trace`: its `TaskTrace`, if it has one."""

    def see(self, runtime: Any) -> None:
        """Note a pool, of whose agents this client may have to tell."""


class OpenSessions:
    """The open sessions of a client, in the order of their opening, across its pools."""

    def __init__(self) -> None:
        self._sessions: list[OpenSession] = []
        self._loads: dict[str, PoolLoad] = {}
        self.monitor: Monitor | None = None
        """What sends to Log Analytics; None where no endpoint is set."""
        self.figures: dict[str, PoolFigures] = {}
        """What pools looked like when that was asked for last, by their ids, for views that cannot ask."""

    def load_of(self, pool_id: str) -> PoolLoad:
        """What the sessions have learned of a pool, and have under way there."""
        return self._loads.setdefault(pool_id, PoolLoad())

    def __iter__(self) -> Iterator[OpenSession]:
        """Iterate over a copy: sessions leave the registry while they are closed."""
        return iter(list(self._sessions))

    def add(self, session: OpenSession) -> None:
        self._sessions.append(session)

    def discard(self, session: OpenSession) -> None:
        """Remove a session. Idempotent."""
        self._sessions = [each for each in self._sessions if each is not session]

    async def close_all(self) -> None:
        """Close all sessions. Raises `BrokerError` for what they could not finish."""
        errors: list[Exception] = []
        while sessions := list(self):  # one may have been opening meanwhile
            results = await asyncio.gather(*(each.close(None) for each in sessions), return_exceptions=True)
            errors += [error for error in results if isinstance(error, Exception)]
            for session in sessions:
                self.discard(session)
        for error in errors:
            logger.warning("session_close_failed", extra={"error": str(error)})
        if errors:
            more = f"; {len(errors) - 1} more sessions failed as well" if len(errors) > 1 else ""
            raise BrokerError(f"{errors[0]}{more}") from errors[0]

    def of_pool(self, pool_id: str) -> list[OpenSession]:
        """Return the open sessions in any job of the pool."""
        return [session for session in self._sessions if session.pool_id == pool_id]

    def of_job(self, pool_id: str, job: str) -> list[OpenSession]:
        """Return the open sessions in one job of the pool."""
        return [session for session in self.of_pool(pool_id) if session.job == job]


async def close_sessions(sessions: Iterable[OpenSession], reason: str) -> None:
    """Close sessions whose pool or job is gone. What they could not finish is logged, not raised."""

    async def close(session: OpenSession) -> None:
        try:
            await session.close(reason)
        except BatchflowError as error:
            logger.info("session_closed", extra={"session": session.name, "error": str(error)})

    async with task_group() as group:
        for session in sessions:
            group.start_soon(close, session)

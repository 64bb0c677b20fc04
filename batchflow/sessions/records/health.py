"""What makes waiting pointless: services that are away, and agents that do not live.

A session goes on trying for as long as it lives, because only another send shows whether a failed send was
accepted. But no call waits in silence: once a service has been away for `session.patience` seconds without a
break, every call that waits for it raises the error, until the service is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from batchflow.errors import BrokerError, ServiceError

if TYPE_CHECKING:
    from batchflow.sessions.records.notices import Notices

ProblemSource = Literal["agents", "sending", "results", "storage"]
"""What may make waiting pointless."""


class Problems:
    """The current problems of a session, at most one from each source."""

    def __init__(self, notices: Notices, patience: float) -> None:
        """`patience`: seconds that a service may be away before that is a problem."""
        self._notices = notices
        self._patience = patience
        self._current: dict[ProblemSource, ServiceError] = {}
        self._listeners: list[Callable[[ProblemSource, ServiceError], None]] = []

    def __contains__(self, source: ProblemSource) -> bool:
        return source in self._current

    @property
    def first(self) -> ServiceError | None:
        """The oldest problem; None when there is none."""
        return next(iter(self._current.values()), None)

    def check(self, source: ProblemSource | None = None) -> None:
        """Raise the problem of this source, or of any, if there is one."""
        problem = self.first if source is None else self._current.get(source)
        if problem is not None:
            raise problem

    def subscribe(self, listener: Callable[[ProblemSource, ServiceError], None]) -> None:
        """Call it with each new problem."""
        self._listeners.append(listener)

    def set(self, source: ProblemSource, error: ServiceError) -> None:
        """Note a problem: calls that wait raise it, at once and until it is cleared."""
        self._current[source] = error
        self._notices.warn(str(error))
        for listener in self._listeners:
            listener(source, error)

    def clear(self, source: ProblemSource, message: str) -> None:
        """End the problem of this source and tell the user so, if there is one."""
        if self._current.pop(source, None) is not None:
            self._notices.inform(message)

    def watch(self, source: ProblemSource, what: str) -> ServiceHealth:
        """Return a record of one service's failures. `what`: a whole clause, "the broker takes no tasks"."""
        return ServiceHealth(self, self._patience, source, what)


class ServiceHealth:
    """For how long a service has been failing, and the problem that this is after a while."""

    def __init__(self, problems: Problems, patience: float, source: ProblemSource, what: str) -> None:
        self._problems = problems
        self._patience = patience
        self._source: ProblemSource = source
        self._what = what
        self._since: float | None = None

    def failed(self, error: ServiceError) -> None:
        """Note a failed try; there will be another one."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self._patience and self._source not in self._problems:
            kind = BrokerError if isinstance(error, BrokerError) else type(error)
            problem = kind(
                f"{self._what} for {now - self._since:.0f} s; it is tried again as long as the session is "
                f"open: {error}",
                retryable=True,
            )
            problem.__cause__ = error
            self._problems.set(self._source, problem)

    def worked(self) -> None:
        """Note a success: the service is back."""
        self._since = None
        self._problems.clear(self._source, f"{self._what}: that is over")

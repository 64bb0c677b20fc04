"""A service that is away: what it does to a session that waits for it.

What is under way stays, and is tried again for as long as the session lives: whether a send that failed was
accepted can only be found out by sending it again. But nobody waits in silence: once a service has been away
for `session.patience` seconds without a break, whoever waits for it gets the error, until it is back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from batchflow.errors import BrokerError, ServiceError

if TYPE_CHECKING:
    from batchflow.session import Session

ProblemSource = Literal["agents", "sending", "mail", "storage"]
"""What may make waiting pointless."""


class ServiceHealth:
    """Notes when something fails and when it works."""

    def __init__(self, session: Session, source: ProblemSource, what: str) -> None:
        """`what`: a whole clause, "the broker takes no tasks"."""
        self._session = session
        self._source: ProblemSource = source
        self._what = what
        self._patience = session.pool.runtime.settings.session.patience
        self._since: float | None = None

    def failed(self, error: ServiceError) -> None:
        """It did not work, and is tried again."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self._patience and self._source not in self._session._troubles:
            kind = BrokerError if isinstance(error, BrokerError) else type(error)
            trouble = kind(
                f"{self._what} for {now - self._since:.0f} s; it is tried again as long as the session is "
                f"open: {error}",
                retryable=True,
            )
            trouble.__cause__ = error
            self._session._set_trouble(self._source, trouble)

    def worked(self) -> None:
        """It is back."""
        self._since = None
        self._session._clear_trouble(self._source, f"{self._what}: that is over")

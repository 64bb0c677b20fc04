"""Reports to the ledgers of budgets what this agent has spent, and learns what all agents have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from batchflow.errors import StorageError
from node_agent.scheduling.events import Event, SpendingRead, SpendingUnread

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from node_agent.control.problems import Problems

logger = logging.getLogger(__name__)

_TIMEOUT: Final = 20.0


class SpendingReporter:
    """Makes the reports. Only the size of a ledger counts, not what is in it."""

    def __init__(self, out: Container, problems: Problems, feed: Callable[[Event], None]) -> None:
        self._out = out
        self._problems = problems
        self._feed = feed

    async def report(self, ledger: str, grains: int) -> None:
        """Add so many grains to a ledger, and give the scheduler the sum."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                size = await self._out.append(ledger, b"." * grains)
        except (StorageError, TimeoutError) as error:
            if self._problems.begin("budget", f"what the agent spends cannot be reported: {error}"):
                logger.warning("spending_unreported", extra={"ledger": ledger, "error": str(error)})
            self._feed(SpendingUnread(ledger))
        else:
            self._problems.end("budget")
            self._feed(SpendingRead(ledger, size))

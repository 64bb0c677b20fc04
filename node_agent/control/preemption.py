"""Watches for the notice that Azure is about to take a spot node away (Scheduled Events).

https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events: the machine itself reads a document
at a fixed address of its own network, with the header `Metadata: true`. A spot machine's `Preempt` comes at
least 30 seconds before it ends. The document is that of the whole scale set, so an event counts only when it
names this machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from aiohttp import ClientSession

logger = logging.getLogger(__name__)

INTERVAL: Final = 5.0
"""Seconds between two looks."""
MARGIN: Final = 3.0
"""Seconds before the end in which what still runs is stopped and handed back."""
_SPOT_GRACE: Final = 20.0
"""Seconds that tasks on a spot node may run after SIGTERM: it may be the machine's end, 30 seconds before."""
_API: Final = "2020-07-01"
_TIMEOUT: Final = 5.0
_LONGEST_INTERVAL: Final = 60.0
"""Seconds between two looks where there is no such document."""
_LONGEST_WAIT: Final = 900.0
"""Seconds after which a machine that was to end counts as staying."""
_OURS: Final = ("Preempt", "Terminate")


def address_of(setting: str) -> str:
    """Return where the document is: the local cloud tells its nodes, elsewhere it is the setting."""
    return (os.environ.get("BATCHFLOW_SCHEDULED_EVENTS") or setting) if setting else ""


def stop_grace(drain_grace: float, *, dedicated: bool) -> float:
    """Return the seconds that tasks may run when the agent is told to stop by a signal."""
    return drain_grace if dedicated else min(drain_grace, _SPOT_GRACE)


def seconds_left(document: Any, machine: str, now: float) -> float | None:
    """Return the seconds until this machine ends, 0 if it may end at once; None: it stays.

    Raises ValueError for a document that is none.
    """
    events = document.get("Events") if isinstance(document, Mapping) else None
    if not isinstance(events, list):
        raise ValueError("it has no list of events")
    found = [
        _left(event.get("NotBefore"), now)
        for event in events
        if isinstance(event, Mapping) and event.get("EventType") in _OURS and _names(event, machine)
    ]
    return min(found, default=None)


def _names(event: Mapping[str, Any], machine: str) -> bool:
    resources = event.get("Resources")
    return isinstance(resources, list) and machine.lower() in [str(each).lower() for each in resources]


def _left(not_before: Any, now: float) -> float:
    """Return the seconds until an event; it has no time once it has begun."""
    if not isinstance(not_before, str) or not not_before:
        return 0.0
    return max(0.0, parsedate_to_datetime(not_before).timestamp() - now)


class PreemptionWatcher:
    """Looks whether the node is about to end, and lets the agent drain until then."""

    def __init__(self, address: str, drain: Callable[[float], None]) -> None:
        """`drain`: gets the seconds that tasks may still run."""
        self._address = address
        self._drain = drain
        self._machine: str | None = None
        self._unread = 0
        """Looks in a row that failed."""
        self._released = asyncio.Event()
        self.announced = False
        """Whether the node is about to end."""

    async def run(self) -> None:
        """Watch until cancelled."""
        async with self._session() as http:
            while not self.announced:
                left = await self._look(http)
                if left is not None:
                    self.announced = True
                    logger.warning("node_preempted", extra={"in": round(left, 1)})
                    self._drain(max(0.0, left - MARGIN))
                await asyncio.sleep(self._pause)
        await anyio.sleep_forever()

    async def until_over(self) -> None:
        """Return when the node stays after all, or `release` is called. Mostly the node ends before."""
        with anyio.move_on_after(_LONGEST_WAIT):
            async with self._session() as http:
                while await self._look(http) is not None or self._unread:
                    with anyio.move_on_after(INTERVAL):
                        await self._released.wait()
                        return

    def release(self) -> None:
        """Wait no longer for the end of the node."""
        self._released.set()

    @property
    def _pause(self) -> float:
        return min(_LONGEST_INTERVAL, INTERVAL * 2.0 ** min(self._unread, 8))

    @staticmethod
    def _session() -> ClientSession:
        """Make a session that uses no proxy: the address is in the machine's own network."""
        from aiohttp import ClientSession, ClientTimeout

        timeout = ClientTimeout(total=_TIMEOUT)
        return ClientSession(timeout=timeout, headers={"Metadata": "true"}, trust_env=False)

    async def _look(self, http: ClientSession) -> float | None:
        """Return the seconds until the node ends; None when it stays, or that cannot be read."""
        from aiohttp import ClientError

        try:
            if self._machine is None:
                self._machine = await self._name(http)
            async with http.get(self._address, params={"api-version": _API}) as answer:
                answer.raise_for_status()
                left = seconds_left(await answer.json(content_type=None), self._machine, time.time())
        except (ClientError, OSError, TimeoutError, ValueError, TypeError) as error:
            if not self._unread:
                logger.info("notices_unread", extra={"error": str(error) or type(error).__name__})
            self._unread += 1
            return None
        self._unread = 0
        return left

    async def _name(self, http: ClientSession) -> str:
        """Ask for the name by which events call this machine."""
        address = f"{self._address.rpartition('/')[0]}/instance/compute/name"
        async with http.get(address, params={"api-version": "2021-02-01", "format": "text"}) as answer:
            answer.raise_for_status()
            return (await answer.text()).strip()

"""A session's way out: what was submitted goes to the task queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchflow import wire
from batchflow.backoff import Backoff, opened
from batchflow.broker import OutgoingMessage, Sender
from batchflow.control import queue_for
from batchflow.errors import BrokerError
from batchflow.outage import Outage
from batchflow.outcomes import submit_failed
from batchflow.tracker import Entry

if TYPE_CHECKING:
    from batchflow.session import Session


class Outbox:
    """Sends what was submitted. One coroutine owns the link; what gathers while it sends rides together."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sender: Sender | None = None
        self._wake = asyncio.Event()
        self._messages = 0
        self._outage = Outage(session, "sending", "the broker has taken no tasks")
        self.passed = 0
        """Every task with a lower sequence number is accepted, or has failed."""

    async def open(self) -> None:
        queues = self._session.pool._manifest.task_queues
        queue = queue_for(queues, wire.mailbox_id(self._session.job_name, self._session.name))
        broker = self._session.pool.client._services.broker
        self._sender = await opened(lambda: broker.sender(queue))

    async def aclose(self) -> None:
        if self._sender is not None:
            await self._sender.aclose()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        tracker = self._session._tracker
        while True:
            await self._wake.wait()
            entries, items = tracker.take(self._session._policy.pack(tracker.sending))
            if entries:
                await self._send(entries, items)
                self.passed = entries[-1].sequence + 1
            else:
                self._wake.clear()
                self.passed = tracker.next_sequence()
            self._session._room.beat()

    async def drain(self) -> None:
        """Return when everything was sent."""
        while self._session._tracker.sending:
            await self._session._room.wait()

    async def _send(self, entries: list[Entry], items: list[bytes]) -> None:
        """Until the broker has it or refuses it for good; the same bytes under the same id each time."""
        assert self._sender is not None
        session = self._session
        self._messages += 1
        message = OutgoingMessage(wire.join("tasks", items), f"{session.incarnation}-{self._messages}")
        backoff = Backoff()
        while True:
            try:
                await self._sender.send(message)
            except BrokerError as error:
                if not error.retryable:
                    self._failed(entries, error)
                    return
                session._warn(f"the broker did not take {len(entries)} tasks yet, trying again: {error}")
                self._outage.failed(error)
                await backoff.wait()
            else:
                self._outage.worked()
                session._tracker.accepted(entries)
                self._tell_accepted(entries)
                return

    def _tell_accepted(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._session._accepting.wake(entry.sequence)

    def _failed(self, entries: list[Entry], error: BrokerError) -> None:
        session = self._session
        for entry in entries:
            session._resolve(entry, submit_failed(entry, str(error)))
        session._changed()

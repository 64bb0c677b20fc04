"""Sends the events of running tasks (log lines, progress, output) to their sessions, at a bounded rate.

Rules: events leave in batches of at most `MOST_BYTES` for each mailbox, every `INTERVAL` seconds. Events that
come faster wait, at most `MOST_WAITING` of them. Further events are dropped and counted, and a warning
reports their number. Of the progress of a task only the latest event waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.protocol import wire

if TYPE_CHECKING:
    from node_agent.execution.outcomes import Execution

INTERVAL: Final = 0.1
MOST_BYTES: Final = 64 * 1024
MOST_WAITING: Final = 2000
_LONGEST_MESSAGE: Final = 16 * 1024

_Key = tuple[str, str] | int


@dataclass(slots=True)
class _MailboxBatch:
    """The events that wait for one mailbox."""

    items: OrderedDict[_Key, wire.EventItem] = field(default_factory=OrderedDict)
    dropped: int = 0
    last_dropped: wire.EventItem | None = None
    """The task that the warning about dropped events is addressed to."""


class EventBatcher:
    """Collects the events of tasks, and passes them on while `run` runs."""

    def __init__(self) -> None:
        self._batches: dict[str, _MailboxBatch] = {}
        self._filled = asyncio.Event()
        self._told = 0

    def tell(self, execution: Execution, event: wire.EventItem) -> None:
        """Queue an event of a task."""
        batch = self._batches.setdefault(wire.mailbox_id(execution.job, execution.client), _MailboxBatch())
        self._told += 1
        key: _Key = (event.uid, "progress") if event.kind == "progress" else self._told
        batch.items.pop(key, None)
        if len(batch.items) >= MOST_WAITING:
            batch.dropped += 1
            batch.last_dropped = event
        else:
            batch.items[key] = event
        self._filled.set()

    async def run(self, put: Callable[[str, Sequence[bytes]], None]) -> None:
        """Pass the events on by mailbox, until cancelled."""
        while True:
            if not self._batches:
                self._filled.clear()
                await self._filled.wait()
            for mailbox in list(self._batches):
                put(mailbox, self._take(mailbox))
            await anyio.sleep(INTERVAL)

    def _take(self, mailbox: str) -> list[bytes]:
        batch = self._batches[mailbox]
        taken: list[bytes] = []
        size = 0
        while batch.items and size < MOST_BYTES:
            _, event = batch.items.popitem(last=False)
            taken.append(_encoded(event))
            size += len(taken[-1])
        if not batch.items:
            del self._batches[mailbox]
            if batch.last_dropped is not None:
                taken.append(wire.encode(_warning(batch.dropped, batch.last_dropped)))
        return taken


def _encoded(event: wire.EventItem) -> bytes:
    try:
        encoded = wire.encode(event)
    except TypeError:
        encoded = b""
    if encoded and len(encoded) <= MOST_BYTES:
        return encoded
    message = event.message[:_LONGEST_MESSAGE].encode(errors="replace").decode()
    return wire.encode(wire.EventItem(event.uid, event.task_id, event.kind, message, event.at))


def _warning(dropped: int, last: wire.EventItem) -> wire.EventItem:
    text = f"{dropped} events were dropped: they came faster than they can be passed on"
    return wire.EventItem(last.uid, last.task_id, "warning", text, time.time(), {"dropped": dropped})

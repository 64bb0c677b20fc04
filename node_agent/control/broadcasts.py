"""Runs the tasks of broadcasts: once on this node, beside the slots, so that no other task delays them.

Rules:

- The orders are a document, at which the agent looks with each heartbeat. Tasks run one after the other, in a
  slot of their own, which is there only while there are any.
- A task begins at most once on a node. What was begun by an agent that died ends as `WorkerDied`. A result is
  kept on the disk until the broker has it, and the next agent sends it.
- Nothing begins while the agent drains. What runs is killed when its order is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.model import Status
from batchflow.protocol.broadcasts import MOST_SECONDS, Broadcasts
from batchflow.protocol.layout import BROADCAST_BLOB
from batchflow.support.cadence import sleep_until_turn
from batchflow.support.frozen import frozen
from node_agent.control.broadcast_record import SETTLED
from node_agent.control.heartbeat import node_id
from node_agent.execution.slot_loop import SlotLoop
from node_agent.scheduling.events import Ended, Event, Freed, Prepared, Unable, Verdict
from node_agent.system.task_fields import task_fields

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from batchflow.protocol.wire import TaskItem
    from node_agent.execution.resources import TaskResources
    from node_agent.execution.slot_queue import SlotProtocol

logger = logging.getLogger(__name__)

_NUMBER: Final = 0
"""Of the one task that its slot has."""
_DIED: Final = Verdict(
    Status.FAILED, "WorkerDied", "the agent ended while it ran this task of a broadcast: it is not run again"
)


class BroadcastResults(Protocol):
    """Sends results of tasks that the scheduler does not know."""

    def encode(self, item: TaskItem, verdict: Verdict | None, outcome: object) -> bytes: ...

    def send_beside(self, item: TaskItem, encoded: bytes, accepted: Callable[[], None]) -> None: ...


class BegunTasks(Protocol):
    """Remembers which tasks have begun on this node, also when the agent is killed: see `BroadcastRecord`."""

    def read(self, uid: str, /) -> bytes | None: ...

    def begin(self, uid: str, /) -> None: ...

    def ended(self, uid: str, result: bytes, /) -> None: ...


@frozen
class BroadcastParts:
    """What the agent's node has for broadcasts."""

    record: BegunTasks
    open_slot: Callable[[], SlotProtocol]
    """Makes a slot beside the agent's."""


class BroadcastRunner:
    """Looks for orders that name this node, and runs their tasks."""

    def __init__(
        self,
        parts: BroadcastParts,
        ctl: Container,
        resources: TaskResources,
        results: BroadcastResults,
        *,
        index: int,
        interval: float,
        may_begin: Callable[[], bool],
        ahead: Callable[[], float | None],
        beside: Callable[[int], None],
        forget_crashes: Callable[[str], None],
    ) -> None:
        """`index`: of its slot. `interval`: seconds between two looks.

        `may_begin`: whether the agent takes tasks. `ahead`: seconds that the node's clock is ahead.
        `beside`: told how many of these tasks there are whenever that changes.
        """
        self._parts = parts
        self._ctl = ctl
        self._resources = resources
        self._results = results
        self._index = index
        self._interval = interval
        self._may_begin = may_begin
        self._ahead = ahead
        self._beside = beside
        self._forget_crashes = forget_crashes
        self._etag: str | None = None
        self._ordered = Broadcasts()
        self._wanted: dict[str, TaskItem] = {}
        """The tasks of this node that are ordered, by uid."""
        self._known: set[str] = set()
        """Those of them that were begun, or whose result was sent, by this agent or the one before."""
        self._waiting: asyncio.Queue[TaskItem] = asyncio.Queue()
        self._left: set[str] = set()
        """The uids of those that wait, run, or have a result on its way."""
        self._loop: SlotLoop | None = None
        self._current: TaskItem | None = None
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Look and run until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._work)
            while True:
                await sleep_until_turn(self._interval)
                if await self._look():
                    self._take()

    async def _look(self) -> bool:
        """Read the orders; return whether they are known."""
        try:
            blob = await self._ctl.get_if_changed(BROADCAST_BLOB, self._etag)
            if blob is not None:
                self._etag, self._ordered = blob.etag, Broadcasts.decode(blob.data)
        except BlobNotFound:
            self._etag, self._ordered = None, Broadcasts()
        except (StorageError, ProtocolError) as error:
            logger.warning("broadcasts_unread", extra={"error": str(error)})
            return False
        return True

    def _take(self) -> None:
        """Take what is ordered anew, and stop what is ordered no more."""
        now = time.time() - (self._ahead() or 0.0)
        node, self._wanted = node_id(), {}
        for order in self._ordered.orders:
            try:
                item = order.item(node)
            except ProtocolError as error:
                logger.warning("broadcast_unreadable", extra={"error": str(error)})
                continue
            if item is None:
                continue
            self._wanted[item.uid] = item
            if item.uid not in self._known and self._may_begin() and not order.is_over(now):
                self._known.add(item.uid)
                self._begin(item)
        self._known &= self._wanted.keys()
        if self._current is not None and self._current.uid not in self._wanted and self._loop is not None:
            self._loop.stop()

    def _begin(self, item: TaskItem) -> None:
        """Have a task run, unless an agent of this node has begun it before."""
        try:
            earlier = self._parts.record.read(item.uid)
        except OSError as error:
            self._end(item, _unable(error))
            return
        if earlier is None:
            self._add(item)
            self._waiting.put_nowait(item)
        elif not earlier:
            self._forget_crashes(item.uid)
            self._end(item, _DIED)
        elif earlier != SETTLED:
            self._send(item, earlier)

    async def _work(self) -> None:
        """Run what waits, in a slot that is closed when nothing does."""
        while True:
            item: TaskItem | None = await self._waiting.get()
            slot = self._parts.open_slot()
            self._loop = SlotLoop(self._index, slot, self._resources, feed=self._fed)
            async with anyio.create_task_group() as group:
                group.start_soon(self._loop.serve)
                while item is not None:
                    await self._run(self._loop, item)
                    item = None if self._waiting.empty() else self._waiting.get_nowait()
                group.cancel_scope.cancel()
            self._loop = None

    async def _run(self, loop: SlotLoop, item: TaskItem) -> None:
        """Run one task, unless its order is gone."""
        if item.uid not in self._wanted:
            self._settle(item)
            return
        try:
            self._parts.record.begin(item.uid)
        except OSError as error:
            self._end(item, _unable(error))
            return
        logger.info("broadcast_begins", extra={**task_fields(item), "command": item.command})
        self._current = item
        self._freed.clear()
        loop.prepare({_NUMBER: item})
        await self._freed.wait()
        if self._current is not None:  # it was killed: nothing waits for its result
            self._current = None
            self._settle(item)

    def _fed(self, *events: Event) -> None:
        """Take what the slot says."""
        for event in events:
            match event:
                case Prepared() if self._loop is not None:
                    self._loop.start([_NUMBER], time.monotonic() + MOST_SECONDS)
                case Ended(outcome=outcome):
                    self._finish(None, outcome)
                case Unable(error=error):
                    self._finish(_unable(error), None)
                case Freed():
                    self._freed.set()

    def _finish(self, verdict: Verdict | None, outcome: object) -> None:
        item, self._current = self._current, None
        assert item is not None
        self._end(item, verdict, outcome)

    def _end(self, item: TaskItem, verdict: Verdict | None, outcome: object = None) -> None:
        """Send the result of a task, and keep it until the broker has it."""
        encoded = self._results.encode(item, verdict, outcome)
        self._note(item, encoded)
        self._send(item, encoded)

    def _send(self, item: TaskItem, encoded: bytes) -> None:
        self._add(item)
        self._results.send_beside(item, encoded, lambda: self._settle(item))

    def _settle(self, item: TaskItem) -> None:
        """Note that nothing is left to do for a task."""
        self._note(item, SETTLED)
        self._left.discard(item.uid)
        self._beside(len(self._left))

    def _add(self, item: TaskItem) -> None:
        self._left.add(item.uid)
        self._beside(len(self._left))

    def _note(self, item: TaskItem, result: bytes) -> None:
        try:
            self._parts.record.ended(item.uid, result)
        except OSError as error:  # it began: what is there already keeps it from beginning again
            logger.warning("broadcast_not_noted", extra={**task_fields(item), "error": str(error)})


def _unable(reason: object) -> Verdict:
    return Verdict(Status.FAILED, "TaskFailed", f"the node could not run this task of a broadcast: {reason}")

"""Sends the tasks of a session to the pool's task queues."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batchflow.errors import BrokerError
from batchflow.model import Status
from batchflow.ports.broker import OutgoingMessage, QueueRef, Sender
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import time_to_live
from batchflow.protocol.lanes import PRIORITIES, check_priority
from batchflow.protocol.packing import ENVELOPE, MOST_BYTES
from batchflow.sessions.lanes import lane_aside, queues_of, without_lanes
from batchflow.sessions.records.tracker import Entry, submit_failed_result
from batchflow.support.backoff import opened, until_accepted
from batchflow.support.recovery import Recovery, recovery_of
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.protocol.lanes import Priority
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.health import ServiceHealth
    from batchflow.sessions.records.outcomes import Outcomes

_GATHERING: Final = 0.01
"""Seconds between two looks at whether a message is full."""
_LONGEST_GATHERING: Final = 0.5
"""Seconds that a message waits for tasks that are being submitted."""


@dataclass(slots=True, eq=False)
class _Packed:
    """A message of tasks. Its bytes and its id are the same whenever it is sent."""

    entries: list[Entry]
    message: OutgoingMessage


@dataclass(slots=True, eq=False)
class SendLink:
    """The link to one of the task queues."""

    queue: QueueRef
    sender: Sender
    health: ServiceHealth
    sending: list[_Packed] = field(default_factory=list)
    """Messages that are being sent."""
    sent: int = 0
    """Messages that the broker has accepted."""


class TaskSender:
    """Sends submitted tasks, each message over whichever task queue's link is free.

    One coroutine owns a link; what gathers while all of them send rides together.
    """

    def __init__(self, context: SessionContext, outcomes: Outcomes, priority: Priority | None = None) -> None:
        self._context = context
        self._priority = priority
        self._express = priority == "interactive" and bool(context.runtime.manifest.lanes)
        """Whether its tasks go before all others, so that they do not wait for the work of these."""
        self._outcomes = outcomes
        self.links: list[SendLink] = []
        self._aside: dict[Priority, SendLink] = {}
        """The links to lanes of other priorities than the session's, opened with the first task of each."""
        self._aside_wake = asyncio.Event()
        self._told = False
        """Whether the user knows that priorities change nothing here."""
        self._wake = asyncio.Event()
        self._messages = 0

    async def open(self) -> None:
        queues = await queues_of(self._context, self._priority)
        async with task_group() as group:
            for queue in queues:
                group.start_soon(self._open, queue)

    async def _open(self, queue: QueueRef) -> None:
        broker = self._context.runtime.connections.broker
        self.links.append(self._link(queue, await opened(lambda: broker.sender(queue))))

    def _link(self, queue: QueueRef, sender: Sender) -> SendLink:
        health = self._context.problems.watch("sending", f"{queue.entity} has taken no tasks")
        return SendLink(queue, self._context.counter.sender(sender), health)

    def aside_priority(self, priority: Priority | None) -> Priority | None:
        """Return the priority of a task that goes to another lane than the session's; None: it does not."""
        if priority is None or priority == check_priority(self._priority):
            return None
        if not self._context.runtime.manifest.lanes:
            if not self._told:
                self._told = True
                self._context.notices.warn(without_lanes("a task's priority", priority))
            return None
        return priority

    async def aclose(self) -> None:
        self._context.runtime.load.lanes.pop(self._context.mailbox_id, None)
        async with task_group() as group:
            for link in (*self.links, *self._aside.values()):
                group.start_soon(link.sender.aclose)

    def wake(self) -> None:
        self._wake.set()
        if self._context.tracker.aside:
            self._aside_wake.set()

    @property
    def passed(self) -> int:
        """Every task with a lower sequence number is accepted, or has failed."""
        return min((*(entry.sequence for entry in self._in_flight()), self._context.tracker.next_unsent()))

    @property
    def beyond(self) -> list[tuple[int, int]]:
        """The numbers above `passed` that are accepted, or have failed, as intervals."""
        tracker, in_flight = self._context.tracker, self._in_flight()
        return tracker.sent_beyond(self.passed, in_flight)

    async def until_sent(self) -> None:
        """Return when the broker has the tasks in the outbox, or they failed. Raises as `Session.flush`."""
        lifetime = self._context.lifetime
        lifetime.affinity.check()
        left = [*self._in_flight(), *self._context.tracker.unsent()]
        while left:
            if left[-1].status is not Status.SENDING:
                left.pop()
                continue
            lifetime.check_not_ended()
            await self._outcomes.next_room()

    def _in_flight(self) -> list[Entry]:
        links = (*self.links, *self._aside.values())
        return [entry for link in links for packed in link.sending for entry in packed.entries]

    async def run(self) -> None:
        load, policy, tracker = self._context.runtime.load, self._context.policy, self._context.tracker
        load.join(policy, lambda: tracker.under_way)
        try:
            async with task_group() as group:
                for link in self.links:
                    group.start_soon(self._serve, link)
                group.start_soon(self._serve_aside)
        finally:
            load.leave(policy)

    async def _serve(self, link: SendLink) -> None:
        clock = asyncio.get_running_loop().time
        tracker, policy = self._context.tracker, self._context.policy
        load = self._context.runtime.load
        while True:
            await self._wake.wait()
            load.inform(policy)
            if self._express:
                policy.elsewhere = 0.0
            if (pause := policy.pause(clock(), tracker.queued, tracker.outbox_bytes)) > 0:
                await asyncio.sleep(pause)
            if not self._express:
                await self._gather()
            link.sending = self._take(clock())
            if link.sending:
                await self._send(link)
                link.sending = []
            else:
                self._wake.clear()
            self._outcomes.room.notify()

    async def _serve_aside(self) -> None:
        """Send the tasks with priorities of their own, what goes first before the rest."""
        aside, clock = self._context.tracker.aside, asyncio.get_running_loop().time
        while True:
            await self._aside_wake.wait()
            self._aside_wake.clear()
            while (priority := next((each for each in PRIORITIES if aside.get(each)), None)) is not None:
                link = self._aside.get(priority) or await self._open_aside(priority)
                if link is not None:
                    link.sending = self._take(clock(), priority)
                    if link.sending:
                        await self._send(link)
                    link.sending = []
                self._outcomes.room.notify()

    async def _open_aside(self, priority: Priority) -> SendLink | None:
        """Open a link to a lane of this priority. None when the broker refuses it: then its tasks failed."""
        queue, context = lane_aside(self._context, priority), self._context

        def failed(error: BrokerError) -> None:
            if recovery_of(error) is Recovery.END:
                raise error

        try:
            sender = await until_accepted(lambda: context.runtime.connections.broker.sender(queue), failed)
        except BrokerError as error:
            waiting = context.tracker.aside[priority]
            self._failed([entry for entry in waiting if not entry.done], error)
            waiting.clear()
            return None
        link = self._aside[priority] = self._link(queue, sender)
        return link

    async def _gather(self) -> None:
        """Wait for tasks that are being submitted, while those of other sessions are done."""
        clock, context = asyncio.get_running_loop().time, self._context
        tracker, policy, settings = context.tracker, context.policy, context.settings
        until = clock() + _LONGEST_GATHERING
        while (
            tracker.filling
            and policy.gathers(len(tracker.outbox), tracker.outbox_bytes)
            and tracker.has_room(settings)
            and clock() < until
        ):
            await asyncio.sleep(_GATHERING)
            context.runtime.load.inform(policy)

    async def drain(self) -> None:
        """Return when everything was sent."""
        while self._context.tracker.sending:
            await self._outcomes.room.wait()

    def _take(self, now: float, priority: Priority | None = None) -> list[_Packed]:
        """Take the messages of the next send from the outbox, or from what goes aside."""
        tracker, policy = self._context.tracker, self._context.policy
        queue, links = (tracker.outbox, len(self.links)) if priority is None else (tracker.aside[priority], 1)
        is_last = tracker.end_of_burst and not policy.others_are_busy
        policy.submitted(tracker.next_sequence(), now)
        taken: list[_Packed] = []
        room = MOST_BYTES
        messages = policy.messages(len(queue), tracker.queued, is_last=is_last)
        for _ in range(-(-messages // links)):
            pack = policy.pack(len(queue), tracker.queued, room, is_last=is_last)
            entries, items = tracker.take(pack, now, priority)
            if not entries:
                break
            taken.append(self._packed(entries, items, now))
            room -= len(taken[-1].message.body) + ENVELOPE
        return taken

    def _packed(self, entries: list[Entry], items: list[bytes], now: float) -> _Packed:
        self._messages += 1
        message_id = f"{self._context.incarnation}-{self._messages}"
        body = wire.join("tasks", items)
        return _Packed(entries, OutgoingMessage(body, message_id, time_to_live=_time_to_live(entries, now)))

    async def _send(self, link: SendLink) -> None:
        """Send the messages until the broker takes or refuses them, with the same bytes and ids each time."""
        entries = [entry for packed in link.sending for entry in packed.entries]

        was_away = False

        def failed(error: BrokerError) -> None:
            nonlocal was_away
            if recovery_of(error) is Recovery.END:
                raise error
            was_away = True
            text = f"the broker did not take {len(entries)} tasks yet, trying again: {error}"
            self._context.notices.warn(text)
            link.health.failed(error)

        telemetry = self._context.telemetry
        try:
            if telemetry is None:
                await until_accepted(lambda: self._send_once(link), failed)
            else:
                with telemetry.sending(entries, len(link.sending), link.queue.entity):
                    await until_accepted(lambda: self._send_once(link), failed)
        except BrokerError as error:
            self._failed(entries, error)
        else:
            if was_away:
                link.health.worked()
            self._outcomes.accepted(entries)

    async def _send_once(self, link: SendLink) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        await link.sender.send(*[packed.message for packed in link.sending])
        self._context.policy.sent(clock() - started)
        link.sent += len(link.sending)

    def _failed(self, entries: list[Entry], error: BrokerError) -> None:
        for entry in entries:
            self._outcomes.resolve(entry, submit_failed_result(entry, str(error)))
        self._outcomes.change.notify()


def _time_to_live(entries: list[Entry], now: float) -> float | None:
    """Return after how many seconds none of these may begin any more; None: some may at any time."""
    moments = [entry.begin_by for entry in entries if entry.begin_by is not None]
    if len(moments) < len(entries):
        return None
    return time_to_live(max(moments) - now)

"""The messages that the agent holds, and their task queues.

Every message has a number here, by which the scheduler names it. Its lock is renewed until it is completed,
left, or found lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Protocol

from batchflow.protocol import wire
from node_agent.links.broker_clock import BrokerClock
from node_agent.links.completions import AT_ONCE, Completions
from node_agent.links.lock_renewal import LockRenewal
from node_agent.links.task_queue import Copy, TaskQueue
from node_agent.scheduling.events import (
    Arrived,
    Completed,
    CopyAccepted,
    CopyRefused,
    Feed,
    LeaseGone,
    NothingLeft,
)
from node_agent.scheduling.queue_rotation import QueueRotation

if TYPE_CHECKING:
    from batchflow.ports.broker import Broker, Delivery, QueueRef
    from node_agent.links.problem_report import ProblemReport
    from node_agent.scheduling.fair_turns import FairTurns

logger = logging.getLogger(__name__)


class SettledMessages(Protocol):
    """Remembers the messages whose tasks are all settled, by their ids, also when the agent is killed."""

    def add(self, message_id: str, /) -> None: ...

    def __contains__(self, message_id: str, /) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A message under our lock."""

    queue: TaskQueue
    delivery: Delivery


class IncomingMessages:
    """The agent's task queues, and the messages that it holds of them."""

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[QueueRef],
        *,
        lock_duration: float,
        problems: ProblemReport,
        feed: Feed,
        settled: SettledMessages,
        opened: Callable[[], None],
        turns: FairTurns | None = None,
    ) -> None:
        """`settled`: the messages whose tasks were settled here, also by the agent before this one.

        `opened` is called when a link is open. `turns`: of the lanes, in a pool that has them.
        """
        self._settled = settled
        self.clock = BrokerClock()
        self.completions = Completions(self._complete)
        self._feed = feed
        self._lock_duration = lock_duration
        self._renewals = LockRenewal(lock_duration, renew=self._renew, lost=self._lock_lost)
        self._queues = [
            TaskQueue(
                broker,
                queue,
                self.clock,
                problems,
                arrived=self._arrived,
                nothing_left=self._nothing_left,
                copied=self._copied,
                opened=opened,
            )
            for queue in queues
        ]
        self._held: dict[int, _Held] = {}
        self._numbers = count(1)
        self._turns = turns
        self._rotation = turns or QueueRotation(len(queues))
        self._listening: frozenset[int] = frozenset()
        self._turn_timer: asyncio.TimerHandle | None = None
        self._looking = 0
        """How many queues are looked at for the last time."""

    def services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the services of this part, by name. They run as long as the agent."""
        services: dict[str, Callable[[], Awaitable[None]]] = {"renewals": self._renewals.run}
        for index, queue in enumerate(self._queues):
            services |= {f"receive {index}": queue.receive, f"copies {index}": queue.copy}
        for index in range(AT_ONCE):
            services[f"complete {index}"] = self.completions.run
        return services

    def pull(self, wanted: bool, *, express: bool = False) -> None:
        """Receive messages from now on, or no more; `express`: those of interactive lanes all the same."""
        if self._turns is None:
            self._rotation.want(wanted, time.monotonic())
        else:
            self._turns.want(wanted, time.monotonic(), express=express)
        self._listen()

    def complete(self, number: int) -> None:
        """Remove a message whose tasks are all settled, a moment later; see `Completions`."""
        if (held := self._held.get(number)) is not None:
            self._settled.add(held.delivery.message_id)
        self.completions.add(number)

    def forget(self, number: int) -> None:
        """Leave a message to its lock."""
        self._renewals.remove(number)
        self._held.pop(number, None)

    def hand_back(self, number: int, copy: Copy) -> None:
        """Send a copy of a task into the queue that its message came from: only there duplicate detection
        knows a copy that is made again."""
        self._held[number].queue.hand_back(copy)

    def look_once_more(self) -> None:
        """Look at every queue for the last time."""
        self._looking = len(self._queues)
        for queue in self._queues:
            queue.look_once_more()

    def close(self) -> None:
        """Stop the timers."""
        if self._turn_timer is not None:
            self._turn_timer.cancel()
        self.completions.close()

    def _arrived(self, queue: TaskQueue, delivery: Delivery, tasks: list[wire.TaskItem]) -> None:
        if self._looking:
            self._looking = 0
            for each in self._queues:
                each.pull(False)  # the last look is over, on every queue
        lane = self._queues.index(queue)
        self._rotation.arrived(lane, time.monotonic())
        number = next(self._numbers)
        self._held[number] = _Held(queue, delivery)
        self._renewals.add(number)
        age = self.clock.age(delivery.enqueued_at)
        at_lock = self.clock.age_at_lock(delivery.enqueued_at, delivery.locked_until, self._lock_duration)
        redelivered = delivery.delivery_count > 0
        if redelivered and delivery.message_id in self._settled:
            logger.info("message_was_settled", extra={"message_id": delivery.message_id})
            tasks = []
        self._feed(
            Arrived(
                delivery=number,
                tasks=tasks,
                redelivered=redelivered,
                age=age,
                lane=lane,
                age_at_lock=at_lock,
            )
        )
        # Only now: the scheduler has counted the message for its lane, and may want no more of them.
        self._listen()

    def _nothing_left(self) -> None:
        self._looking -= 1
        if not self._looking:
            self._feed(NothingLeft())

    async def _renew(self, number: int) -> None:
        held = self._held[number]
        await held.queue.renew(held.delivery)

    def _lock_lost(self, number: int) -> None:
        self._feed(LeaseGone(number))

    async def _complete(self, number: int) -> None:
        held = self._held[number]
        done = await held.queue.complete(held.delivery, partial(self._renewals.__contains__, number))
        self.forget(number)
        self._feed(Completed(number) if done else LeaseGone(number))

    def _copied(self, task: int, accepted: bool) -> None:
        self._feed(CopyAccepted(task) if accepted else CopyRefused(task))
        self.completions.flush()

    def _listen(self) -> None:
        """Listen to the queues whose turn it is."""
        listening = self._rotation.listening()
        for index in listening ^ self._listening:
            self._queues[index].pull(index in listening)
        self._listening = listening
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
        if (deadline := self._rotation.next_deadline()) is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._turn_timer = asyncio.get_running_loop().call_later(delay, self._pass_turn)

    def _pass_turn(self) -> None:
        self._rotation.advance(time.monotonic())
        self._listen()

"""The messages under the agent's locks, and the tasks that were settled lately. Pure: no I/O, no clock.

A message is completed when each of its tasks is settled, and left when its lock was lost. While a message
is split, its tasks are on their way back to the queue alone, and no other task begins.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from node_agent.scheduling.events import Complete, Leave
from node_agent.scheduling.state import Identity, Message, Task

_REMEMBERED: Final = 8192
"""Settled tasks that are remembered."""


@dataclass(slots=True)
class HeldMessages:
    """One agent's messages, by their deliveries."""

    by_delivery: dict[int, Message] = field(default_factory=dict)
    _settled: OrderedDict[Identity, None] = field(default_factory=OrderedDict)
    """Tasks settled lately, the newest last."""
    _splitting: set[int] = field(default_factory=set)
    """Deliveries of the messages that are being split."""

    def __bool__(self) -> bool:
        return bool(self.by_delivery)

    @property
    def is_splitting(self) -> bool:
        """Whether a message is being split."""
        return bool(self._splitting)

    def add(self, message: Message) -> None:
        """Hold a message that has arrived."""
        self.by_delivery[message.delivery] = message

    def split(self, message: Message) -> None:
        """Note that the tasks of this message are handed back alone."""
        if not message.lost:
            self._splitting.add(message.delivery)

    def stop_splitting(self, message: Message) -> None:
        """Note that one of its tasks stays here after all."""
        self._splitting.discard(message.delivery)

    def was_settled(self, task: Identity) -> bool:
        """Return whether this task was settled here lately."""
        return task in self._settled

    def adopt(self, task: Task, message: Message) -> Complete | Leave | None:
        """Count a task that came again to its new message. The former message's lock is lost."""
        former, task.message = task.message, message
        former.lost = True
        self._splitting.discard(former.delivery)
        return self._close_one(former)

    def settle(self, task: Task) -> Complete | Leave | None:
        """Count a task as settled; what is to be done about its message then."""
        self._settled[task.identity] = None
        if len(self._settled) > _REMEMBERED:
            self._settled.popitem(last=False)
        return self._close_one(task.message)

    def abandon(self, task: Task) -> Complete | Leave | None:
        """Leave a task to its lock: another agent will run it."""
        task.message.lost = True
        return self._close_one(task.message)

    def completed(self, delivery: int) -> None:
        """Forget a message that is gone from its queue."""
        self.by_delivery.pop(delivery, None)
        self._splitting.discard(delivery)

    def lost(self, delivery: int) -> None:
        """Note that the lock of a message ran out."""
        self._splitting.discard(delivery)
        if (message := self.by_delivery.get(delivery)) is not None:
            message.lost = True
            if not message.open:
                del self.by_delivery[delivery]

    def _close_one(self, message: Message) -> Complete | Leave | None:
        """Count one task less; with the last one the message is removed, where it is still ours."""
        message.open -= 1
        if message.open:
            return None
        if not message.lost:
            return Complete(message.delivery)
        self._splitting.discard(message.delivery)
        del self.by_delivery[message.delivery]
        return Leave(message.delivery)

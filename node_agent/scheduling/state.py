"""What an agent holds: messages, their tasks, and the slots that these are placed in. Plain records.

States of a task: waiting -> placed (in a slot) -> sending or copying -> settled; a stopped one goes from
placed back to waiting. States of a slot: free -> preparing -> (checking) -> running -> free; stopping is
running or preparing with a stop on its way. `node_agent.scheduling.scheduler` has the rules.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from node_agent.scheduling.events import Session

Identity = tuple[str, int, int]


class TaskState(Enum):
    WAITING = auto()
    PLACED = auto()
    SENDING = auto()
    COPYING = auto()
    SETTLED = auto()


class SlotPhase(Enum):
    FREE = auto()
    PREPARING = auto()
    CHECKING = auto()
    RUNNING = auto()


@dataclass(slots=True, eq=False)
class Task:
    number: int
    item: TaskItem
    message: Message
    session: Session
    command: str
    """By what its duration is known."""
    state: TaskState = TaskState.WAITING
    slot: SlotState | None = None
    """Where it is placed, or was last."""
    alone: bool = False
    """Runs only while nothing else does."""
    failure: Failure | None = None
    """Set when a retry is on its way: what to report if it cannot leave."""

    @classmethod
    def of(cls, number: int, item: TaskItem, message: Message) -> Self:
        return cls(number, item, message, (item.job, item.client), f"{item.bundle} {item.command}")

    @property
    def identity(self) -> Identity:
        return identity(self.item)


@dataclass(slots=True, eq=False)
class Message:
    delivery: int
    young_until: float
    open: int
    """How many of its tasks are not settled."""
    lost: bool = False


@dataclass(slots=True, eq=False)
class SlotState:
    index: int
    phase: SlotPhase = SlotPhase.FREE
    tasks: deque[Task] = field(default_factory=deque)
    """Those that have not ended; the first one is what runs."""
    moved_at: float = 0.0
    """When the first one began."""
    stopping: bool = False
    shared: bool = False
    """Whether it was given several tasks, all of them known to be short."""
    followers: int = 0
    """How many of them it was given after it had begun."""
    latest: int = 0
    """How many of these came last, together."""
    recalled: bool = False
    """Whether what stands behind its first task was asked back."""
    bundle: str | None = None
    """Of what ran last."""


def identity(item: TaskItem) -> Identity:
    """A copy that was handed back is another one."""
    return (item.uid, item.attempt, item.hop)


def following(slot: SlotState) -> int:
    """How many tasks stand in the slot that came after it had begun; none when the latest are under way."""
    standing = len(slot.tasks)
    return 0 if standing <= slot.latest else min(slot.followers, standing - 1)


def can_recall(slot: SlotState) -> bool:
    """Whether tasks stand behind the first one, and may be asked back."""
    free = slot.phase is SlotPhase.RUNNING and not slot.recalled and not slot.stopping
    return free and slot.shared and len(slot.tasks) > 1


def place(tasks: list[Task], slot: SlotState) -> tuple[int, ...]:
    """Their numbers."""
    slot.tasks.extend(tasks)
    for task in tasks:
        task.state, task.slot = TaskState.PLACED, slot
    return tuple(task.number for task in tasks)


def alike(first: Task, other: Task) -> bool:
    return other.message is first.message and other.item.bundle == first.item.bundle and not other.alone

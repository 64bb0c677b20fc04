"""What an agent holds: messages, their tasks, and the slots that these are placed in. Plain records.

`TASK_TRANSITIONS` and `SLOT_TRANSITIONS` say which states a task and a slot go through. What is not in
these tables does not happen: an event that has no row raises KeyError. `node_agent.scheduling.scheduler`
has the rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Final, Self

from batchflow.protocol.needs import Needs
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from node_agent.scheduling.events import Session

Identity = tuple[str, int, int]
Code = tuple[str, str | None, str | None, str | None]
"""What a task runs with: the hashes of its bundle, its function by value and its environment, and the blob of
its environment variables."""


class TaskState(StrEnum):
    """Where a task is, from its arrival until it is settled."""

    WAITING = auto()
    PLACED = auto()
    """In a slot."""
    SENDING = auto()
    """Its result is on its way to the broker."""
    COPYING = auto()
    """A copy of it is on its way to the queue."""
    SETTLED = auto()
    """The broker has its result or its copy, or its lock is left to run out."""


class TaskEvent(StrEnum):
    """What changes the state of a task."""

    PLACE = auto()
    """A slot gets it."""
    RETURN = auto()
    """Its slot was freed, or gave it back, before it ended."""
    CONCLUDE = auto()
    """It has an outcome."""
    HAND_BACK = auto()
    """A copy of it goes to the queue."""
    KEEP = auto()
    """The broker refused the copy, so it runs here."""
    SETTLE = auto()
    """Nothing more is done about it."""


TASK_TRANSITIONS: Final[Mapping[tuple[TaskState, TaskEvent], TaskState]] = {
    (TaskState.WAITING, TaskEvent.PLACE): TaskState.PLACED,
    (TaskState.WAITING, TaskEvent.CONCLUDE): TaskState.SENDING,
    (TaskState.WAITING, TaskEvent.HAND_BACK): TaskState.COPYING,
    (TaskState.PLACED, TaskEvent.RETURN): TaskState.WAITING,
    (TaskState.PLACED, TaskEvent.CONCLUDE): TaskState.SENDING,
    (TaskState.PLACED, TaskEvent.HAND_BACK): TaskState.COPYING,
    (TaskState.SENDING, TaskEvent.SETTLE): TaskState.SETTLED,
    (TaskState.COPYING, TaskEvent.KEEP): TaskState.WAITING,
    (TaskState.COPYING, TaskEvent.CONCLUDE): TaskState.SENDING,
    (TaskState.COPYING, TaskEvent.SETTLE): TaskState.SETTLED,
}


class SlotPhase(StrEnum):
    """What a slot does."""

    FREE = auto()
    PREPARING = auto()
    """What its tasks need is fetched."""
    CHECKING = auto()
    """Its tasks wait until it is known whether they are cancelled."""
    RUNNING = auto()
    RECALLED = auto()
    """Running; what stood behind the first task was asked back, and nothing follows any more."""
    STOPPING = auto()
    """Running, with a stop on its way."""
    ABORTING = auto()
    """Preparing or checking, with a stop on its way."""


class SlotEvent(StrEnum):
    """What changes the phase of a slot."""

    PREPARE = auto()
    """It gets its first tasks."""
    PREPARED = auto()
    START = auto()
    FOLLOW = auto()
    """It gets more tasks."""
    RECALL = auto()
    STOP = auto()
    FREE = auto()
    """Nothing runs in it any more."""


SLOT_TRANSITIONS: Final[Mapping[tuple[SlotPhase, SlotEvent], SlotPhase]] = {
    (SlotPhase.FREE, SlotEvent.PREPARE): SlotPhase.PREPARING,
    (SlotPhase.PREPARING, SlotEvent.PREPARED): SlotPhase.CHECKING,
    (SlotPhase.PREPARING, SlotEvent.STOP): SlotPhase.ABORTING,
    (SlotPhase.PREPARING, SlotEvent.FREE): SlotPhase.FREE,
    (SlotPhase.CHECKING, SlotEvent.START): SlotPhase.RUNNING,
    (SlotPhase.CHECKING, SlotEvent.STOP): SlotPhase.ABORTING,
    (SlotPhase.RUNNING, SlotEvent.FOLLOW): SlotPhase.RUNNING,
    (SlotPhase.RUNNING, SlotEvent.RECALL): SlotPhase.RECALLED,
    (SlotPhase.RUNNING, SlotEvent.STOP): SlotPhase.STOPPING,
    (SlotPhase.RUNNING, SlotEvent.FREE): SlotPhase.FREE,
    (SlotPhase.RECALLED, SlotEvent.STOP): SlotPhase.STOPPING,
    (SlotPhase.RECALLED, SlotEvent.FREE): SlotPhase.FREE,
    (SlotPhase.STOPPING, SlotEvent.FREE): SlotPhase.FREE,
    (SlotPhase.ABORTING, SlotEvent.PREPARED): SlotPhase.ABORTING,
    (SlotPhase.ABORTING, SlotEvent.FREE): SlotPhase.FREE,
}

AT_WORK: Final = (SlotPhase.RUNNING, SlotPhase.RECALLED)
"""The phases of a slot whose first task runs, with no stop on its way."""

BEGUN: Final = (*AT_WORK, SlotPhase.STOPPING)
"""The phases of a slot whose first task runs."""


@dataclass(slots=True, eq=False)
class Task:
    """One task that the agent holds."""

    number: int
    item: TaskItem
    message: Message
    session: Session
    code: Code
    command: str
    """The key under which its duration is learned."""
    state: TaskState = TaskState.WAITING
    slot: SlotState | None = None
    """Where it is placed, or was last."""
    alone: bool = False
    """Runs only while nothing else does."""
    start_by: float = float("-inf")
    """Until when it may begin in its slot, by what was known of its cancellation when it was let go."""
    expires_at: float = float("inf")
    """Until when it may begin at all; infinite once it has begun."""
    rank: int = 1
    """What is lower goes first: the place of its priority; all have the same in a pool without lanes."""
    charged: float = 0.0
    """Seconds that are counted for its lane, and that it has not taken yet."""
    needs: Needs | None = None
    """What it requires, if that is more than one slot of any node."""
    failure: Failure | None = None
    """Set when a retry is on its way: what to report if it cannot leave."""
    outcome: object = None
    """What its slot reported, once it has ended."""

    @classmethod
    def of(cls, number: int, item: TaskItem, message: Message) -> Self:
        """Make the record of a task that has arrived."""
        code = (item.bundle, item.pickle, item.environment, item.variables)
        return cls(number, item, message, (item.job, item.client), code, f"{item.bundle} {item.command}")

    @property
    def identity(self) -> Identity:
        """What tells it from every other task."""
        return identity(self.item)

    @property
    def young_until(self) -> float:
        """Until when it may start although its cancellation is not known. A copy is older than its
        message."""
        return float("-inf") if self.item.hop else self.message.young_until

    def move(self, event: TaskEvent) -> None:
        """Go to the state that the table has for this event."""
        self.state = TASK_TRANSITIONS[self.state, event]


@dataclass(slots=True, eq=False)
class Message:
    """One message under the agent's lock."""

    delivery: int
    young_until: float
    open: int
    """How many of its tasks are not settled."""
    lost: bool = False
    lane: int = 0
    """The task queue that it came from, by its index."""


@dataclass(slots=True, eq=False)
class SlotState:
    """What the scheduler knows of one slot."""

    index: int
    phase: SlotPhase = SlotPhase.FREE
    tasks: deque[Task] = field(default_factory=deque)
    """Those that have not ended; the first one is what runs."""
    moved_at: float = 0.0
    """When the first one began."""
    shared: bool = False
    """Whether it was given several tasks, all of them known to be short."""
    followers: int = 0
    """How many of them it was given after it had begun."""
    latest: int = 0
    """How many of these came last, together."""
    code: Code | None = None
    session: Session | None = None
    """Of what ran last."""
    unable: bool = False
    """Whether the node could not run what it was given last."""
    failures: int = 0
    """How many times in a row that was so."""

    def move(self, event: SlotEvent) -> None:
        """Go to the phase that the table has for this event."""
        self.phase = SLOT_TRANSITIONS[self.phase, event]

    def place(self, tasks: list[Task]) -> tuple[int, ...]:
        """Take these tasks, behind those that it has; return their numbers."""
        self.tasks.extend(tasks)
        for task in tasks:
            task.move(TaskEvent.PLACE)
            task.slot = self
        return tuple([task.number for task in tasks])


def identity(item: TaskItem) -> Identity:
    """Return what tells a task from every other; a copy that was handed back is another one."""
    return (item.uid, item.attempt, item.hop)


def following(slot: SlotState) -> int:
    """Count the tasks in the slot that came after it had begun; none when the latest are under way."""
    standing = len(slot.tasks)
    return 0 if standing <= slot.latest else min(slot.followers, standing - 1)


def can_recall(slot: SlotState) -> bool:
    """Return whether tasks stand behind the first one, and may be asked back."""
    return slot.phase is SlotPhase.RUNNING and slot.shared and len(slot.tasks) > 1


def alike(first: Task, other: Task) -> bool:
    """Return whether both may share a slot: they are of one message, run the same code, and not alone."""
    if other.message is not first.message or other.alone or other.needs is not None:
        return False
    return other.code == first.code

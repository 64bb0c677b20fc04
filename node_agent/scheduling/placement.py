"""Which waiting task goes to which slot. Pure: no I/O, no clock.

Rules:

- The tasks of a message run in the order of their message. Several share a slot when they are known to be
  short. A slot that holds the same bundle already is taken first, then one that ran the same session.
- While every slot is busy, waiting tasks follow what runs in a slot, when all of it together is a matter of
  a moment. The slot goes on without asking.
- A task that runs alone waits until every slot is free, and lets no other task pass.
- A task that requires more than a slot has one for itself, and others stay free for it (`reservations`). No
  other task passes it: it is handed back when it has waited for too long.

`load_policy` says what short and a moment are.

Invariants: a task is placed in one slot at most; a slot has tasks only while it is not free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from batchflow.protocol.needs import KnownNode
from batchflow.protocol.wire import TaskItem
from node_agent.scheduling.cancellation import CancellationCache
from node_agent.scheduling.events import Command, Follow, HandBack, Prepare
from node_agent.scheduling.load_policy import LoadPolicy
from node_agent.scheduling.reservations import Reservations, reserved
from node_agent.scheduling.state import BEGUN, SlotEvent, SlotPhase, SlotState, Task, TaskEvent, alike

MOST_FOLLOWING: Final = 500
"""Tasks that may follow in a slot before it is free once."""


@dataclass(slots=True)
class Placement:
    """The tasks that wait, and the slots that they are placed in."""

    count: int
    """How many slots there are."""
    cancellations: CancellationCache
    node: KnownNode | None = None
    """What the node has; None: so many slots, and nothing else that is known."""
    reservations: Reservations = field(init=False)
    load: LoadPolicy = field(init=False)
    slots: list[SlotState] = field(init=False)
    waiting: deque[Task] = field(default_factory=deque)
    busy: int = 0
    """How many slots are not free."""
    loners: int = 0
    """How many of the tasks that the agent holds run alone."""

    def __post_init__(self) -> None:
        self.slots = [SlotState(index) for index in range(self.count)]
        self.load = LoadPolicy(self.count)
        self.reservations = Reservations(self.node or KnownNode(self.count))

    def add(self, task: Task) -> None:
        """Let a task wait for a slot, behind all others that do not stand behind it by their rank."""
        task.needs = reserved(task.item)
        if not self.waiting or self.waiting[-1].rank <= task.rank:
            self.waiting.append(task)
        else:
            self.waiting.insert(sum(each.rank <= task.rank for each in self.waiting), task)

    def assign(self, now: float) -> list[Command]:
        """Place the tasks that can be placed now."""
        commands: list[Command] = []
        while self.waiting and self.reservations.fits(self.waiting[0], self.open) and self._may_place():
            tasks = self._take_chunk()
            slot = self._free_slot(tasks[0])
            self.reservations.take(slot.index, tasks[0])
            slot.move(SlotEvent.PREPARE)
            slot.code, slot.session, slot.moved_at = tasks[0].code, tasks[0].session, now
            slot.shared, slot.followers, slot.latest, slot.unable = len(tasks) > 1, 0, 0, False
            self.busy += 1
            commands.append(Prepare(slot.index, slot.place(tasks)))
        if self.waiting and self._may_place():
            commands += self._let_follow(now)
        return commands

    def free(self, slot: SlotState) -> list[Task]:
        """Free the slot; return its tasks that have not ended."""
        left = list(slot.tasks)
        slot.tasks.clear()
        slot.move(SlotEvent.FREE)
        self.reservations.release(slot.index)
        self.busy -= 1
        return left

    def put_back(self, task: Task) -> None:
        """Let a task that was placed wait again, before all others of its rank."""
        task.move(TaskEvent.RETURN)
        if not self.waiting or self.waiting[0].rank >= task.rank:
            self.waiting.appendleft(task)
        else:
            self.waiting.insert(sum(each.rank < task.rank for each in self.waiting), task)

    def drop(self, tasks: Iterable[Task]) -> None:
        """Let these wait no longer."""
        for task in tasks:
            self.waiting.remove(task)

    def take_excess(self, kept: int) -> list[Task]:
        """Let all but the first `kept` tasks wait no longer; return those, in their order."""
        excess = list(islice(self.waiting, kept, None))
        for _ in excess:
            self.waiting.pop()
        return excess

    def has_loner(self) -> bool:
        """Return whether a task runs alone, or is the next to."""
        if self.waiting and self.waiting[0].alone:
            return True
        return self.loners > 0 and any(task.alone for slot in self.slots for task in slot.tasks)

    def straggler_deadline(self) -> float | None:
        """Return when every slot will have run one task for too long; None when one does something else."""
        if not self.is_full():
            return None
        busy = [slot for slot in self.slots if slot.phase is not SlotPhase.FREE]
        return self.load.straggler_deadline(busy, len(self.waiting))

    @property
    def occupied(self) -> int:
        """How many slots are busy, or kept free for a task that requires several."""
        return self.busy + self.reservations.extra

    @property
    def open(self) -> int:
        """How many slots can be had."""
        return self.count - self.occupied

    def is_full(self) -> bool:
        """Return whether no slot can be had."""
        return self.open == 0

    def is_message_welcome(self, *, stuck: bool) -> bool:
        """Return whether one more message is worth having.

        `stuck`: every slot has run one task for too long.
        """
        if self.waiting:
            return False
        return not self.is_full() or (not stuck and self.load.is_message_worth_having(self.slots))

    def held_up(self, now: float) -> HandBack | None:
        """Let the next task wait no longer if it has held up others for too long; return its copy."""
        task = self.waiting[0] if self.waiting else None
        copy = self.reservations.held_up(task, self.open, now)
        if copy is not None:
            self.waiting.popleft()
        return copy

    def running(self) -> list[tuple[TaskItem, float]]:
        """Return what runs at this moment, and since when."""
        busy = (slot for slot in self.slots if slot.phase in BEGUN and slot.tasks)
        return [(slot.tasks[0].item, slot.moved_at) for slot in busy]

    @property
    def hold(self) -> float:
        """Seconds that a result waits for others; 0 when none is under way that comes within them."""
        return self.load.hold(self.slots, len(self.waiting))

    def _let_follow(self, now: float) -> list[Command]:
        """Spread what waits over the slots in which it may follow."""
        commands: list[Command] = []
        slots = sorted(self._leading(self.waiting[0]), key=lambda slot: self.load.work(slot.tasks))
        for index, slot in enumerate(slots):
            tasks = self._take_followers(slot, -(-len(self.waiting) // (len(slots) - index)), now)
            if not tasks:
                break
            slot.move(SlotEvent.FOLLOW)
            slot.shared, slot.latest = True, len(tasks)
            slot.followers += len(tasks)
            commands.append(Follow(slot.index, slot.place(tasks)))
        return commands

    def _leading(self, task: Task) -> list[SlotState]:
        """Return the slots in which a task may follow what runs."""
        return [
            slot
            for slot in self.slots
            if slot.phase is SlotPhase.RUNNING
            and slot.tasks
            and slot.index not in self.reservations.held
            and slot.code == task.code
            and slot.followers < MOST_FOLLOWING
        ]

    def _take_followers(self, slot: SlotState, most: int, now: float) -> list[Task]:
        """Take the next tasks, if they may follow what runs in this slot. All of them follow or none, so
        that a pack does not trickle in."""
        tasks = list(islice(self.waiting, most))
        if not self.load.may_follow(tasks, slot) or not all(
            self._may_follow(task, slot, now) for task in tasks
        ):
            return []
        for _ in tasks:
            self.waiting.popleft()
        return tasks

    def _may_follow(self, task: Task, slot: SlotState, now: float) -> bool:
        """Return whether a task may follow: nothing is fetched for it, and it waits for no document."""
        if task.alone or task.needs is not None:
            return False
        if task.code != slot.code or not task.item.carries_arguments:
            return False
        return self.cancellations.clearance(task, now) == "go"

    def _may_place(self) -> bool:
        """Return whether the next task may be placed beside what runs."""
        if not self.busy:
            return True
        return not self.waiting[0].alone and not self.has_loner()

    def _take_chunk(self) -> list[Task]:
        """Take the next tasks that share a slot: of one message and bundle, as many as are known short."""
        first = self.waiting.popleft()
        chunk = [first]
        if not self.waiting or first.alone or first.needs is not None:
            return chunk
        pack = self.load.pack(len(self.waiting) + 1, self.open)
        pack.admits(first.command, 0)
        while self.waiting and alike(first, self.waiting[0]):
            if not pack.admits(self.waiting[0].command, 0):
                break
            chunk.append(self.waiting.popleft())
        return chunk

    def _free_slot(self, task: Task) -> SlotState:
        """Return the free slot that needs least for a task: the last to have run its session, its code."""
        free = [slot for slot in self.slots if slot.phase is SlotPhase.FREE]
        code, session = task.code, task.session
        return max(free, key=lambda slot: (slot.session == session) + 2 * (slot.code == code))

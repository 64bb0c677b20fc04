"""The ways out of the agent: a result or a copy for each task, and then the end of its message.

A task's result is accepted by the broker before its message is completed. A message is completed when each
of its tasks has an accepted result or an accepted copy. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf

from batchflow.protocol.wire import TaskItem
from node_agent.scheduling.crash_history import CrashCount
from node_agent.scheduling.events import (
    Command,
    ForgetCrashes,
    HandBack,
    Recall,
    SendResult,
    Session,
    Stop,
    Verdict,
)
from node_agent.scheduling.expiry import TOO_LATE, Expiries, is_expired
from node_agent.scheduling.fair_turns import FairTurns
from node_agent.scheduling.held_messages import HeldMessages
from node_agent.scheduling.placement import Placement
from node_agent.scheduling.state import (
    AT_WORK,
    Message,
    SlotEvent,
    SlotPhase,
    SlotState,
    Task,
    TaskEvent,
    TaskState,
    can_recall,
    identity,
)


@dataclass(slots=True)
class Settlement:
    """The tasks that are not settled, and the messages that hold them."""

    placement: Placement
    crashes: dict[str, CrashCount]
    """What this boot of the node remembers, by uid."""
    commands: list[Command] = field(default_factory=list)
    """What is to be done, in this order."""
    messages: HeldMessages = field(default_factory=HeldMessages)
    tasks: dict[int, Task] = field(default_factory=dict)
    """By their numbers."""
    completed: int = 0
    """Tasks that were settled with a result."""
    now: float = 0.0
    """The moment of the latest events."""
    expiries: Expiries = field(default_factory=Expiries)
    turns: FairTurns | None = None
    """What each lane has had of the slots; None in a pool without lanes."""
    _urgent: int = 0
    """Results of interactive tasks that the broker does not have yet."""
    _next_number: int = 0

    def take_commands(self) -> list[Command]:
        """Return what is to be done, and forget it."""
        commands, self.commands = self.commands, []
        return commands

    def take_in(self, item: TaskItem, message: Message, now: float, age: float) -> Task:
        """Hold a task that has arrived. `age`: seconds that its message was old when the broker locked it."""
        task = Task.of(self._next_number, item, message)
        self._next_number += 1
        self.tasks[task.number] = task
        self.placement.cancellations.hold(task.session, now)
        self.expiries.take_in(task, age, now)
        if self.turns is not None:
            task.rank = self.turns.ranks[message.lane]
            task.charged = self.placement.load.guess(task)
            self.turns.charge(message.lane, task.charged)
        return task

    def start_by(self, numbers: Iterable[int]) -> float:
        """Return until when these tasks, which their slot was told to run, may begin.

        A slot gives back what has not begun by then: a `Freed` without an `Ended`.
        """
        return min([self.tasks[number].start_by for number in numbers])

    def knows(self, item: TaskItem, message: Message) -> bool:
        """Return whether a redelivered task needs no run: it was settled here before, or is still held.

        The former message's lock is lost then, whether this is known yet or not.
        """
        key = identity(item)
        if self.messages.was_settled(key):
            message.open -= 1
            return True
        for task in self.tasks.values():
            if task.identity == key:
                self._note(self.messages.adopt(task, message))
                return True
        return False

    def conclude(self, task: Task, verdict: Verdict | None) -> None:
        """Send the result of a task: the verdict, or else what its slot reported."""
        self._take_back_charge(task)
        self._release(task)
        task.move(TaskEvent.CONCLUDE)
        outcome = task.outcome if verdict is None else None
        self._urgent += task.rank == 0
        self.commands.append(SendResult(task.number, verdict, outcome))

    def learn(self, task: Task, duration: float) -> None:
        """Note that a task took so many seconds of its slot."""
        self.placement.load.learn(task, duration)
        self._take_back_charge(task, duration * self.placement.reservations.width(task))

    def _take_back_charge(self, task: Task, duration: float = 0.0) -> None:
        """Count what a task has taken, in place of what it was taken for."""
        if self.turns is not None:
            self.turns.charge(task.message.lane, duration - task.charged)
            task.charged = 0.0

    @property
    def hold(self) -> float:
        """Seconds that results wait for others: none while one of an interactive task is there."""
        return 0.0 if self._urgent else self.placement.hold

    @property
    def wants_express(self) -> bool:
        """Whether an interactive task is welcome while nothing else is, as it waits for a short one."""
        if self.turns is None or not self.placement.load.is_short:
            return False
        waiting = self.placement.waiting
        return not waiting or waiting[0].rank > 0

    def make_way(self) -> None:
        """Take back what stands behind running tasks, for interactive tasks that wait."""
        if self.turns is None or not self.placement.is_full():
            return
        slots = self.placement.slots
        due = sum(task.rank == 0 for task in islice(self.placement.waiting, len(slots)))
        due -= sum(slot.phase is SlotPhase.RECALLED for slot in slots)
        for slot in slots:
            if due > 0 and can_recall(slot) and slot.tasks[-1].rank > 0:
                self.recall(slot)
                due -= 1

    def place(self, now: float) -> None:
        """Place what waits, and hand back what has held it up for too long. While a message is split nothing
        begins."""
        self._assign(now)
        while (copy := self.placement.held_up(now)) is not None:
            self.hand_back(self.tasks[copy.task], copy)
            self._assign(now)

    def _assign(self, now: float) -> None:
        if self.placement.waiting and not self.messages.is_splitting:
            self.commands += self.placement.assign(now)

    def drop_cancelled(self, session: Session, verdict: Verdict) -> None:
        """End what waits and is cancelled, stop what runs, take back what stands behind it in its slot."""
        placement, cancellations = self.placement, self.placement.cancellations
        covered = [
            task for task in placement.waiting if task.session == session and cancellations.covers(task)
        ]
        placement.drop(covered)
        for task in covered:
            self.conclude(task, verdict)
        for slot in placement.slots:
            if slot.tasks and slot.tasks[0].session == session:
                self.stop_if_cancelled(slot)
                self.recall_if_cancelled(slot)

    def hand_back(self, task: Task, command: HandBack) -> None:
        """Send a copy of a task to the queue."""
        if command.reason == "isolation":
            self.messages.split(task.message)
        if task.expires_at < inf:
            command = replace(command, expires=max(0.0, task.expires_at - self.now - command.delay))
        self._take_back_charge(task)
        self._release(task)
        task.move(TaskEvent.HAND_BACK)
        self.commands.append(command)

    def keep(self, task: Task, now: float) -> None:
        """Let a task run here after all, for the broker refused its copy."""
        self.messages.stop_splitting(task.message)
        self.placement.cancellations.hold(task.session, now)
        task.move(TaskEvent.KEEP)
        self.placement.add(task)
        self.expiries.watch(task)

    def accept_result(self, task: Task) -> None:
        """Settle a task whose result the broker has."""
        self.completed += 1
        self._urgent -= task.rank == 0
        self.forget_crashes(task)
        self.settle(task)

    def settle(self, task: Task) -> None:
        """Settle a task whose result or copy the broker has."""
        self._drop(task)
        self._note(self.messages.settle(task))

    def refuse(self, refusal: Callable[[TaskItem], Verdict | None]) -> None:
        """Let nothing begin that is refused. What runs goes on."""
        for task in list(self.placement.waiting):
            if (verdict := refusal(task.item)) is not None:
                self.placement.drop([task])
                self.conclude(task, verdict)
        for slot in self.placement.slots:
            if slot.tasks and refusal(slot.tasks[-1].item) is not None:
                if slot.phase in (SlotPhase.PREPARING, SlotPhase.CHECKING):
                    self.stop(slot)
                elif can_recall(slot):
                    self.recall(slot)

    def lateness(self, task: Task) -> Verdict | None:
        """Return the outcome of a task that has not begun, and is too late; None: it is in time."""
        return TOO_LATE if is_expired(task, self.now) else None

    def end_late(self, slot: SlotState) -> None:
        """End those tasks of a slot in which none has begun that are too late."""
        for task in [each for each in slot.tasks if is_expired(each, self.now)]:
            slot.tasks.remove(task)
            self.conclude(task, TOO_LATE)

    def expire(self, now: float) -> None:
        """End the tasks whose time is over, as far as they have not begun."""
        self.expiries.prune(self.tasks)
        for number in self.expiries.due(now):
            task = self.tasks.get(number)
            if task is None or not is_expired(task, now):
                continue
            if task.state is TaskState.WAITING:
                self.placement.drop([task])
                self.conclude(task, TOO_LATE)
            elif task.state is TaskState.PLACED and (slot := task.slot) is not None:
                if slot.phase in (SlotPhase.PREPARING, SlotPhase.CHECKING):
                    self.stop(slot)
                elif task is not slot.tasks[0] and can_recall(slot):
                    self.recall(slot)

    def take_out(self, slot: SlotState, numbers: Iterable[int]) -> list[Task]:
        """Return tasks that a slot has given back, after taking them out of it."""
        tasks = [self.tasks[number] for number in numbers]
        for task in tasks:
            slot.tasks.remove(task)
        return tasks

    def stop(self, slot: SlotState) -> None:
        """Kill what runs in a slot, or let nothing begin in it."""
        slot.move(SlotEvent.STOP)
        self.commands.append(Stop(slot.index))

    def recall(self, slot: SlotState) -> None:
        """Take back what has not begun in a slot."""
        slot.move(SlotEvent.RECALL)
        self.commands.append(Recall(slot.index))

    def stop_if_cancelled(self, slot: SlotState) -> None:
        """Kill what runs in a slot if it is known to be cancelled."""
        if slot.phase in AT_WORK and slot.tasks and self.placement.cancellations.covers(slot.tasks[0]):
            self.stop(slot)

    def recall_if_cancelled(self, slot: SlotState) -> None:
        """Take back what is cancelled: the child begins what it was given by itself, too late to stop it."""
        if can_recall(slot) and any(self.placement.cancellations.covers(task) for task in slot.tasks):
            self.recall(slot)

    def abandon(self, task: Task) -> None:
        """Leave a task to its lock, which will run out."""
        self._drop(task)
        self._note(self.messages.abandon(task))

    def forget_crashes(self, task: Task) -> None:
        """Let the record of what died with the agent forget this task."""
        if self.crashes.pop(task.item.uid, None) is not None:
            self.commands.append(ForgetCrashes(task.item.uid))

    def _release(self, task: Task) -> None:
        """Note that no cancellation concerns a task any more, for it will not run here."""
        if task.state in (TaskState.WAITING, TaskState.PLACED):
            self.placement.cancellations.release(task.session)

    def _drop(self, task: Task) -> None:
        task.move(TaskEvent.SETTLE)
        self.placement.loners -= task.alone
        del self.tasks[task.number]

    def _note(self, command: Command | None) -> None:
        if command is not None:
            self.commands.append(command)

"""What the agent does with tasks: events in, commands out.

Rules:

- A message is pulled when nothing waits and a slot is free, or when tasks have been so short that the next
  message is worth having before one is. Nothing is pulled while draining, while the broker takes no results,
  or while a task is to run alone.
- A task's result is accepted by the broker before its message is completed. A message is completed when each
  of its tasks has an accepted result or an accepted copy. A lost lock changes nothing for the tasks: their
  results are sent all the same, only the message is not completed.
- `hand_back` (a copy sent to the queue) is the one way to return a task without an outcome: a retry (the
  attempt is charged), a drain, a straggler (what waits while every slot has run one task for too long; what
  stands behind such a task in its slot is taken back from there, and waits), an excess (what waits while
  every slot is busy, beyond what may wait: its sender took the tasks for shorter than they are), and
  taking apart a message that comes a second time, and a task that this node cannot take, or not yet
  (`reservations`; none of them charged). While a message is taken apart
  nothing begins: a copy that killed the agent before the message is removed would bring it back whole, again
  and again.
- A message that comes a second time may have killed the agent that held it. Several tasks in it are handed
  back alone, so that each has a delivery of its own. What this node remembers of agents that died
  (`crashes`) goes on with the task: a death while the task ran alone is noted in its history and counts;
  `MAX_CRASHES` of them are `TaskPoisoned`. A task that was twice in the company of others when the agent died
  runs alone from then on, so that the next death tells. What was redelivered because its lock was lost while
  it ran here, or because its completion got lost, is not run again.
- A task whose cancellation is known never starts; where it is not known well enough (`CancellationCache`) the
  slot waits for the document. A running one is stopped. What a slot was given and has not begun in time
  (`start_by`) comes back, and is looked at anew.
- Draining: tasks that have not begun are handed back, running ones have the grace, then they are stopped and
  handed back. Whatever is not settled `SETTLE` seconds later is left to its lock.
- What is wrong with the node is no task's outcome (`node_failures`). An agent that steps back drains, running
  tasks have all the time, and exits as unfit: another one begins on a node that was looked at.
- A task whose budget is spent ends as `BudgetExceeded` and never begins (`budgets`). What runs goes on, and
  is not retried. An agent whose pool's budget is spent answers what is queued, then leaves.
- A task that has not begun when its time is over ends as `TaskExpired` (`expiry`).
- Idle for long enough: announce it, look once more, exit. Tasks of broadcasts run beside the slots, and are
  not the scheduler's. While there are any (`Beside`) the agent is not idle, and a drain waits for them.

`state` has the states that tasks and slots go through, as tables. `placement` decides which task goes to
which slot, `held_messages` when a message is completed, and `load_policy` says what short, long and a
moment are.

Invariants: a message is completed only when all its tasks are settled; a task that is not settled has a
message; nothing is pulled while draining.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from batchflow.errors import ConfigurationError
from batchflow.model import Attempt, Status
from batchflow.protocol.documents import AgentState, Cancellation
from batchflow.protocol.needs import KnownNode
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure, RetryAfter, RetryPolicy, decide
from node_agent.scheduling.budgets import Budgets
from node_agent.scheduling.busy_time import BusyTime
from node_agent.scheduling.cancellation import FRESH, CancellationCache
from node_agent.scheduling.crash_history import CrashCount, died_alone
from node_agent.scheduling.events import (
    Announce,
    Arrived,
    Beside,
    Blocked,
    CancellationRead,
    CancellationUnread,
    Command,
    Complete,
    Completed,
    CopyAccepted,
    CopyRefused,
    Drain,
    Ended,
    Event,
    Exit,
    Freed,
    HandBack,
    Hold,
    LastLook,
    LeaseGone,
    NothingLeft,
    Prepared,
    Pull,
    ReadCancellation,
    Recalled,
    ResultsAccepted,
    Session,
    SpendingRead,
    SpendingUnread,
    Start,
    StepBack,
    Tick,
    Unable,
    Verdict,
)
from node_agent.scheduling.fair_turns import FairTurns
from node_agent.scheduling.held_messages import HeldMessages
from node_agent.scheduling.node_failures import NodeFailures
from node_agent.scheduling.placement import Placement
from node_agent.scheduling.reservations import needs_of
from node_agent.scheduling.settlement import Settlement
from node_agent.scheduling.state import (
    AT_WORK,
    Message,
    SlotEvent,
    SlotPhase,
    SlotState,
    Task,
)

MAX_CRASHES: Final = 3
SETTLE: Final = 10.0
MOST_HELD: Final = 4096
"""Tasks; more are not pulled, however slowly results leave."""
UNPAID_IDLE: Final = 1.0
"""Seconds without a task after which an agent leaves whose pool's budget is spent."""
DIED: Final = "the agent died while it ran this task alone"
_PULL: Final = Pull()
_HOLD: Final = Hold()
_HOLD_BUT_EXPRESS: Final = Hold(express=True)


@dataclass(slots=True)
class Scheduler:
    """One agent's work. `host` is what the history of a task names."""

    slots: int
    host: str
    idle_exit: float | None
    started_at: float
    crashes: dict[str, CrashCount] = field(default_factory=dict)
    """What this boot of the node remembers, by uid."""
    budgets: Budgets = field(default_factory=Budgets)
    turns: FairTurns | None = None
    """Of the lanes; None in a pool without."""
    node: KnownNode | None = None
    """What tasks may require of it; None: nothing but slots is known."""
    state: AgentState = "ready"
    cancellations: CancellationCache = field(default_factory=CancellationCache)
    placement: Placement = field(init=False)
    settlement: Settlement = field(init=False)
    _pulling: Pull | Hold = _HOLD
    _blocked: bool = False
    _looking: bool = False
    _beside: int = 0
    """How many tasks of broadcasts the agent has."""
    _idle_since: float = field(init=False)
    _stop_at: float | None = None
    """When draining: until when tasks may run; None when that is over, too."""
    _leave_at: float | None = None
    _stuck: bool = False
    """Every slot has run one task for too long."""
    busy_time: BusyTime = field(init=False)
    _failures: NodeFailures = field(init=False)
    _unfit: bool = False
    _exited: bool = False

    def __post_init__(self) -> None:
        self.placement = Placement(self.slots, self.cancellations, self.node)
        self.settlement = Settlement(self.placement, self.crashes, turns=self.turns)
        self.busy_time = BusyTime(self.slots, self.started_at)
        self._failures = NodeFailures(self.host)
        self._idle_since = self.started_at

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event; return what is to be done, in this order."""
        return self.handle_all((event,), now)

    def handle_all(self, events: Iterable[Event], now: float) -> list[Command]:
        """Take events; return what is to be done after all of them. This is cheaper than one by one."""
        placement = self.placement
        self.busy_time.advance(now, placement.occupied)
        if self.budgets.advance(now, placement.slots, placement.reservations.width):
            self.settlement.refuse(self.budgets.refusal)
        self.settlement.now = now
        for event in events:
            if not self._exited:
                self._apply(event, now)
        if not self._exited:
            self._advance(now)
        return self.settlement.take_commands()

    def item(self, task: int) -> TaskItem:
        """Return the task of that number, from its arrival until it is settled."""
        return self.tasks[task].item

    def delivery(self, task: int) -> int:
        """Return the message that the task of that number came with, last."""
        return self.tasks[task].message.delivery

    @property
    def tasks(self) -> Mapping[int, Task]:
        """Those that are not settled, by their numbers."""
        return self.settlement.tasks

    @property
    def messages(self) -> HeldMessages:
        """The messages under the agent's locks."""
        return self.settlement.messages

    @property
    def completed(self) -> int:
        """How many tasks were settled with a result."""
        return self.settlement.completed

    @property
    def held(self) -> int:
        """How many tasks are not settled."""
        return len(self.tasks)

    def next_deadline(self) -> float | None:
        """Return when a `Tick` is due, if nothing else happens before."""
        if self._exited:
            return None
        may_get_stuck = not self._stuck and (self.placement.waiting or isinstance(self._pulling, Pull))
        moments = (
            self.cancellations.next_deadline(),
            self.settlement.expiries.next_deadline(),
            self.placement.straggler_deadline() if may_get_stuck else None,
            self.placement.reservations.next_deadline(),
            *map(self.placement.load.lag_deadline, self.placement.slots),
            self._idle_deadline(),
            self.budgets.next_deadline(self.placement.slots),
            self._stop_at,
            self._leave_at,
        )
        return min((moment for moment in moments if moment is not None), default=None)

    def _apply(self, event: Event, now: float) -> None:
        slots = self.placement.slots
        match event:
            case Arrived():
                self._arrived(event, now)
            case Prepared(slot):
                self._prepared(slots[slot], now)
            case Ended():
                self._ended(event, now)
            case Unable():
                self._unable(event, now)
            case Freed(slot):
                _note_what_ran(slots[slot])
                self._return(self.placement.free(slots[slot]))
            case Recalled(slot, tasks):
                self._return(self.settlement.take_out(slots[slot], tasks))
            case ResultsAccepted(tasks):
                for number in tasks:
                    self.settlement.accept_result(self.tasks[number])
            case CopyAccepted(task):
                self.settlement.settle(self.tasks[task])
            case CopyRefused(task):
                self._copy_refused(self.tasks[task], now)
            case Completed(delivery):
                self.messages.completed(delivery)
            case LeaseGone(delivery):
                self.messages.lost(delivery)
            case CancellationRead(session, document, asked_at):
                self._cancellation_read(session, document, asked_at, now)
            case CancellationUnread(session):
                self.cancellations.failed(session, now)
            case SpendingRead(ledger, size) if self.budgets.read(ledger, size, now):
                self.settlement.refuse(self.budgets.refusal)
            case SpendingUnread(ledger):
                self.budgets.unread(ledger, now)
            case Blocked(blocked):
                self._blocked = blocked
            case Beside(tasks):
                self._beside, self._idle_since = tasks, now
            case Drain(grace):
                self._unfit = False
                self._drain(grace, now)
            case NothingLeft() if self._looking:
                self._exit(Exit("idle"))
            case Tick() | SpendingRead() | NothingLeft():
                pass

    def _advance(self, now: float) -> None:
        """Do what follows from the state and the time."""
        self.settlement.expire(now)
        if self.state == "draining":
            self._keep_draining(now)
            if self._exited:
                return
        for slot in self.placement.slots:
            if (deadline := self.placement.load.lag_deadline(slot)) is not None and now >= deadline:
                self.settlement.recall(slot)
        self.settlement.make_way()
        self.settlement.place(now)
        if self._stuck or self.placement.is_full():
            self._hand_back_excess(now)
        for session in self.cancellations.due(now):
            self.settlement.commands.append(ReadCancellation(session))
        self.settlement.commands += self.budgets.due(now, self.placement.slots)
        self._watch_idleness(now)
        self._set_pulling()

    # Arrival

    def _arrived(self, event: Arrived, now: float) -> None:
        message = Message(event.delivery, now + FRESH - event.age, len(event.tasks), lane=event.lane)
        self.messages.add(message)
        self.placement.load.age = event.age
        if self._looking:
            self._looking = False
            self._announce("ready")
        fresh = [
            item for item in event.tasks if not (event.redelivered and self.settlement.knows(item, message))
        ]
        at_lock = event.age if event.age_at_lock is None else event.age_at_lock
        apart = len(event.tasks) > 1 and (event.redelivered or died_alone(self.crashes, fresh))
        for task in [self.settlement.take_in(item, message, now, at_lock) for item in fresh]:
            self._admit(task, apart=apart)
        if not message.open:
            self.settlement.commands.append(Complete(message.delivery))

    def _admit(self, task: Task, *, apart: bool) -> None:
        """Let a task that has just arrived wait for a slot, or say why not. `apart`: see `died_alone`."""
        refusal = _refusal(task.item) or self.budgets.admit(task.item) or self.settlement.lateness(task)
        if refusal is not None:
            self.settlement.conclude(task, refusal)
        elif self.cancellations.covers(task):
            self.settlement.conclude(task, _CANCELLED)
        elif self.state == "draining":
            self.settlement.hand_back(task, HandBack(task.number, reason="drain"))
        elif apart:
            self.settlement.hand_back(task, HandBack(task.number, reason="isolation"))
        else:
            self._admit_if_harmless(task)

    def _admit_if_harmless(self, task: Task) -> None:
        """Let a task wait for a slot, unless it is known to have killed agents."""
        crashes = self.crashes.get(task.item.uid, _NO_CRASHES)
        reported = sum([past.error == DIED for past in task.item.history])
        if reported + crashes.alone >= MAX_CRASHES:
            self.settlement.forget_crashes(task)
            self.settlement.conclude(task, _poisoned(reported + crashes.alone))
        elif crashes.alone:
            self.settlement.forget_crashes(task)
            death = Attempt(task.item.attempt, DIED, self.host, crashes.last_at)
            history = (death,) * crashes.alone
            self.settlement.hand_back(task, HandBack(task.number, history=history, reason="isolation"))
        elif (copy := self.placement.reservations.misfit(task)) is not None:
            self.settlement.hand_back(task, copy)
        else:
            task.alone = crashes.in_company > 1 or reported > 0
            self.placement.loners += task.alone
            self.placement.add(task)

    # Slots

    def _prepared(self, slot: SlotState, now: float) -> None:
        slot.move(SlotEvent.PREPARED)
        if slot.phase is SlotPhase.CHECKING:
            self._check(slot, now)

    def _check(self, slot: SlotState, now: float) -> None:
        """Start what may start. Cancelled tasks end here; one that is not known to be free holds all up."""
        self.settlement.end_late(slot)
        for task in list(slot.tasks):
            match self.cancellations.clearance(task, now):
                case "stop":
                    slot.tasks.remove(task)
                    self.settlement.conclude(task, _CANCELLED)
                case "wait":
                    self.cancellations.want(task.session, now)
                    return
                case "go":
                    pass
        if slot.tasks:
            slot.move(SlotEvent.START)
            slot.moved_at = now
            self.settlement.commands.append(Start(slot.index, tuple([task.number for task in slot.tasks])))
        else:
            self.settlement.stop(slot)

    def _return(self, tasks: list[Task]) -> None:
        """Take tasks out of their slot that were stopped, or have never begun. They have no outcome."""
        for task in reversed(tasks):
            refusal = self.budgets.refusal(task.item) or self.settlement.lateness(task)
            if (verdict := _CANCELLED if self.cancellations.covers(task) else refusal) is not None:
                self.settlement.conclude(task, verdict)
            elif self.state == "draining":
                self.settlement.hand_back(task, HandBack(task.number, reason="drain"))
            else:
                self.placement.put_back(task)

    def _ended(self, event: Ended, now: float) -> None:
        task = self.tasks[event.task]
        slot = task.slot
        assert slot is not None
        slot.tasks.remove(task)
        slot.moved_at = now
        task.outcome, task.expires_at = event.outcome, math.inf
        self.settlement.learn(task, event.duration)
        if event.failure is None:
            self._failures.succeeded(slot)
        copy = None if event.failure is None else _retry(task, event, event.failure, self.host)
        if copy is None or self.budgets.refusal(task.item) is not None:
            self.settlement.conclude(task, None)
        else:
            task.failure = event.failure
            self.settlement.hand_back(task, copy)
        self.settlement.stop_if_cancelled(slot)

    def _unable(self, event: Unable, now: float) -> None:
        """Hand a task back that the node could not run; step back when there were several in a row."""
        task = self.tasks[event.task]
        slot = task.slot
        assert slot is not None
        slot.tasks.remove(task)
        if event.began:
            task.expires_at = math.inf
        answer = _CANCELLED if self.cancellations.covers(task) else self._failures.answer(task, event)
        if isinstance(answer, Verdict):
            self.settlement.conclude(task, answer)
        else:
            self.settlement.hand_back(task, answer)
        if self._failures.failed(slot) and self.state == "ready":
            self._unfit = True
            self.settlement.commands.append(StepBack(event.error))
            self._drain(math.inf, now)

    def _copy_refused(self, task: Task, now: float) -> None:
        """End a retry that cannot leave; else the task runs here, or stays with its lock."""
        if task.failure is not None:
            self.settlement.conclude(task, None)
        elif self.state == "draining":
            self.settlement.abandon(task)
        elif (lack := self.placement.reservations.lack(task)) is not None:
            self.settlement.conclude(task, _rejected(f"it requires {lack}, and no copy of it can be sent"))
        else:
            self.settlement.keep(task, now)

    # Cancellation

    def _cancellation_read(
        self, session: Session, document: Cancellation | None, asked_at: float, now: float
    ) -> None:
        self.cancellations.read(session, document, asked_at)
        if document is not None:
            self.settlement.drop_cancelled(session, _CANCELLED)
        for slot in self.placement.slots:
            if slot.phase is SlotPhase.CHECKING:
                self._check(slot, now)

    # Time

    def _hand_back_excess(self, now: float) -> None:
        """Hand back what would wait behind stragglers, or for too long."""
        deadline = self.placement.straggler_deadline()
        self._stuck = deadline is not None and now >= deadline
        kept = 0 if self._stuck else self.placement.load.max_waiting(self.placement.waiting)
        for task in self.placement.take_excess(kept):
            self.settlement.hand_back(
                task, HandBack(task.number, reason="straggler" if self._stuck else "excess")
            )

    def _drain(self, grace: float, now: float) -> None:
        stop_at = now + grace
        if self._leave_at is None or stop_at + SETTLE < self._leave_at:
            self._stop_at, self._leave_at = stop_at, stop_at + SETTLE
        if self.state != "draining":
            self._announce("draining")

    def _keep_draining(self, now: float) -> None:
        for task in self.placement.take_excess(0):
            self.settlement.hand_back(task, HandBack(task.number, reason="drain"))
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = None
        for slot in self.placement.slots:
            is_over = slot.phase in AT_WORK and self._stop_at is None
            if is_over or slot.phase in (SlotPhase.PREPARING, SlotPhase.CHECKING):
                self.settlement.stop(slot)
        if not self.messages and not self._beside:
            self._exit(Exit("unfit" if self._unfit else "drained"))
        elif self._leave_at is not None and now >= self._leave_at:
            self._exit(Exit("drained, some tasks are left to their locks"))

    def _idle_deadline(self) -> float | None:
        patience = UNPAID_IDLE if self.budgets.pool_is_spent else self.idle_exit
        has_work = bool(self.messages) or self._beside > 0
        if patience is None or has_work or self._looking or self.state != "ready":
            return None
        return self._idle_since + patience

    def _watch_idleness(self, now: float) -> None:
        if self.messages or self._beside:
            self._idle_since = now
        elif (deadline := self._idle_deadline()) is not None and now >= deadline:
            self._looking = True
            self._announce("exiting")
            self.settlement.commands.append(LastLook())

    def _exit(self, command: Exit) -> None:
        self._exited = True
        if self.state != "exiting":
            self._announce("exiting")
        self._set_pulling()
        self.settlement.commands.append(command)

    def _announce(self, state: AgentState) -> None:
        self.state = state
        self.settlement.commands.append(Announce(state))

    def _set_pulling(self) -> None:
        wanted = self._pull_or_hold()
        if wanted is not self._pulling:
            self._pulling = wanted
            self.settlement.commands.append(wanted)

    def _pull_or_hold(self) -> Pull | Hold:
        if not self._may_pull():
            return _HOLD
        if self.placement.is_message_welcome(stuck=self._stuck):
            return _PULL
        return _HOLD_BUT_EXPRESS if self.settlement.wants_express else _HOLD

    def _may_pull(self) -> bool:
        """Return whether any message may come, also one of interactive tasks."""
        if self.state != "ready" or self._blocked or len(self.tasks) >= MOST_HELD:
            return False
        return not (self.budgets.is_waiting or self.messages.is_splitting or self.placement.has_loner())


_NO_CRASHES: Final = CrashCount()
_CANCELLED: Final = Verdict(Status.CANCELLED, "TaskCancelled", "the task was cancelled")


def _note_what_ran(slot: SlotState) -> None:
    """Note before a slot is freed that what it was told to stop had begun: its time does not matter any more.

    What a slot gives back by itself has not begun.
    """
    if slot.phase is SlotPhase.STOPPING and slot.tasks:
        slot.tasks[0].expires_at = math.inf


def _poisoned(crashes: int) -> Verdict:
    return Verdict(
        Status.FAILED, "TaskPoisoned", f"the agent that ran it died {crashes} times, each time with it"
    )


def _rejected(reason: str) -> Verdict:
    return Verdict(Status.FAILED, "TaskRejected", reason)


def _refusal(item: TaskItem) -> Verdict | None:
    """Return the outcome of a task that cannot run as it stands."""
    if item.timeout is not None and not item.timeout > 0:
        return _rejected(f"timeout is {item.timeout}: it is more than 0 seconds, or not set")
    if item.memory_limit is not None and item.memory_limit <= 0:
        return _rejected(f"memory_limit is {item.memory_limit}: it is more than 0 bytes, or not set")
    try:
        needs_of(item)
    except ValueError as error:
        return _rejected(f"what it requires cannot be read: {error}")
    try:
        RetryPolicy.read(item.retry)
    except (ConfigurationError, TypeError, AttributeError, ValueError) as error:
        return _rejected(f"its retry policy cannot be used: {error}")
    return None


def _retry(task: Task, event: Ended, failure: Failure, host: str) -> HandBack | None:
    """Return the copy with which a failed task is tried again; None: it is not."""
    decision = decide(RetryPolicy.read(task.item.retry), failure, task.item.attempt, event.chance)
    if not isinstance(decision, RetryAfter):
        return None
    past = Attempt(task.item.attempt, event.error or failure.kind, host, event.at)
    return HandBack(
        task=task.number,
        delay=decision.delay,
        attempt=task.item.attempt + 1,
        history=(past,),
        reason="retry",
    )

"""What the agent does with tasks: events in, commands out.

Rules:

- A message is pulled when nothing waits and a slot is free, or when tasks have been so short that the next
  message is worth having before one is. Nothing is pulled while draining, while the broker takes no results,
  or while a task is to run alone.
- The tasks of a message run in the order of their message, several at a time in one slot when they are known
  to be short, a slot that holds the same bundle already first.
- What waits while every slot is busy follows what runs in a slot, when all of it together is a matter of a
  moment: the slot goes on without asking.
- A task's result is accepted by the broker before its message is completed. A message is completed when each
  of its tasks has an accepted result or an accepted copy. A lost lock changes nothing for the tasks: their
  results are sent all the same, only the message is not completed.
- `hand_back` (a copy sent to the queue) is the one way to return a task without an outcome: a retry (the
  attempt is charged), a drain, a straggler (what waits while every slot has run one task for too long; what
  stands behind such a task in its slot is taken back from there, and waits), an excess (what waits while
  every slot is busy, beyond what may wait: its sender took the tasks for shorter than they are), and
  taking apart a message that comes a second time (none of them charged). While a message is taken apart
  nothing begins: a copy that killed the agent before the message is removed would bring it back whole, again
  and again.
- A message that comes a second time may have killed the agent that held it. Several tasks in it are handed
  back alone, so that each has a delivery of its own. What this node remembers of agents that died
  (`crashes`) goes on with the task: a death while the task ran alone is noted in its history and counts;
  `MAX_CRASHES` of them are `TaskPoisoned`. A task that was twice in the company of others when the agent died
  runs alone from then on, so that the next death tells. What was redelivered because its lock was lost while
  it ran here, or because its completion got lost, is not run again.
- A task whose cancellation is known never starts; where it is not known well enough (`CancellationCache`) the
  slot waits for the document. A running one is stopped.
- Draining: tasks that have not begun are handed back, running ones have the grace, then they are stopped and
  handed back. Whatever is not settled `SETTLE` seconds later is left to its lock.
- Idle for long enough: announce it, look once more, exit.

`scheduling.state` has the states that tasks and slots go through, `load_policy` what short, long and a
moment are.

Invariants: a task is placed in one slot at most, a slot has tasks exactly while it is not free; a message is
completed only when all its tasks are settled; a task that is not settled has a message; nothing is pulled
while draining.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from batchflow.errors import ConfigurationError
from batchflow.model import Attempt, Status
from batchflow.protocol.documents import AgentState, Cancellation
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure, RetryAfter, RetryPolicy, decide
from node_agent.scheduling.cancellation import FRESH, CancellationCache
from node_agent.scheduling.crash_history import CrashCount
from node_agent.scheduling.events import (
    Announce,
    Arrived,
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
    Follow,
    ForgetCrashes,
    Freed,
    HandBack,
    Hold,
    LastLook,
    LeaseGone,
    Leave,
    NothingLeft,
    Prepare,
    Prepared,
    Pull,
    ReadCancellation,
    Recall,
    Recalled,
    ResultsAccepted,
    SendResult,
    Session,
    Start,
    Stop,
    Tick,
    Verdict,
)
from node_agent.scheduling.load_policy import LoadPolicy
from node_agent.scheduling.state import (
    Identity,
    Message,
    SlotPhase,
    SlotState,
    Task,
    TaskState,
    alike,
    can_recall,
    identity,
    place,
)

MOST_FOLLOWING: Final = 500
"""Tasks that follow in a slot until it is free once."""
MAX_CRASHES: Final = 3
SETTLE: Final = 10.0
MOST_HELD: Final = 4096
"""Tasks; more are not pulled, however slowly results leave."""
DIED: Final = "the agent died while it ran this task alone"

_REMEMBERED: Final = 8192
"""Tasks that were settled."""


@dataclass(slots=True)
class Scheduler:
    """One agent's work. `host` is what the history of a task names."""

    slots: int
    host: str
    idle_exit: float | None
    started_at: float
    crashes: dict[str, CrashCount] = field(default_factory=dict)
    """What this boot of the node remembers, by uid."""
    state: AgentState = "ready"
    completed: int = 0
    """Tasks that were settled with a result."""
    cancellations: CancellationCache = field(default_factory=CancellationCache)
    _tasks: dict[int, Task] = field(default_factory=dict)
    _messages: dict[int, Message] = field(default_factory=dict)
    _waiting: deque[Task] = field(default_factory=deque)
    _slots: list[SlotState] = field(init=False)
    _busy: int = 0
    _load: LoadPolicy = field(init=False)
    _settled: OrderedDict[Identity, None] = field(default_factory=OrderedDict)
    """Tasks settled lately, the newest last."""
    _next_number: int = 0
    _pulling: bool = False
    _blocked: bool = False
    _looking: bool = False
    _idle_since: float = field(init=False)
    _stop_at: float | None = None
    """When draining: until when tasks may run; None when that is over, too."""
    _leave_at: float | None = None
    _parted: set[int] = field(default_factory=set)
    """Deliveries that are being taken apart."""
    _suspects: int = 0
    """How many tasks that run alone are held."""
    _stuck: bool = False
    """Every slot has run one task for too long."""
    _exited: bool = False
    _out: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._slots = [SlotState(index) for index in range(self.slots)]
        self._load = LoadPolicy(self.slots)
        self._idle_since = self.started_at

    def handle(self, event: Event, now: float) -> list[Command]:
        """What is to be done, in this order."""
        return self.handle_all((event,), now)

    def handle_all(self, events: Iterable[Event], now: float) -> list[Command]:
        """What is to be done after all of these, in this order: cheaper than one by one."""
        for event in events:
            if not self._exited:
                self._apply(event, now)
        if not self._exited:
            self._advance(now)
        commands, self._out = self._out, []
        return commands

    def item(self, task: int) -> TaskItem:
        """The task of that number, from its arrival until it is settled."""
        return self._tasks[task].item

    def delivery(self, task: int) -> int:
        """The message that the task of that number came with, last."""
        return self._tasks[task].message.delivery

    def running(self) -> list[tuple[TaskItem, float]]:
        """What runs at this moment, and since when."""
        busy = (slot for slot in self._slots if slot.phase is SlotPhase.RUNNING and slot.tasks)
        return [(slot.tasks[0].item, slot.moved_at) for slot in busy]

    @property
    def hold(self) -> float:
        """Seconds that a result waits for others; 0 when none is under way that comes within them."""
        return self._load.hold(self._slots, len(self._waiting))

    @property
    def held(self) -> int:
        """How many tasks are not settled."""
        return len(self._tasks)

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, if nothing else happens before."""
        if self._exited:
            return None
        moments = (
            self.cancellations.next_deadline(),
            self._straggler_deadline() if not self._stuck and (self._waiting or self._pulling) else None,
            *map(self._load.lag_deadline, self._slots),
            self._idle_deadline(),
            self._stop_at,
            self._leave_at,
        )
        return min((moment for moment in moments if moment is not None), default=None)

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case Arrived():
                self._arrived(event, now)
            case Prepared(slot):
                self._prepared(self._slots[slot], now)
            case Ended():
                self._ended(event, now)
            case Freed(slot):
                self._freed(self._slots[slot])
            case Recalled(slot, tasks):
                self._take_back(self._slots[slot], tasks)
            case ResultsAccepted(tasks):
                self._results_accepted(tasks)
            case CopyAccepted(task):
                self._settle(self._tasks[task])
            case CopyRefused(task):
                self._copy_refused(self._tasks[task], now)
            case Completed(delivery):
                self._messages.pop(delivery, None)
                self._parted.discard(delivery)
            case LeaseGone(delivery):
                self._lease_gone(delivery)
            case CancellationRead(session, document, asked_at):
                self._cancellation_read(session, document, asked_at, now)
            case CancellationUnread(session):
                self.cancellations.failed(session, now)
            case Blocked(blocked):
                self._blocked = blocked
            case Drain(grace):
                self._drain(grace, now)
            case NothingLeft():
                self._nothing_left()
            case Tick():
                pass

    def _advance(self, now: float) -> None:
        """What follows from the state and the time."""
        if self.state == "draining":
            self._keep_draining(now)
            if self._exited:
                return
        for slot in self._slots:
            if (deadline := self._load.lag_deadline(slot)) is not None and now >= deadline:
                self._recall(slot)
        if self._waiting:
            self._dispatch(now)
        if self._busy == self.slots or self._stuck:
            self._relieve(now)
        for session in self.cancellations.due(now):
            self._out.append(ReadCancellation(session))
        if self.idle_exit is not None:
            self._watch_idleness(now)
        self._set_pulling()

    # Arrival

    def _arrived(self, event: Arrived, now: float) -> None:
        message = Message(event.delivery, now + FRESH - event.age, len(event.tasks))
        self._messages[event.delivery] = message
        if self._looking:
            self._looking = False
            self._announce("ready")
        fresh = [item for item in event.tasks if not (event.redelivered and self._known(item, message))]
        tasks = [self._take_in(item, message, now) for item in fresh]
        for task in tasks:
            self._place_newcomer(task, event.redelivered, len(event.tasks), now)
        if not message.open:
            self._out.append(Complete(message.delivery))

    def _known(self, item: TaskItem, message: Message) -> bool:
        """Whether a redelivered task needs no run: settled here before, or still held.

        The former message's lock is lost then, whether we know it yet or not.
        """
        if identity(item) in self._settled:
            message.open -= 1
            return True
        for task in self._tasks.values():
            if task.identity == identity(item):
                former, task.message = task.message, message
                former.lost = True
                self._parted.discard(former.delivery)
                self._close_one(former)
                return True
        return False

    def _take_in(self, item: TaskItem, message: Message, now: float) -> Task:
        task = Task.of(self._next_number, item, message)
        self._next_number += 1
        self._tasks[task.number] = task
        self.cancellations.hold(task.session, now)
        return task

    def _place_newcomer(self, task: Task, redelivered: bool, companions: int, now: float) -> None:
        if (refusal := _refusal(task.item)) is not None:
            self._conclude(task, Verdict(Status.FAILED, "TaskRejected", refusal))
        elif self.cancellations.covers(task):
            self._conclude(task, _CANCELLED)
        elif self.state == "draining":
            self._hand_back(task, HandBack(task.number, reason="drain"))
        elif redelivered and companions > 1:
            self._hand_back(task, HandBack(task.number, reason="isolation"))
        else:
            self._suspect(task)

    def _suspect(self, task: Task) -> None:
        """Let it wait for a slot, unless it is known to have killed agents."""
        crashes = self.crashes.get(task.item.uid, _NO_CRASHES)
        reported = sum([past.error == DIED for past in task.item.history])
        if reported + crashes.alone >= MAX_CRASHES:
            self._forget_crashes(task)
            self._conclude(task, _poisoned(reported + crashes.alone))
        elif crashes.alone:
            self._forget_crashes(task)
            death = Attempt(task.item.attempt, DIED, self.host, crashes.last_at)
            history = (death,) * crashes.alone
            self._hand_back(task, HandBack(task.number, history=history, reason="isolation"))
        else:
            task.alone = crashes.in_company > 1 or reported > 0
            self._suspects += task.alone
            self._wait(task)

    def _forget_crashes(self, task: Task) -> None:
        if self.crashes.pop(task.item.uid, None) is not None:
            self._out.append(ForgetCrashes(task.item.uid))

    def _wait(self, task: Task) -> None:
        task.state = TaskState.WAITING
        self._waiting.append(task)

    # Slots

    def _dispatch(self, now: float) -> None:
        while self._waiting and self._busy < self.slots and self._may_place():
            tasks = self._take_chunk()
            slot = self._free_slot(tasks[0].item.bundle)
            slot.phase, slot.bundle, slot.moved_at = SlotPhase.PREPARING, tasks[0].item.bundle, now
            slot.shared, slot.followers, slot.latest = len(tasks) > 1, 0, 0
            self._busy += 1
            self._out.append(Prepare(slot.index, place(tasks, slot)))
        if self._waiting and self._may_place():
            self._let_follow(now)

    def _let_follow(self, now: float) -> None:
        """Spread what waits over the slots in which it may follow."""
        slots = sorted(self._leading(self._waiting[0]), key=lambda slot: self._load.work(slot.tasks))
        for index, slot in enumerate(slots):
            tasks = self._take_followers(slot, -(-len(self._waiting) // (len(slots) - index)), now)
            if not tasks:
                return
            slot.shared, slot.latest = True, len(tasks)
            slot.followers += len(tasks)
            self._out.append(Follow(slot.index, place(tasks, slot)))

    def _leading(self, task: Task) -> list[SlotState]:
        """The slots in which a task may follow what runs."""
        return [
            slot
            for slot in self._slots
            if slot.phase is SlotPhase.RUNNING
            and slot.tasks
            and not (slot.stopping or slot.recalled)
            and slot.bundle == task.item.bundle
            and slot.followers < MOST_FOLLOWING
        ]

    def _take_followers(self, slot: SlotState, most: int, now: float) -> list[Task]:
        """The next tasks, if they may follow what runs in this slot: all of them or none, so that a pack does
        not trickle in."""
        tasks = list(islice(self._waiting, most))
        if not self._load.may_follow(tasks, slot) or not all(
            self._may_follow(task, slot, now) for task in tasks
        ):
            return []
        for _ in tasks:
            self._waiting.popleft()
        return tasks

    def _may_follow(self, task: Task, slot: SlotState, now: float) -> bool:
        """Nothing is fetched for a task that follows, nor does it wait for a document."""
        if task.alone or task.item.bundle != slot.bundle or not isinstance(task.item.params, list):
            return False
        return self.cancellations.clearance(task, self._young_until(task), now) == "go"

    def _may_place(self) -> bool:
        """A task that runs alone waits until the slots are empty, and lets nothing pass."""
        if self._parted:
            return False
        if not self._busy:
            return True
        return not self._waiting[0].alone and not self._isolating()

    def _isolating(self) -> bool:
        """Whether a task runs alone, or is the next to."""
        if self._waiting and self._waiting[0].alone:
            return True
        return self._suspects > 0 and any(task.alone for slot in self._slots for task in slot.tasks)

    def _take_chunk(self) -> list[Task]:
        """The next tasks that share a slot: of one message and bundle, as many as are known short."""
        first = self._waiting.popleft()
        chunk = [first]
        if not self._waiting or first.alone:
            return chunk
        pack = self._load.pack(len(self._waiting) + 1, self.slots - self._busy)
        pack.admits(first.command, 0)
        while self._waiting and alike(first, self._waiting[0]):
            if not pack.admits(self._waiting[0].command, 0):
                break
            chunk.append(self._waiting.popleft())
        return chunk

    def _free_slot(self, bundle: str) -> SlotState:
        free = [slot for slot in self._slots if slot.phase is SlotPhase.FREE]
        return next((slot for slot in free if slot.bundle == bundle), free[0])

    def _prepared(self, slot: SlotState, now: float) -> None:
        if not slot.stopping:
            slot.phase = SlotPhase.CHECKING
            self._check(slot, now)

    def _check(self, slot: SlotState, now: float) -> None:
        """Start what may start. Cancelled tasks end here; one that is not known to be free holds all up."""
        for task in list(slot.tasks):
            match self.cancellations.clearance(task, self._young_until(task), now):
                case "stop":
                    slot.tasks.remove(task)
                    self._conclude(task, _CANCELLED)
                case "wait":
                    self.cancellations.want(task.session, now)
                    return
                case "go":
                    pass
        if slot.tasks:
            slot.phase, slot.moved_at = SlotPhase.RUNNING, now
            self._out.append(Start(slot.index, tuple(task.number for task in slot.tasks)))
        else:
            self._stop(slot)

    def _young_until(self, task: Task) -> float:
        """A task that was handed back is older than its message."""
        return float("-inf") if task.item.hop else task.message.young_until

    def _stop(self, slot: SlotState) -> None:
        if not slot.stopping:
            slot.stopping = True
            self._out.append(Stop(slot.index))

    def _freed(self, slot: SlotState) -> None:
        """What has not ended was stopped, or never begun: cancelled, or as good as new."""
        left = list(slot.tasks)
        slot.tasks.clear()
        slot.phase, slot.stopping, slot.recalled = SlotPhase.FREE, False, False
        self._busy -= 1
        self._unplace(left)

    def _take_back(self, slot: SlotState, numbers: Iterable[int]) -> None:
        tasks = [self._tasks[number] for number in numbers]
        for task in tasks:
            slot.tasks.remove(task)
        self._unplace(tasks)

    def _unplace(self, tasks: list[Task]) -> None:
        """They are in no slot any more, and have no outcome."""
        for task in reversed(tasks):
            if self.cancellations.covers(task):
                self._conclude(task, _CANCELLED)
            elif self.state == "draining":
                self._hand_back(task, HandBack(task.number, reason="drain"))
            else:
                task.state = TaskState.WAITING
                self._waiting.appendleft(task)

    def _ended(self, event: Ended, now: float) -> None:
        task = self._tasks[event.task]
        slot = task.slot
        assert slot is not None
        slot.tasks.remove(task)
        slot.moved_at = now
        self._load.learn(task, event.duration)
        if event.failure is None or not self._retry(task, event, event.failure):
            self._conclude(task, None)
        self._stop_if_cancelled(slot)

    def _retry(self, task: Task, event: Ended, failure: Failure) -> bool:
        policy = RetryPolicy.read(task.item.retry)
        decision = decide(policy, failure, task.item.attempt, event.chance)
        if not isinstance(decision, RetryAfter):
            return False
        task.failure = failure
        past = Attempt(task.item.attempt, event.error or failure.kind, self.host, event.at)
        command = HandBack(task.number, decision.delay, task.item.attempt + 1, (past,), "retry")
        self._hand_back(task, command)
        return True

    # The ways out

    def _conclude(self, task: Task, verdict: Verdict | None) -> None:
        self._leave(task, TaskState.SENDING)
        self._out.append(SendResult(task.number, verdict))

    def _hand_back(self, task: Task, command: HandBack) -> None:
        if command.reason == "isolation" and not task.message.lost:
            self._parted.add(task.message.delivery)
        self._leave(task, TaskState.COPYING)
        self._out.append(command)

    def _leave(self, task: Task, state: TaskState) -> None:
        """It will not run here: no cancellation concerns it any more."""
        if task.state in (TaskState.WAITING, TaskState.PLACED):
            self.cancellations.release(task.session)
        task.state = state

    def _results_accepted(self, tasks: Iterable[int]) -> None:
        for number in tasks:
            self.completed += 1
            self._forget_crashes(self._tasks[number])
            self._settle(self._tasks[number])

    def _settle(self, task: Task) -> None:
        task.state = TaskState.SETTLED
        self._suspects -= task.alone
        del self._tasks[task.number]
        self._settled[task.identity] = None
        if len(self._settled) > _REMEMBERED:
            self._settled.popitem(last=False)
        self._close_one(task.message)

    def _close_one(self, message: Message) -> None:
        """One task less is open; with the last one the message is removed, where it is still ours."""
        message.open -= 1
        if message.open:
            return
        if message.lost:
            self._parted.discard(message.delivery)
            del self._messages[message.delivery]
            self._out.append(Leave(message.delivery))
        else:
            self._out.append(Complete(message.delivery))

    def _copy_refused(self, task: Task, now: float) -> None:
        """A retry that cannot leave ends the task; else it runs here, or stays with its lock."""
        if task.failure is not None:
            self._conclude(task, None)
        elif self.state == "draining":
            self._abandon(task)
        else:
            self._parted.discard(task.message.delivery)
            self.cancellations.hold(task.session, now)
            self._wait(task)

    def _abandon(self, task: Task) -> None:
        """Not settled, not ours any more: its lock will run out."""
        task.message.lost = True
        self._settle(task)
        self._settled.pop(task.identity, None)

    def _lease_gone(self, delivery: int) -> None:
        self._parted.discard(delivery)
        if (message := self._messages.get(delivery)) is not None:
            message.lost = True
            if not message.open:
                del self._messages[delivery]

    # Cancellation

    def _cancellation_read(
        self, session: Session, document: Cancellation | None, asked_at: float, now: float
    ) -> None:
        self.cancellations.read(session, document, asked_at)
        if document is not None:
            self._drop_cancelled(session)
        for slot in self._slots:
            if slot.phase is SlotPhase.CHECKING and not slot.stopping:
                self._check(slot, now)

    def _drop_cancelled(self, session: Session) -> None:
        """End what waits, stop what runs, take back what stands behind it in its slot."""
        covered = [t for t in self._waiting if t.session == session and self.cancellations.covers(t)]
        for task in covered:
            self._waiting.remove(task)
            self._conclude(task, _CANCELLED)
        for slot in self._slots:
            if slot.tasks and slot.tasks[0].session == session:
                self._stop_if_cancelled(slot)
                self._recall_if_cancelled(slot)

    def _stop_if_cancelled(self, slot: SlotState) -> None:
        if slot.phase is SlotPhase.RUNNING and slot.tasks and self.cancellations.covers(slot.tasks[0]):
            self._stop(slot)

    def _recall_if_cancelled(self, slot: SlotState) -> None:
        """The child begins by itself what it was given: too late to stop it then."""
        if can_recall(slot) and any(self.cancellations.covers(task) for task in slot.tasks):
            self._recall(slot)

    # Time

    def _recall(self, slot: SlotState) -> None:
        slot.recalled = True
        self._out.append(Recall(slot.index))

    def _straggler_deadline(self) -> float | None:
        return self._load.straggler_deadline(self._slots, len(self._waiting))

    def _relieve(self, now: float) -> None:
        """Hand back what would wait behind stragglers, or for too long."""
        deadline = self._straggler_deadline()
        self._stuck = deadline is not None and now >= deadline
        kept = 0 if self._stuck else self._load.max_waiting(self._waiting)
        for _ in range(kept, len(self._waiting)):
            task = self._waiting[kept]
            del self._waiting[kept]
            self._hand_back(task, HandBack(task.number, reason="straggler" if self._stuck else "excess"))

    def _drain(self, grace: float, now: float) -> None:
        stop_at = now + grace
        if self._leave_at is None or stop_at + SETTLE < self._leave_at:
            self._stop_at, self._leave_at = stop_at, stop_at + SETTLE
        if self.state != "draining":
            self._announce("draining")

    def _keep_draining(self, now: float) -> None:
        for task in self._waiting:
            self._hand_back(task, HandBack(task.number, reason="drain"))
        self._waiting.clear()
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = None
        for slot in self._slots:
            if slot.phase is not SlotPhase.FREE and (
                slot.phase is not SlotPhase.RUNNING or self._stop_at is None
            ):
                self._stop(slot)
        if not self._messages:
            self._exit(Exit("drained"))
        elif self._leave_at is not None and now >= self._leave_at:
            self._exit(Exit("drained, some tasks are left to their locks"))

    def _idle_deadline(self) -> float | None:
        if self.idle_exit is None or self._messages or self._looking or self.state != "ready":
            return None
        return self._idle_since + self.idle_exit

    def _watch_idleness(self, now: float) -> None:
        if self._messages:
            self._idle_since = now
        elif (deadline := self._idle_deadline()) is not None and now >= deadline:
            self._looking = True
            self._announce("exiting")
            self._out.append(LastLook())

    def _nothing_left(self) -> None:
        if self._looking:
            self._exit(Exit("idle"))

    def _exit(self, command: Exit) -> None:
        self._exited = True
        if self.state != "exiting":
            self._announce("exiting")
        self._set_pulling()
        self._out.append(command)

    def _announce(self, state: AgentState) -> None:
        self.state = state
        self._out.append(Announce(state))

    def _set_pulling(self) -> None:
        wanted = self._wants_more()
        if wanted != self._pulling:
            self._pulling = wanted
            self._out.append(Pull() if wanted else Hold())

    def _wants_more(self) -> bool:
        if self.state != "ready" or self._blocked or self._waiting or len(self._tasks) >= MOST_HELD:
            return False
        if self._parted or self._isolating():
            return False
        if self._busy < self.slots:
            return True
        return not self._stuck and self._load.is_message_worth_having(self._slots)


_NO_CRASHES: Final = CrashCount()
_CANCELLED: Final = Verdict(Status.CANCELLED, "TaskCancelled", "the task was cancelled")


def _poisoned(crashes: int) -> Verdict:
    return Verdict(
        Status.FAILED, "TaskPoisoned", f"the agent that ran it died {crashes} times, each time with it"
    )


def _refusal(item: TaskItem) -> str | None:
    """Why the task cannot run as it stands."""
    if item.timeout is not None and not item.timeout > 0:
        return f"timeout is {item.timeout}: it is more than 0 seconds, or not set"
    if item.memory_limit is not None and item.memory_limit <= 0:
        return f"memory_limit is {item.memory_limit}: it is more than 0 bytes, or not set"
    try:
        RetryPolicy.read(item.retry)
    except (ConfigurationError, TypeError, AttributeError, ValueError) as error:
        return f"its retry policy cannot be used: {error}"
    return None

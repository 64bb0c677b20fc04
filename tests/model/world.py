"""A world in one thread: processes made of strands, a broker, a clock that is moved by hand, and faults.

A strand is a generator that yields what it wishes: to wait until something holds or a moment has come
(`Wait`), or to have something done at the broker or in storage (`Call`). A call takes two steps, the doing
and the answer, so that everything else, a death too, can come between them. Each step is a decision: who
moves, and what fails.

What can fail at a step: a request is lost, or its answer is (the caller gives up after `TIMEOUT`); the
connection is cut before or after the doing (all that is under way on it fails, its mailbox is closed); the
process is killed; the process stands still for longer than a lock lasts. The broker may notice the end of a
mailbox's holder at once, or only by its lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from batchflow.broker import QueueSpec
from batchflow.errors import BrokerError, LeaseLost, MailboxInUse
from batchflow.local import queues as core
from tests.model import history
from tests.model.choices import Choices
from tests.model.history import Recorder

NOW: Final = -math.inf
NEVER: Final = math.inf
TIMEOUT: Final = 20.0
"""Seconds until a caller gives up."""
_MOST_MOVES: Final = 100_000
"""Without an outcome or a fault: the world goes round in circles."""


class Trouble(Enum):
    """What a fault does."""

    NONE = "none"
    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    CUT_BEFORE = "connection cut before the request"
    CUT_AFTER = "connection cut after the request"
    KILLED = "killed"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class Wait:
    """Until the moment that `due` says: `NOW`, `NEVER` or a time. It is asked again at each step."""

    due: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Call:
    """Something is done at the other end; what it returns or raises comes back."""

    do: Callable[[], Any]
    receives: bool = False
    """Its answer comes over a link that cannot lose one without being cut."""


Wish = Wait | Call
Steps = Generator[Wish, Any, None]

_CALL_TROUBLES: Final = tuple(Trouble)
_RECEIVE_TROUBLES: Final = (
    Trouble.NONE, Trouble.CUT_BEFORE, Trouble.CUT_AFTER, Trouble.KILLED, Trouble.STALLED,
)  # fmt: skip
_STEP_TROUBLES: Final = (Trouble.NONE, Trouble.KILLED, Trouble.STALLED)
_NO_TROUBLES: Final = (Trouble.NONE,)


class Strand:
    """One generator at work."""

    __slots__ = ("_answer", "_error", "answer_at", "process", "steps", "wish")

    def __init__(self, process: Process, steps: Steps) -> None:
        self.process = process
        self.steps = steps
        self.wish: Wish | None = None
        self.answer_at: float | None = NOW
        """When it goes on; None: when its wish comes true."""
        self._answer: Any = None
        self._error: BrokerError | None = None

    def due(self) -> float:
        if self.answer_at is not None:
            return self.answer_at
        return self.wish.due() if type(self.wish) is Wait else NOW

    @property
    def calling(self) -> Call | None:
        """What is to be done for it."""
        return self.wish if self.answer_at is None and type(self.wish) is Call else None

    def answered(self, answer: Any, at: float = NOW) -> None:
        self._answer, self.answer_at = answer, at

    def failed(self, error: BrokerError, at: float = NOW) -> None:
        self._error, self.answer_at = error, at

    def go_on(self) -> bool:
        """False when it has ended."""
        answer, error = self._answer, self._error
        self._answer = self._error = self.answer_at = None
        try:
            self.wish = self.steps.throw(error) if error is not None else self.steps.send(answer)
        except StopIteration:
            return False
        return True


class Process:
    """Strands that share memory, a connection and a death."""

    mortal = True

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stalled_until = NOW
        self.strands: list[Strand] = []

    @property
    def now(self) -> float:
        return self.world.now

    def until_gone(self) -> float:
        """Due when it is no more."""
        return NEVER if self.alive else NOW

    def spawn(self, steps: Steps) -> None:
        self.strands.append(self.world.begin(self, steps))

    def cut(self) -> None:
        """The connection is gone: what was under way on it has failed."""
        for strand in self.strands:
            if strand.calling is not None:
                strand.failed(BrokerError("the connection was cut", retryable=True))

    def killed(self) -> None:
        """It is no more."""


def sleep(process: Process, seconds: float) -> Wait:
    until = process.now + seconds
    return Wait(lambda: until)


@dataclass(slots=True)
class Backoff:
    """Growing waits between tries."""

    delay: float = 0.2

    def wait(self, process: Process) -> Wait:
        wait = sleep(process, self.delay)
        self.delay = min(self.delay * 2, 10.0)
        return wait


@dataclass(slots=True, eq=False)
class World:
    """The broker's queues, storage, time, and who lives."""

    choices: Choices
    record: Recorder
    lock: float = 30.0
    patience: float = 600.0
    """Seconds without an outcome or a fault after which the world has come to a halt."""
    now: float = 1000.0
    moved_at: float = 1000.0
    """When there was the last outcome or fault."""
    moves: int = 0
    _moved_before: int = 0
    """Moves up to the last outcome or fault."""
    cancellations: dict[tuple[str, str], Any] = field(default_factory=dict)
    tasks: core.Queue = field(init=False)
    results: core.Queue = field(init=False)
    _strands: list[Strand] = field(default_factory=list)
    """In the order in which they moved last."""

    def __post_init__(self) -> None:
        self.tasks = self._queue(QueueSpec("tasks", lock_duration=self.lock))
        self.results = self._queue(QueueSpec("results", sessions=True, lock_duration=self.lock))

    @staticmethod
    def _queue(spec: QueueSpec) -> core.Queue:
        return core.Queue(
            core.QueueSpec(
                lock_duration=spec.lock_duration,
                max_delivery_count=spec.max_delivery_count,
                requires_session=spec.sessions,
                default_ttl=spec.time_to_live,
                dead_letter_on_expiration=True,
                duplicate_window=spec.duplicate_window,
            )
        )

    def begin(self, process: Process, steps: Steps) -> Strand:
        strand = Strand(process, steps)
        self._strands.append(strand)
        return strand

    def run(self, over: Callable[[], bool]) -> bool:
        """Until it is over; False when it came to a halt before."""
        while not over():
            if self.moves - self._moved_before > _MOST_MOVES:
                return False
            if not self._step() and not self._advance():
                return False
        return True

    def note(self, record: history.Record) -> None:
        """Record it; outcomes and faults are progress."""
        if isinstance(record, history.Shown | history.Fault):
            self.moved_at, self._moved_before = self.now, self.moves
        self.record(record)

    def kill(self, process: Process) -> None:
        process.alive = False
        self._strands = [strand for strand in self._strands if strand.process is not process]
        process.strands.clear()
        process.killed()

    def forget_holder(self, mailbox: str, holder: Hashable) -> None:
        """A mailbox's holder has lost its connection: the broker sees it at once, or only by the lock."""
        if self.choices.pick(2) == 0:
            self.results.release_session(mailbox, holder, self.now)

    def child_dies(self) -> bool:
        """Whether the process that runs a task is killed before it is done."""
        dies = self.choices.fault(2) == 1
        if dies:
            self.note(history.Fault(self.now, "child killed"))
        return dies

    def _step(self) -> bool:
        """One strand moves; False when none can."""
        now = self.now
        movable = [
            strand for strand in self._strands if strand.due() <= now and strand.process.stalled_until <= now
        ]
        if not movable:
            return False
        strand = movable[self.choices.order(len(movable))]
        self._strands.remove(strand)
        self._strands.append(strand)
        self.moves += 1
        self._move(strand)
        return True

    def _move(self, strand: Strand) -> None:
        process, call = strand.process, strand.calling
        troubles = _troubles(process, call)
        trouble = troubles[self.choices.fault(len(troubles))]
        if trouble is not Trouble.NONE:
            self.note(history.Fault(self.now, f"{type(process).__name__} {trouble.value}"))
        match trouble:
            case Trouble.KILLED:
                self.kill(process)
            case Trouble.STALLED:
                process.stalled_until = self.now + 2.5 * self.lock
            case _ if call is None:
                self._go_on(strand)
            case _:
                self._perform(strand, call, trouble)

    def _go_on(self, strand: Strand) -> None:
        if not strand.go_on() and strand.process.alive:
            self._strands.remove(strand)
            strand.process.strands.remove(strand)

    def _perform(self, strand: Strand, call: Call, trouble: Trouble) -> None:
        if trouble not in (Trouble.REQUEST_LOST, Trouble.CUT_BEFORE):
            self._do(strand, call)
        match trouble:
            case Trouble.REQUEST_LOST | Trouble.ANSWER_LOST:
                strand.failed(BrokerError("no answer", retryable=True), self.now + TIMEOUT)
            case Trouble.CUT_BEFORE | Trouble.CUT_AFTER:
                strand.failed(BrokerError("the connection was cut", retryable=True))
                strand.process.cut()

    def _do(self, strand: Strand, call: Call) -> None:
        try:
            strand.answered(call.do())
        except (core.LockLost, core.SessionLockLost) as refusal:
            strand.failed(LeaseLost(str(refusal)))
        except core.SessionCannotBeLocked as refusal:
            strand.failed(MailboxInUse(str(refusal), retryable=True))

    def _advance(self) -> bool:
        """To the next moment at which something is due; False when that is beyond all patience."""
        moments = [max(strand.due(), strand.process.stalled_until) for strand in self._strands]
        moments += [due for queue in (self.tasks, self.results) if (due := queue.next_deadline()) is not None]
        moment = min((moment for moment in moments if moment > self.now), default=NEVER)
        if moment > self.moved_at + self.patience:
            return False
        self.now = moment
        self.tasks.advance(moment)
        self.results.advance(moment)
        return True


def _troubles(process: Process, call: Call | None) -> tuple[Trouble, ...]:
    if not process.mortal:
        return _NO_TROUBLES
    if call is None:
        return _STEP_TROUBLES
    return _RECEIVE_TROUBLES if call.receives else _CALL_TROUBLES

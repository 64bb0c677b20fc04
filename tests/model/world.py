"""A world in one thread: processes made of strands, a clock that is moved by hand, and faults.

A strand is a generator that yields what it asks for: to wait until something holds or a moment has come
(`Wait`), or to have something done at the broker or in storage (`Call`). A call takes two steps, the doing
and the answer, so that everything else, a death too, can come between them. Each step is a decision: who
moves, and what fails.

What can fail at a step: a request is lost, or its answer is (the caller gives up after `TIMEOUT`); the
connection is cut before or after the doing (all that is under way on it fails, its mailbox is closed); the
process is killed; the process stands still for longer than a lock lasts. The broker may notice the end of a
mailbox's holder at once, or only by its lock.

Who waits is looked at again when something of its own process has moved, and when a `Signal` that it listens
to was given. Moments are looked at when nobody can move: time then goes on to the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

from batchflow.errors import ServiceError
from tests.model import history
from tests.model.choices import Choices
from tests.model.cloud import Cloud, Signal, translated
from tests.model.history import Recorder

NEVER: Final = math.inf
TIMEOUT: Final = 20.0
"""Seconds until a caller gives up."""
_MOST_MOVES: Final = 100_000
"""Without an outcome or a fault: the world goes round in circles."""


class FaultKind(Enum):
    """The effect of a fault."""

    NONE = "none"
    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    CUT_BEFORE = "connection cut before the request"
    CUT_AFTER = "connection cut after the request"
    KILLED = "killed"
    STALLED = "stalled"


_CALL_FAULTS: Final = tuple(FaultKind)
_RECEIVE_FAULTS: Final = (
    FaultKind.NONE, FaultKind.CUT_BEFORE, FaultKind.CUT_AFTER, FaultKind.KILLED, FaultKind.STALLED,
)  # fmt: skip
_STEP_FAULTS: Final = (FaultKind.NONE, FaultKind.KILLED, FaultKind.STALLED)


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Wait:
    """Until something holds, or the moment has come that `due` is or says."""

    holds: Callable[[], bool] = _never
    due: float | Callable[[], float] = NEVER
    signal: Signal | None = None
    """What to listen to beside the own process."""


@dataclass(frozen=True, slots=True)
class Call:
    """Something is done at the other end; what it returns or raises comes back."""

    do: Callable[[], Any]
    receives: bool = False
    """Its answer comes over a link that cannot lose one without being cut."""


_T = TypeVar("_T")

Request = Wait | Call
Steps = Generator[Request, Any, None]
StepsTo = Generator[Request, Any, _T]
"""Steps that return a value."""


class Strand:
    """One generator at work: it is ready to move, or waits."""

    __slots__ = ("_answer", "_error", "_signal", "calling", "process", "steps", "wakes")

    def __init__(self, process: Process, steps: Steps) -> None:
        self.process = process
        self.steps = steps
        self.calling: Call | None = None
        """What is to be done for it."""
        self.wakes: Callable[[], bool] = _never
        self._signal: Signal | None = None
        self._answer: Any = None
        self._error: ServiceError | None = None

    def wait(self, request: Wait) -> None:
        process = self.process
        self.wakes = request.holds
        if request.holds is not _never:
            if request.holds():
                process.ready(self)
                return
            process.changed.listeners[self] = None
            if request.signal is not None:
                self._signal = request.signal
                request.signal.listeners[self] = None
        if request.due is not NEVER:
            process.world.timed[self] = request.due

    def wake(self) -> None:
        """It waits no longer."""
        self.forget()
        self.process.ready(self)

    def forget(self) -> None:
        """Nobody knows of it any more."""
        process = self.process
        process.changed.listeners.pop(self, None)
        if self._signal is not None:
            self._signal.listeners.pop(self, None)
            self._signal = None
        process.world.timed.pop(self, None)

    def answered(self, answer: Any) -> None:
        self.calling, self._answer = None, answer

    def failed(self, error: ServiceError) -> None:
        self.calling, self._error = None, error

    def go_on(self) -> Request | None:
        """What it asks for next; None when it has ended."""
        answer, error = self._answer, self._error
        self._answer = self._error = None
        try:
            return self.steps.throw(error) if error is not None else self.steps.send(answer)
        except StopIteration:
            return None


class Process:
    """Strands that share memory, a connection and a death."""

    mortal = True

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stalled = False
        self.strands: dict[Strand, None] = {}
        self.changed = Signal()
        """Given whenever one of its strands has moved."""
        self.gone = Signal()
        world.processes.add(self)
        self._parked: list[Strand] = []
        """Those that will be ready when it stands still no longer."""

    @property
    def now(self) -> float:
        return self.world.now

    def spawn(self, steps: Steps) -> None:
        strand = Strand(self, steps)
        self.strands[strand] = None
        self.ready(strand)

    def ready(self, strand: Strand) -> None:
        (self._parked if self.stalled else self.world.movable).append(strand)

    def stall(self) -> None:
        """Stand still."""
        self.stalled = True
        self._parked += [strand for strand in self.world.movable if strand.process is self]
        self.world.movable = [strand for strand in self.world.movable if strand.process is not self]

    def resume(self) -> None:
        """Go on."""
        self.stalled = False
        self.world.movable += self._parked
        self._parked = []

    def cut(self) -> None:
        """The connection is gone: what was under way on it has failed."""
        for strand in self.strands:
            if strand.calling is not None:
                strand.failed(broken_link())

    def killed(self) -> None:
        """It is no more."""

    def end(self, due: float = NEVER) -> Wait:
        """What to wait for: that it is no more, or the moment."""
        return Wait(lambda: not self.alive, due, self.gone)


def broken_link() -> ServiceError:
    """The error that a call gets when its connection breaks."""
    return ServiceError("the connection was cut", retryable=True)


def sleep(process: Process, seconds: float) -> Wait:
    return Wait(due=process.now + seconds)


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
    """Time, chance, the services, and who lives."""

    choices: Choices
    record: Recorder
    cloud: Cloud
    patience: float = 600.0
    """Seconds without an outcome or a fault after which the world has come to a halt."""
    now: float = 1000.0
    moved_at: float = 1000.0
    """When there was the last outcome or fault."""
    moves: int = 0
    _moved_before: int = 0
    """Moves up to the last outcome or fault."""
    processes: set[Process] = field(default_factory=set)
    owed: Callable[[], bool] = lambda: False
    """Whether there is something to do for agents beside what is in the queue."""
    current: Strand | None = None
    """The one that moves."""
    movable: list[Strand] = field(default_factory=list)
    """Those that could move, in the order in which they came to it."""
    timed: dict[Strand, float | Callable[[], float]] = field(default_factory=dict)
    """Those that wait for a moment."""
    _stalled: dict[Process, float] = field(default_factory=dict)
    """Until when."""

    def run(self, over: Callable[[], bool]) -> bool:
        """Until it is over; False when it came to a halt before."""
        while True:
            while self.movable:
                if self.moves - self._moved_before > _MOST_MOVES:
                    return False
                self._step()
            if over():
                return True
            if not self._advance():
                return False

    def note(self, record: history.Record) -> None:
        """Record it; outcomes and faults are progress."""
        if isinstance(record, history.Shown | history.Fault):
            self.moved_at, self._moved_before = self.now, self.moves
        self.record(record)

    def kill(self, process: Process) -> None:
        process.alive = False
        for strand in process.strands:
            self._drop(strand)
        self.movable = [strand for strand in self.movable if strand.process is not process]
        self._stalled.pop(process, None)
        process.strands.clear()
        process.killed()
        process.gone.give()
        self.processes.discard(process)

    def end(self, strand: Strand) -> None:
        """It does not go on."""
        self._drop(strand)
        del strand.process.strands[strand]
        if strand in self.movable:
            self.movable.remove(strand)

    def _drop(self, strand: Strand) -> None:
        strand.forget()
        if strand is not self.current:
            strand.steps.close()

    def close(self) -> None:
        """Nothing moves any more."""
        self.current = None
        for process in self.processes:
            for strand in process.strands:
                strand.steps.close()

    def forget_holder(self, mailbox: str, holder: object) -> None:
        """A mailbox's holder has lost its connection: the broker sees it at once, or only by the lock."""
        if self.cloud.results.session_holder(mailbox, self.now) is holder and self.choices.pick(2) == 0:
            self.cloud.release_mailbox(mailbox, holder, self.now)

    def child_dies(self) -> bool:
        """Whether the process that runs a task is killed before it is done."""
        dies = self.choices.fault(2) == 1
        if dies:
            self.note(history.Fault(self.now, "child killed"))
        return dies

    def _step(self) -> None:
        """One strand moves."""
        movable = self.movable
        strand = movable.pop(self.choices.order(len(movable)) if len(movable) > 1 else 0)
        self.moves += 1
        self.current = strand
        process = strand.process
        call = strand.calling
        if process.mortal and (kind := self._choose_fault(process, call)) is not FaultKind.NONE:
            self._fail(strand, call, kind)
        elif call is not None:
            self._do(strand, call)
            movable.append(strand)
        else:
            self._go_on(strand)
        if process.alive:
            process.changed.give()

    def _choose_fault(self, process: Process, call: Call | None) -> FaultKind:
        kinds = _STEP_FAULTS if call is None else _RECEIVE_FAULTS if call.receives else _CALL_FAULTS
        chosen = self.choices.fault(len(kinds))
        if chosen:
            self.note(history.Fault(self.now, f"{type(process).__name__} {kinds[chosen].value}"))
        return kinds[chosen]

    def _fail(self, strand: Strand, call: Call | None, kind: FaultKind) -> None:
        process = strand.process
        match kind:
            case FaultKind.KILLED:
                self.current = None
                self.kill(process)
            case FaultKind.STALLED:
                self._stalled[process] = self.now + 2.5 * self.cloud.lock
                self.movable.append(strand)
                process.stall()
            case _ if call is not None:
                self._perform(strand, call, kind)

    def _perform(self, strand: Strand, call: Call, kind: FaultKind) -> None:
        if kind in (FaultKind.ANSWER_LOST, FaultKind.CUT_AFTER):
            self._do(strand, call)
            strand.answered(None)
        if kind in (FaultKind.CUT_BEFORE, FaultKind.CUT_AFTER):
            strand.failed(broken_link())
            self.movable.append(strand)
            strand.process.cut()
        else:
            strand.failed(ServiceError("no answer", retryable=True))
            strand.wakes = _never
            self.timed[strand] = self.now + TIMEOUT

    def _do(self, strand: Strand, call: Call) -> None:
        try:
            strand.answered(call.do())
        except Exception as refusal:
            strand.failed(translated(refusal))

    def _go_on(self, strand: Strand) -> None:
        request = strand.go_on()
        process = strand.process
        if not process.alive:
            strand.steps.close()
            return
        if request is None:
            del process.strands[strand]
        elif isinstance(request, Wait):
            strand.wait(request)
        else:
            strand.calling = request
            process.ready(strand)

    def _advance(self) -> bool:
        """To the next moment at which something is due; False when that is beyond all patience."""
        due = {
            strand: moment if type(moment) is float else moment()  # type: ignore[operator]
            for strand, moment in self.timed.items()
            if not strand.process.stalled
        }
        clouds = self.cloud.next_deadline()
        moment = max(self.now, min([clouds, *due.values(), *self._stalled.values()]))
        if moment > self.moved_at + self.patience:
            return False
        self.now = moment
        if clouds <= moment:
            self.cloud.advance(moment)
        for process in [process for process, until in self._stalled.items() if until <= moment]:
            del self._stalled[process]
            process.resume()
        for strand, when in due.items():
            if when <= moment:
                strand.wake()
        return True

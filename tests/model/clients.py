"""Programs in the model: each opens sessions of one name, one after another, and submits its tasks.

When its session is killed, taken over or closed, a program opens another one by the same name, which goes on
with what was not submitted yet. A rival is a program without tasks that opens the mailbox of another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from batchflow.retry import DEFAULT_ATTEMPTS
from tests.model.agents import Work
from tests.model.sessions import Session
from tests.model.world import Process, Steps, Wait, World, sleep

_AGAIN = 1.0
"""Seconds until a program opens its next session."""
_STAY = 40.0
"""Seconds that a rival stays in a mailbox."""


class Journal(set[str]):
    """It lives on the host, not in the process."""

    def record(self, uid: str) -> None:
        self.add(uid)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a program does."""

    name: str
    works: Sequence[Work]
    job: str = "job"
    window: int = 1000
    """Tasks without an outcome at a time."""
    cancels: frozenset[int] = frozenset()
    """The places of the tasks that are cancelled."""
    cancel_after: float = 0.0
    """Seconds after they were submitted."""
    known_short: bool = False
    """Whether tasks are known to be short, and share messages from the start."""
    journal: bool = False
    unclaimed: int = 500
    """Unread outcomes that are held in memory."""
    pause: float = 0.0
    """Seconds that the program takes before it reads what has come."""
    closes_after: int | None = None
    """Outcomes after which it closes its session, and opens another one."""
    expires: bool = False
    """Whether tasks may be given up by the broker."""
    rivals: tuple[float, ...] = ()
    """The moments, in seconds after the start, at which another client tries to open the mailbox."""

    graph: bool = False
    """Whether tasks wait for others."""

    def outcomes(self, place: int) -> tuple[str, ...]:
        """Those that a task may have."""
        work = self.works[place]
        if work.crashes_agent:
            allowed = ["failed TaskPoisoned"]
        elif work.failures >= DEFAULT_ATTEMPTS or work.fails:
            allowed = ["failed TaskFailed"]
        else:
            allowed = ["succeeded", "failed WorkerDied"]
        if work.waits:
            allowed.append("failed DependencyFailed")
        if place in self.cancels or (work.waits and self.cancels):
            allowed.append("cancelled TaskCancelled")
        if self.expires:
            allowed += ["failed TaskFailed", "failed TaskPoisoned"]
        if work.large_arguments and (self.expires or place in self.cancels):
            allowed.append("failed TaskRejected")  # they go with the first outcome, which need not be shown
        return tuple(allowed)


class SessionOwner(Process):
    """A process that opens sessions by a plan."""

    mortal = False

    def __init__(self, world: World, name: str, plan: Plan) -> None:
        super().__init__(world, name)
        self.plan = plan
        self.next = 0
        """The place of the task that is submitted next."""
        self.session: Session | None = None
        self.journal = Journal() if plan.journal else None
        self._numbers = itertools.count(1)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def open_session(self) -> Session:
        """Open the next session."""
        self.session = Session(self, f"{self.name}.{next(self._numbers)}")
        return self.session


class Program(SessionOwner):
    """Opens a session, and another one when that is over."""

    def __init__(self, world: World, plan: Plan) -> None:
        super().__init__(world, plan.name, plan)
        self.spawn(self._keep_open())

    @property
    def done(self) -> bool:
        """Whether everything was submitted and nothing is left to do."""
        session = self.session
        return self.next == len(self.plan.works) and session is not None and session.alive and session.quiet

    @property
    def waits(self) -> bool:
        """Whether its session waits for outcomes."""
        session = self.session
        return session is not None and session.alive and session.opened and len(session.tracker) > 0

    @property
    def owed(self) -> int:
        """Outcomes that its next session would wait for."""
        return 0 if self.session is None else self.session.mailbox.owed

    def _keep_open(self) -> Steps:
        while True:
            yield self.open_session().end()
            yield sleep(self, _AGAIN)


class Rival(SessionOwner):
    """Another client that wants the same mailbox, now and then."""

    def __init__(self, world: World, plan: Plan) -> None:
        super().__init__(world, f"{plan.name}-rival", Plan(plan.name, (), plan.job, graph=plan.graph))
        self.spawn(self._try(plan.rivals))

    @property
    def done(self) -> bool:
        """Whether it has given the mailbox back."""
        return not self.strands

    def _try(self, moments: tuple[float, ...]) -> Steps:
        began = self.now
        for moment in moments:
            yield Wait(due=began + moment)
            session = self.open_session()
            yield session.end(self.now + _STAY)
            if session.alive and not session.closing:
                session.spawn(session.close())
                yield session.end()

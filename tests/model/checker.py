"""Whether a history keeps the promise: exactly one outcome for each accepted task, and never a silent hang.

Rules:

- lost: every task that the broker has accepted, or that was written down, is shown, and so is every task of a
  holder that did not die.
- twice: no holder is shown a task twice, nor is one shown what a holder before it has been shown, unless that
  one died or was replaced while it stood still; how often that happened is counted. A death excuses nothing
  where both keep a journal.
- unmarked: what is shown again after a death is marked as such, also when another holder was in between.
- unknown: nothing is shown that nobody has submitted, and no answer is that of another task.
- outcome: a task has one of the outcomes that it may have; one during which agents were killed may be taken
  for deadly.
- started: a task does not start more than a second after its cancellation can be seen and the broker is known
  to have it, unless the session that cancelled it has closed meanwhile.
- misrouted: an outcome is shown in the mailbox that its task was submitted from.
- stuck: while a task is owed, an outcome is shown or something is made to fail every `patience` seconds.
- early: a task starts when all that it waits for have succeeded, or with `passes` have ended.
- values: a task is given the value of each task that it takes, in their order.
- followed: a task that ends because another one failed names one that failed by itself, and that it waits
  for, directly or through others.
- left: at the end the queues are empty, the dead letters too, and no mailbox is owed anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from node_agent.scheduling.scheduler import MAX_CRASHES
from tests.model.history import (
    Accepted,
    Cancelled,
    Closed,
    Ended,
    Fault,
    Finished,
    Gone,
    Opened,
    Queue,
    Record,
    Saved,
    Shown,
    Started,
    Submitted,
)

_MOST_TOLD = 20
SUCCEEDED = "succeeded"
DEPENDENCY_FAILED = "failed DependencyFailed"
NEVER_RAN = frozenset({DEPENDENCY_FAILED, "cancelled TaskCancelled"})
LOST = "failed TaskFailed"
FAILED = "failed"
"""What a real task says of a failure that it was given."""
_SEEN_WITHIN = 1.0
"""Seconds."""


@dataclass(slots=True)
class _Task:
    mailbox: str
    submitter: str
    outcomes: Sequence[str] | None
    accepted_at: float = math.inf
    cancelled_at: float = math.inf
    starts: int = 0
    saved: bool = False
    saved_late: bool = False
    """By a holder that stood still, when another one may have shown the inputs already."""
    inputs: Sequence[str] = ()
    waits: Sequence[str] = ()
    """The inputs, and what it is after."""
    passes: bool = False
    ends: set[str] = field(default_factory=set)
    """How it has ended, by what agents and sessions sent."""
    holder: str | None = None
    """Who was shown it last."""


@dataclass(slots=True)
class Checker:
    """Feed it the records of a history in their order; it is the verdict."""

    patience: float = 120.0
    """Seconds."""
    faults: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    """How often each rule was broken."""
    told: list[str] = field(default_factory=list)
    """The first of those cases, in words."""
    submitted: int = 0
    accepted: int = 0
    shown: int = 0
    shown_again: int = 0
    """By another holder, after one of the two had died or was replaced."""
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _holders: dict[str, str] = field(default_factory=dict)
    """Who has opened a mailbox last."""
    _journalled: set[str] = field(default_factory=set)
    _replaced: set[str] = field(default_factory=set)
    _closed: set[str] = field(default_factory=set)
    _gone: set[str] = field(default_factory=set)
    _followers: list[tuple[Shown, _Task]] = field(default_factory=list)
    """What was shown to have failed because another task had."""
    _owed: int = 0
    _moved_at: float = 0.0
    _ended: bool = False

    @property
    def holds(self) -> bool:
        """Whether the promise was kept, to the end of the history."""
        return self._ended and not self.broken

    def add(self, record: Record) -> None:
        match record:
            case Started(at, task, values):
                self._started(at, task, values)
            case Finished(_, task, status):
                if (known := self._tasks.get(task)) is not None:
                    known.ends.add(status)
            case Submitted():
                self._submitted(record)
            case Accepted(at, task):
                if self._tasks[task].accepted_at == math.inf:
                    self._tasks[task].accepted_at = at
                    self.accepted += 1
            case Saved(_, task):
                self._tasks[task].saved = True
                self._tasks[task].saved_late |= self._tasks[task].submitter in self._replaced
            case Shown():
                self._shown(record)
            case Fault(at, what):
                self.faults[what] += 1
                self._move(at)
            case Cancelled(at, task):
                self._tasks[task].cancelled_at = at
            case Opened():
                self._opened(record)
            case Closed(_, holder):
                self._closed.add(holder)
            case Gone(_, holder):
                self._gone.add(holder)
            case Queue():
                if record.active or record.scheduled or record.dead:
                    self._break("left", f"{record}")
            case Ended(at, halted):
                self._end(at, halted)

    def summary(self) -> str:
        """One line."""
        verdict = ", ".join(f"{number} {rule}" for rule, number in sorted(self.broken.items()))
        again = f", {self.shown_again} again after a death" if self.shown_again else ""
        return (
            f"{self.submitted} tasks submitted, {self.accepted} known as accepted, {self.shown} outcomes "
            f"shown{again}, {self.faults.total()} faults: {verdict or 'the promise is kept'}"
        )

    def _opened(self, opened: Opened) -> None:
        if (former := self._holders.get(opened.mailbox)) is not None:
            self._replaced.add(former)
        self._holders[opened.mailbox] = opened.holder
        if opened.journalled:
            self._journalled.add(opened.holder)

    def _submitted(self, submitted: Submitted) -> None:
        task = submitted.task
        if task in self._tasks:
            self._break("unknown", f"{task} was submitted twice: the history cannot be judged")
            return
        self.submitted += 1
        self._tasks[task] = _Task(
            submitted.mailbox,
            submitted.holder,
            submitted.outcomes,
            inputs=submitted.inputs or (),
            waits=(*(submitted.inputs or ()), *(submitted.after or ())),
            passes=submitted.passes,
        )
        if not self._owed:
            self._moved_at = submitted.at
        self._owed += 1

    def _started(self, at: float, name: str, values: Sequence[str] | None) -> None:
        task = self._tasks.get(name)
        if task is None:
            self._break("unknown", f"{name} was started, and never submitted")
            return
        task.starts += 1
        if (
            at > max(task.cancelled_at, task.accepted_at) + _SEEN_WITHIN
            and task.submitter not in self._closed
        ):
            self._break("started", f"{name} at {at:.3f}, cancelled at {task.cancelled_at:.3f}")

        for other in task.waits:
            ends = self._tasks[other].ends
            if not ends if task.passes else SUCCEEDED not in ends:
                self._break("early", f"{name} at {at:.3f} before {other}, which has ended {sorted(ends)}")
        if values is not None and not self._are_values(values, task):
            self._break("values", f"{name} got {values} of {task.inputs}")

    def _are_values(self, values: Sequence[str], task: _Task) -> bool:
        return len(values) == len(task.inputs) and all(
            value == name
            or (task.passes and self._is_failure(value, self._tasks[name]))
            or (task.saved_late and value == LOST)
            for name, value in zip(task.inputs, values, strict=True)
        )

    def _is_failure(self, value: str, task: _Task) -> bool:
        """Whether a task may have failed so.

        A later session knows of one that never ran only that it failed.
        """
        failures = task.ends - {SUCCEEDED}
        return (
            value in failures
            or (value == FAILED and bool(failures))
            or (value == LOST and not task.ends.isdisjoint(NEVER_RAN))
        )

    def _shown(self, shown: Shown) -> None:
        self.shown += 1
        self._move(shown.at)
        task = self._tasks.get(shown.task)
        if task is None:
            self._break("unknown", f"{shown} was never submitted")
            return
        if task.mailbox != shown.mailbox:
            self._break("misrouted", f"{shown} belongs to {task.mailbox}")
        if shown.answer is not None and shown.answer != shown.task:
            self._break("unknown", f"{shown} has the answer of another task")
        if (
            task.outcomes is not None
            and shown.status not in task.outcomes
            and not self._suspected(shown, task)
        ):
            self._break("outcome", f"{shown}, not one of {task.outcomes}")
        if shown.status != SUCCEEDED:
            task.ends.add(shown.status)
        if shown.status == DEPENDENCY_FAILED:
            self._followers.append((shown, task))
        self._once(shown, task)

    def _follows(self, shown: Shown, task: _Task) -> bool:
        """Whether the task that an outcome names has failed by itself, and is waited for.

        A later session may not know any more why that failed, and names the one that it knows.
        """
        known = set(task.waits)
        looked = list(known)
        while looked:
            above = self._tasks[looked.pop()].waits
            looked += known.symmetric_difference(known.union(above))
            known.update(above)
        if shown.because is None or shown.because not in known:
            return False
        own = set() if shown.holder != task.submitter else NEVER_RAN
        return task.saved_late or bool(self._tasks[shown.because].ends - {SUCCEEDED} - own)

    def _suspected(self, shown: Shown, task: _Task) -> bool:
        """Whether agents were killed so often while it ran that it must be taken for deadly."""
        kills = self.faults["Agent killed"]
        return shown.status == "failed TaskPoisoned" and min(task.starts, kills) >= MAX_CRASHES

    def _once(self, shown: Shown, task: _Task) -> None:
        if task.holder is None:
            self._owed -= 1
        elif self._may_show_again(task.holder, shown.holder):
            self.shown_again += 1
            if not shown.repeated and shown.holder not in self._replaced:
                self._break("unmarked", f"{shown} was shown to {task.holder} before")
        else:
            self._break("twice", f"{shown} was shown to {task.holder} before")
        task.holder = shown.holder

    def _may_show_again(self, former: str, holder: str) -> bool:
        if former == holder:
            return False
        if holder in self._replaced:
            return True
        if former in self._closed or (former in self._journalled and holder in self._journalled):
            return False
        return former in self._gone or former in self._replaced

    def _move(self, at: float) -> None:
        if self._owed and at - self._moved_at > self.patience:
            self._break("stuck", f"nothing happened from {self._moved_at:.1f} to {at:.1f}: {self._owed} owed")
        self._moved_at = at

    def _end(self, at: float, halted: bool) -> None:
        self._ended = True
        for shown, task in self._followers:
            if not self._follows(shown, task):
                self._break("followed", f"{shown} waits for {task.waits}")
        if halted:
            self._break("stuck", f"nothing more happened after {self._moved_at:.1f}")
        owed = {
            name: task
            for name, task in self._tasks.items()
            if task.holder is None
            and (task.accepted_at < math.inf or task.saved or task.submitter not in self._gone)
        }
        for name, task in owed.items():
            self._break("lost", f"{name} of {task.mailbox} was never shown")
        if owed:
            self._move(at)

    def _break(self, rule: str, what: str) -> None:
        self.broken[rule] += 1
        if len(self.told) < _MOST_TOLD:
            self.told.append(f"{rule}: {what}")

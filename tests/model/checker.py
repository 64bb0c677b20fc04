"""Whether a history keeps the promise: exactly one outcome for each accepted task, and never a silent hang.

Rules:

- lost: every task that the broker has accepted is shown, and so is every task of a holder that did not die.
- twice: no holder is shown a task twice, nor is one shown what a holder before it has been shown, unless that
  one died; how often that happened is counted.
- unknown: nothing is shown that nobody has submitted, and no answer is that of another task.
- misrouted: an outcome is shown in the mailbox that its task was submitted from.
- stuck: while a task is owed, an outcome is shown or something is made to fail every `patience` seconds.
- left: at the end the queues are empty, the dead letters too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.model.history import Accepted, Ended, Fault, Gone, Opened, Queue, Record, Shown, Submitted

_MOST_TOLD = 20


@dataclass(slots=True)
class _Task:
    mailbox: str
    submitter: str
    accepted: bool = False
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
    """By a later holder, after the one that was shown it before had died."""
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)
    _owed: int = 0
    _moved_at: float = 0.0
    _ended: bool = False

    @property
    def holds(self) -> bool:
        """Whether the promise was kept, to the end of the history."""
        return self._ended and not self.broken

    def add(self, record: Record) -> None:
        match record:
            case Submitted(at, mailbox, holder, task):
                self._submitted(at, mailbox, holder, task)
            case Accepted(_, task):
                self._tasks[task].accepted = True
                self.accepted += 1
            case Shown():
                self._shown(record)
            case Gone(_, holder):
                self._gone.add(holder)
            case Fault(at, what):
                self.faults[what] += 1
                self._move(at)
            case Queue():
                if record.active or record.scheduled or record.dead:
                    self._break("left", f"{record}")
            case Ended(at, halted):
                self._end(at, halted)
            case Opened():
                pass

    def summary(self) -> str:
        """One line."""
        verdict = ", ".join(f"{number} {rule}" for rule, number in sorted(self.broken.items()))
        again = f", {self.shown_again} again after a death" if self.shown_again else ""
        return (
            f"{self.submitted} tasks submitted, {self.accepted} known as accepted, {self.shown} outcomes "
            f"shown{again}, {self.faults.total()} faults: {verdict or 'the promise is kept'}"
        )

    def _submitted(self, at: float, mailbox: str, holder: str, task: str) -> None:
        if task in self._tasks:
            self._break("unknown", f"{task} was submitted twice: the history cannot be judged")
            return
        self.submitted += 1
        self._tasks[task] = _Task(mailbox, holder)
        if not self._owed:
            self._moved_at = at
        self._owed += 1

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
        self._once(shown, task)

    def _once(self, shown: Shown, task: _Task) -> None:
        if task.holder is None:
            self._owed -= 1
        elif task.holder == shown.holder or task.holder not in self._gone:
            self._break("twice", f"{shown} was shown to {task.holder} before")
        else:
            self.shown_again += 1
        task.holder = shown.holder

    def _move(self, at: float) -> None:
        if self._owed and at - self._moved_at > self.patience:
            self._break("stuck", f"nothing happened from {self._moved_at:.1f} to {at:.1f}: {self._owed} owed")
        self._moved_at = at

    def _end(self, at: float, halted: bool) -> None:
        self._ended = True
        if halted:
            self._break("stuck", f"nothing more happened after {self._moved_at:.1f}")
        owed = {
            name: task
            for name, task in self._tasks.items()
            if task.holder is None and (task.accepted or task.submitter not in self._gone)
        }
        for name, task in owed.items():
            self._break("lost", f"{name} of {task.mailbox} was never shown")
        if owed:
            self._move(at)

    def _break(self, rule: str, what: str) -> None:
        self.broken[rule] += 1
        if len(self.told) < _MOST_TOLD:
            self.told.append(f"{rule}: {what}")

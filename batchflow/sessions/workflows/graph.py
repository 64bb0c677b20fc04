"""Which tasks wait for which, and what follows when one ends. Pure.

Rules:

- A task is ready when all that it waits for have succeeded. With `on_failure="pass"` it is ready when all
  have ended.
- The first one that fails decides: the task that waits for it fails as well, and so on downward. What waits
  for a cancelled task is cancelled.
- A task can only wait for tasks that were submitted before it, so there is no cycle.
- A task that has its outcome (it was cancelled) is neither ready nor failed by what ends later.

Events in: the methods. Commands out: what they return, to be performed in this order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchflow.model import Status
from batchflow.sessions.records.tracker import Entry
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.sessions.records.submission import Submission


@frozen
class RunsWith:
    """What a task runs with besides its arguments, as it was at the submit."""

    bundle: str
    """The hash of its files."""
    pickle: str | None = None
    """The hash of the bundle of a function by value."""
    environment: str | None = None
    """The hash of the bundle with its Python packages."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A task that waits for others, and what it is sent with once they have ended."""

    entry: Entry
    submission: Submission
    inputs: tuple[Entry, ...]
    """What it waits for, each once: for values and for order."""
    runs_with: RunsWith
    size: int = 0
    """Bytes of its arguments, which the session holds."""
    missing: int = 0
    """How many of the inputs have not ended."""

    @property
    def passes_failures(self) -> bool:
        return self.submission.on_failure == "pass"


@frozen
class Ready:
    """Command: send this task."""

    waiting: Waiting


@frozen
class Unreachable:
    """Command: end this task, because one that it waits for did not succeed."""

    waiting: Waiting
    because: Entry


GraphCommand = Ready | Unreachable


class DependencyGraph:
    """The tasks of a session that wait for others."""

    def __init__(self) -> None:
        self._consumers: dict[Entry, list[Waiting]] = {}
        """Those that wait for a task, by that task."""
        self._waiting: dict[Entry, Waiting] = {}
        self.held_bytes: int = 0
        """Bytes of arguments of the tasks that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    def find(self, entry: Entry) -> Waiting | None:
        """Return the task with what it waits for; None when it does not wait any more."""
        return self._waiting.get(entry)

    def concerns(self, entry: Entry) -> bool:
        """Return whether a task waits for others, or others for it."""
        return entry in self._waiting or entry in self._consumers

    def waits_for(self, entry: Entry) -> bool:
        """Return whether a task waits for this one."""
        return any(each.entry in self._waiting for each in self._consumers.get(entry, ()))

    def consumers(self, entry: Entry) -> list[Waiting]:
        """Return the tasks that wait for this one."""
        return [each for each in self._consumers.get(entry, ()) if each.entry in self._waiting]

    def hold(self, waiting: Waiting) -> list[GraphCommand]:
        """Take in a task that waits for others, some or all of which may have ended."""
        self._waiting[waiting.entry] = waiting
        self.held_bytes += waiting.size
        for entry in waiting.inputs:
            if not entry.done:
                self._consumers.setdefault(entry, []).append(waiting)
                waiting.missing += 1
            elif not waiting.passes_failures and entry.status is not Status.SUCCEEDED:
                self._forget(waiting)
                return [Unreachable(waiting, entry)]
        return [] if waiting.missing else [self._ready(waiting)]

    def ended(self, entry: Entry) -> list[GraphCommand]:
        """Note that a task has its outcome."""
        if (own := self._waiting.get(entry)) is not None:
            self._forget(own)
        commands: list[GraphCommand] = []
        for waiting in self._consumers.pop(entry, ()):
            if waiting.entry not in self._waiting:
                continue
            waiting.missing -= 1
            if not waiting.passes_failures and entry.status is not Status.SUCCEEDED:
                self._forget(waiting)
                commands.append(Unreachable(waiting, entry))
            elif not waiting.missing:
                commands.append(self._ready(waiting))
        return commands

    def needed_by_none_but(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the unfinished tasks, upward, whose only consumers are these tasks and what is returned."""
        dropped = dict.fromkeys(entries)
        looked = list(dropped)
        found: list[Entry] = []
        while looked:
            waiting = self._waiting.get(looked.pop())
            for entry in () if waiting is None else waiting.inputs:
                consumers = [each.entry for each in self._consumers.get(entry, ())]
                others = [each for each in consumers if each in self._waiting and each not in dropped]
                if not entry.done and entry not in dropped and not others:
                    dropped[entry] = None
                    found.append(entry)
                    looked.append(entry)
        return found

    def _ready(self, waiting: Waiting) -> Ready:
        self._forget(waiting)
        return Ready(waiting)

    def _forget(self, waiting: Waiting) -> None:
        del self._waiting[waiting.entry]
        self.held_bytes -= waiting.size

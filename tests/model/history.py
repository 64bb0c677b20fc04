"""What happened to tasks, as the checker reads it: recorded by the model and by real runs alike.

A history is a sequence of records in the order of their happening. As a file it has one JSON array for each
line: the record's kind, then its fields. Times are seconds of any one clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TextIO, get_args


@dataclass(frozen=True, slots=True)
class Opened:
    """A holder has its mailbox."""

    at: float
    mailbox: str
    holder: str
    journalled: bool = False
    """Whether it keeps a journal: it is on the host of all those that do."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A program gave a task to its session."""

    at: float
    mailbox: str
    holder: str
    task: str
    """Unique in the whole history."""
    outcomes: Sequence[str] | None = None
    """Those that it may have; None: any."""
    inputs: Sequence[str] | None = None
    """The tasks whose values it takes."""
    after: Sequence[str] | None = None
    """The tasks that it waits for otherwise."""
    passes: bool = False
    """Whether it also runs after those that failed."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The session was told that the broker has the task."""

    at: float
    task: str


@dataclass(frozen=True, slots=True)
class Saved:
    """The task, which waits for others, was written down for later sessions of the name."""

    at: float
    task: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The session was told that every agent can see that the task is cancelled."""

    at: float
    task: str


@dataclass(frozen=True, slots=True)
class Started:
    """An agent decided that the task runs now."""

    at: float
    task: str
    values: Sequence[str] | None = None
    """What it was given of its inputs, each as `Shown.answer`, or the status of one that failed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A task has ended, and its result is sent: by an agent, or by the session itself."""

    at: float
    task: str
    status: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A program was handed an outcome."""

    at: float
    mailbox: str
    holder: str
    task: str
    status: str
    answer: str | None = None
    """What the task's code returned; of a task that succeeded it is the task's own name."""
    repeated: bool = False
    """Whether the outcome was marked as perhaps shown before."""
    because: str | None = None
    """The task that the outcome names, because this one waited for it."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A holder has closed in order: what it had read is known to its successors."""

    at: float
    holder: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A holder is no more."""

    at: float
    holder: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something was made to fail."""

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class Queue:
    """What a queue held at the end, or what a mailbox's checkpoint told of outcomes to come."""

    at: float
    name: str
    active: int
    scheduled: int
    dead: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over."""

    at: float
    halted: bool = False
    """Nothing more would have happened, although something was still to be done."""


Record = (
    Opened
    | Submitted
    | Accepted
    | Saved
    | Cancelled
    | Started
    | Finished
    | Shown
    | Closed
    | Gone
    | Fault
    | Queue
    | Ended
)
Recorder = Callable[[Record], None]

_KINDS = {kind.__name__: kind for kind in get_args(Record)}


def write(records: Iterable[Record], file: TextIO) -> None:
    """One line for each."""
    file.writelines(json.dumps([type(record).__name__, *astuple(record)]) + "\n" for record in records)


def read(file: Iterable[str]) -> Iterator[Record]:
    """What `write` wrote."""
    for line in file:
        kind, *values = json.loads(line)
        yield _KINDS[kind](*values)

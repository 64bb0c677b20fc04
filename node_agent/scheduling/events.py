"""What the scheduler is told, and what it asks for: its events and its commands.

Tasks and deliveries are named by numbers: deliveries by the shell's, tasks by the scheduler's. Durations are
seconds; `at` is seconds since the epoch by the node's clock, every other moment is the monotonic clock's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from batchflow.model import Attempt, Status
from batchflow.protocol.documents import AgentState, Cancellation
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from batchflow.support.frozen import frozen

Session = tuple[str, str]
"""Job and client."""


@frozen
class Arrived:
    """A message of tasks is under our lock."""

    delivery: int
    tasks: Sequence[TaskItem]
    redelivered: bool
    """An agent held it before and did not complete it."""
    age: float
    """Seconds that the message has been in the broker, at most."""
    lane: int = 0
    """The task queue that it came from, by its index."""
    age_at_lock: float | None = None
    """Seconds that it had been in the broker, by whose clock, when that locked it; None: as `age`.

    A message may reach a node that stood still long after its lock. What has to know the latest state of
    things counts by `age`; what must not give up a task too early counts by this."""


@frozen
class Prepared:
    """All that the slot's tasks need is on the disk."""

    slot: int


@frozen
class Ended:
    """A task is over, as far as its slot is concerned."""

    task: int
    failure: Failure | None
    error: str | None
    at: float
    duration: float
    chance: float
    """0 to 1, drawn for the jitter of a retry."""
    outcome: object = None
    """What `SendResult` brings back. The scheduler does not look at it."""


@frozen
class Unable:
    """The node could not run a task, or lost what it left: the task has no outcome. A `Freed` follows."""

    task: int
    error: str
    at: float
    began: bool = False
    """Whether the task ran, and may itself have done what is wrong with the node."""


@frozen
class Freed:
    """Nothing runs in the slot any more. Its tasks that have not ended never will."""

    slot: int


@frozen
class Recalled:
    """These of the slot's tasks, its last ones, have not begun and will not."""

    slot: int
    tasks: Sequence[int]


@frozen
class ResultsAccepted:
    """The broker has these tasks' results."""

    tasks: Sequence[int]


@frozen
class CopyAccepted:
    """The broker has the copy of a task that was handed back."""

    task: int


@frozen
class CopyRefused:
    """The broker does not take the copy, for good."""

    task: int


@frozen
class Beside:
    """So many tasks run, or wait, that are no message's, and that no slot has: those of broadcasts."""

    tasks: int


@frozen
class Completed:
    """The message is gone from its queue."""

    delivery: int


@frozen
class LeaseGone:
    """The message's lock ran out: another agent may hold it."""

    delivery: int


@frozen
class CancellationRead:
    """A session's cancellation document, as it was at `asked_at` or later. None: there is none."""

    session: Session
    document: Cancellation | None
    asked_at: float


@frozen
class CancellationUnread:
    """It could not be read."""

    session: Session


@frozen
class SpendingRead:
    """The ledger of a budget has so many bytes, this agent's report included."""

    ledger: str
    size: int


@frozen
class SpendingUnread:
    """The report of what was spent did not arrive."""

    ledger: str


@frozen
class Blocked:
    """Whether the broker takes no results for the moment."""

    blocked: bool


@frozen
class Drain:
    """Stop: let tasks finish within `grace`, hand the rest back."""

    grace: float


@frozen
class NothingLeft:
    """The last look found no message."""


@frozen
class Tick:
    """The deadline has come."""


Event = (
    Arrived
    | Prepared
    | Ended
    | Unable
    | Freed
    | Recalled
    | ResultsAccepted
    | CopyAccepted
    | CopyRefused
    | Completed
    | LeaseGone
    | CancellationRead
    | CancellationUnread
    | SpendingRead
    | SpendingUnread
    | Beside
    | Blocked
    | Drain
    | NothingLeft
    | Tick
)


class Feed(Protocol):
    """What takes events, those together that came together."""

    def __call__(self, *events: Event) -> None: ...


@frozen
class Verdict:
    """An outcome that the scheduler decided: the task did not run, or was stopped."""

    status: Status
    kind: str
    error: str


@frozen
class Pull:
    """Messages are wanted from now on."""


@frozen
class Hold:
    """No more messages are wanted; with `express` none but those of interactive lanes."""

    express: bool = False


@frozen
class LastLook:
    """Say that the agent is exiting, then look once more; answered by `Arrived` or `NothingLeft`."""


@frozen
class Announce:
    """The agent's state is another one."""

    state: AgentState


@frozen
class Prepare:
    """Bring what these tasks need to the slot; answered by `Prepared`, or by `Ended` and `Freed`."""

    slot: int
    tasks: tuple[int, ...]


@frozen
class Start:
    """Run these, one after another; answered by an `Ended` for each and a `Freed`.

    None begins after `Settlement.start_by`; then the `Freed` comes without the `Ended` of the rest.
    """

    slot: int
    tasks: tuple[int, ...]


@frozen
class Follow:
    """Run these, too, after all that was given to the slot: its tasks have not all ended.

    None begins after `Settlement.start_by`.
    """

    slot: int
    tasks: tuple[int, ...]


@frozen
class Stop:
    """Kill what runs in the slot, and prepare no further; answered by `Freed`."""

    slot: int


@frozen
class Recall:
    """Take back the slot's tasks that have not begun; answered by `Recalled`."""

    slot: int


@frozen
class SendResult:
    """Send the task's result: the verdict, or else the outcome that its slot reported.

    Answered by `ResultsAccepted`.
    """

    task: int
    verdict: Verdict | None = None
    outcome: object = None


@frozen
class HandBack:
    """Send a copy of the task to the queue; answered by `CopyAccepted` or `CopyRefused`."""

    task: int
    delay: float = 0.0
    attempt: int | None = None
    """None: uncharged."""
    history: tuple[Attempt, ...] = ()
    reason: Literal["retry", "drain", "straggler", "excess", "isolation", "node", "needs"] = "isolation"
    expires: float | None = None
    """Seconds within which the copy may begin; None: without a limit."""


@frozen
class Complete:
    """Remove the message from its queue; answered by `Completed` or `LeaseGone`."""

    delivery: int


@frozen
class Leave:
    """Nothing more is done about the message: its lock is lost, or left to run out."""

    delivery: int


@frozen
class ForgetCrashes:
    """The record of what died with the agent may forget this task."""

    uid: str


@frozen
class ReadCancellation:
    """Read a session's cancellation document; answered by `CancellationRead` or `CancellationUnread`."""

    session: Session


@frozen
class ReportSpending:
    """Add so many grains to the ledger of a budget; answered by `SpendingRead` or `SpendingUnread`."""

    ledger: str
    grains: int


@frozen
class StepBack:
    """The node cannot run tasks: say why. The agent takes no more, and exits when nothing runs."""

    error: str


@frozen
class Exit:
    """The agent's work is over."""

    reason: Literal["idle", "drained", "drained, some tasks are left to their locks", "unfit"]


Command = (
    Pull
    | Hold
    | LastLook
    | Announce
    | Prepare
    | Start
    | Follow
    | Stop
    | Recall
    | SendResult
    | HandBack
    | Complete
    | Leave
    | ForgetCrashes
    | ReadCancellation
    | ReportSpending
    | StepBack
    | Exit
)

"""What the scaling policy sees, remembers and answers. Times and durations are in seconds."""

from __future__ import annotations

from dataclasses import field
from typing import Final

from batchflow.protocol.documents import Document, ScalingLimits
from batchflow.support.frozen import frozen

UNKNOWN_BOOT: Final = 180.0
"""Seconds from asking for a node to its agent's first heartbeat, where none has been seen."""
TASK_WEIGHT: Final = 0.02
"""Weight of a task's duration in the mean of `Observation.task_seconds`."""
_WEIGHT: Final = 0.2
"""Weight of a new value in the running mean, once there are several."""


@frozen
class Estimate:
    """A running mean with its spread, learned from values that were seen."""

    mean: float
    deviation: float = 0.0
    """The mean distance of values from the mean."""
    count: int = 1
    """Number of values that were seen."""

    def with_value(self, value: float, weight: float = _WEIGHT) -> Estimate:
        """Return the estimate that also knows this value.

        `weight`: of the new value, once there are several. Durations of tasks spread more than boots, so
        their weight is `TASK_WEIGHT`.
        """
        weight = max(weight, 1.0 / (self.count + 1))
        distance = abs(value - self.mean)
        return Estimate(
            self.mean + weight * (value - self.mean),
            self.deviation + weight * (distance - self.deviation),
            self.count + 1,
        )


def learn(estimate: Estimate | None, value: float, weight: float = _WEIGHT) -> Estimate:
    """Add a value to an estimate, or begin one with it."""
    return Estimate(value) if estimate is None else estimate.with_value(value, weight)


@frozen
class Observation:
    """What is known of a pool at one moment, from documents that every client can read, and from Batch.

    Counts are of the whole pool, not of one session or client.
    """

    now: float
    """Seconds since the epoch."""
    limits: ScalingLimits
    waiting: int = 0
    """Tasks that have not begun: in the outboxes of sessions, in the task queues, in the agents' hands."""
    running: int = 0
    """Tasks that run, as heartbeats say."""
    ready: int = 0
    """Agents that have a fresh heartbeat and take tasks."""
    booting: tuple[float, ...] = ()
    """For each agent that was asked for and has no heartbeat yet: seconds since it was asked for.

    Agents that can never run (a failed start task, an unusable node) are not among them.
    """
    idle: tuple[float, ...] = ()
    """For each ready agent without a task: seconds since its last one. At most `ready` of them."""
    slots: int = 1
    """Slots of a node."""
    task_seconds: Estimate | None = None
    """How long the waiting tasks will run, from the durations of their commands; None: none has ended yet."""
    running_seconds: float = 0.0
    """How long the running tasks have run, on average. It tells something before the first one has ended."""
    boot_seconds: Estimate | None = None
    """From asking for a node to its agent's first heartbeat, from boots seen; None: `UNKNOWN_BOOT`."""
    idle_exit: float = 600.0
    """Seconds without a task after which an agent leaves by itself: `agent.idle_exit`."""
    spot: int = 0
    """Spot nodes among the ready and booting ones."""
    spot_lost: int = 0
    """Spot nodes that Azure took since the observation before."""
    spot_refused: bool = False
    """Whether Batch could not allocate the spot nodes that it was asked for last."""
    dedicated_price: float | None = None
    spot_price: float | None = None
    """Of a node for an hour, in one currency; None: unknown."""


@frozen
class ScalingMemory(Document):
    """What the next decision needs to know of those before it. It travels in wishes, so any client can go on.

    The default is the memory of a client that knows nothing: its decision differs in when it changes a
    number, not in which number it aims at.
    """

    agents: int = 0
    """The number that was wanted last."""
    raised_at: float = 0.0
    """When that number rose last; 0: never."""
    low_since: float | None = None
    """Since when fewer agents would do than are there; None: they would not."""
    low_peak: int = 0
    """The most agents that were needed since then."""
    seen_at: float = 0.0
    """When the last observation was made; 0: never."""
    tasks: int = 0
    """Tasks that waited or ran then."""
    running: int = 0
    """Tasks that ran then."""
    half_since: float = 0.0
    """When the present half of a boot time began, in which arrivals are counted; 0: never."""
    arrived: float = 0.0
    """Tasks that have come since."""
    rates: tuple[float, float] = (0.0, 0.0)
    """Tasks that came in a second, in the half before and in the one before that."""
    spot_hours: float = 0.0
    """Hours that spot nodes were there, lately: older ones count less."""
    spot_losses: float = 0.0
    """Spot nodes that Azure took in these hours."""
    spot_paused: bool = False
    """Whether dedicated nodes are bought because spot nodes are lost too often."""


@frozen
class Decision:
    """How many agents are wanted now, one for each node."""

    agents: int
    dedicated: int
    spot: int
    why: str
    """The reason in words, with its numbers, as `explain()` shows it."""
    memory: ScalingMemory = field(default_factory=ScalingMemory)
    """What to give to the next decision."""
    drain: int = 0
    """How many agents are to be told to drain, the least busy first, because the pool had too many for long.

    They finish what they run, take nothing new, and leave. They count as ready, and among the agents that are
    wanted, until they drain.
    """
    needed: int = 0
    """How many agents are wanted when these have left."""
    needed_dedicated: int = 0
    """How many of them have dedicated nodes."""

"""What autoscale formulas know of a pool: metrics, sampled on their period, and seen with a delay.

Azure samples every 30 seconds, and a sample takes about a minute until formulas see it.
(https://learn.microsoft.com/azure/batch/batch-automatic-scaling)
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

from batchflow.support.frozen import frozen

METRICS: Final = (
    "$ActiveTasks",
    "$RunningTasks",
    "$PendingTasks",
    "$SucceededTasks",
    "$FailedTasks",
    "$CurrentDedicatedNodes",
    "$CurrentLowPriorityNodes",
    "$PreemptedNodeCount",
    "$UsableNodeCount",
    "$SampleNodeCount",
    "$TaskSlotsPerNode",
)
HISTORY: Final = 2_880
"""Samples that are kept: a day of them."""

USABLE: Final = frozenset({"idle", "running"})


class MetricSample(NamedTuple):
    """The metrics of a pool at one time, in the order of `METRICS`."""

    at: float
    values: tuple[float, ...]


@frozen
class AutoscaleTiming:
    """When formulas are evaluated and what they see, in seconds. The defaults are Azure's."""

    sample_period: float = 30.0
    sample_delay: float = 60.0
    interval: float = 15 * 60.0
    """Between two evaluations of a formula that was set without an interval."""
    min_interval: float = 5 * 60.0
    min_pause: float = 30.0
    """Between two settings of a pool's formula."""

    @classmethod
    def scaled(cls, min_interval: float) -> Self:
        """Return Azure's times, all shortened as much as its least interval of 300 s."""
        azure = cls()
        factor = min_interval / azure.min_interval
        return cls(
            sample_period=azure.sample_period * factor,
            sample_delay=azure.sample_delay * factor,
            interval=azure.interval * factor,
            min_interval=min_interval,
            min_pause=azure.min_pause * factor,
        )

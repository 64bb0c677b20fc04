"""At which rate tasks come, from how many there are at each look. Pure.

A pool that is busy with tasks that keep coming needs more nodes than its backlog tells, because more will
have come when a new node is ready. A burst is no rate: it is over. So the rate is what came in each of two
halves of a boot time, the lesser of both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchflow.pools.scaling.values import Observation, ScalingMemory


def remember_arrivals(
    observation: Observation, memory: ScalingMemory, boot: float, task: float
) -> ScalingMemory:
    """Add what came since the last observation. How many tasks have ended follows from how long they run."""
    now, tasks = observation.now, observation.waiting + observation.running
    known = replace(memory, tasks=tasks, running=observation.running)
    if not memory.seen_at or not memory.half_since:
        return replace(known, half_since=now, arrived=0.0, rates=(0.0, 0.0))
    passed = max(0.0, now - memory.seen_at)
    ended = min(float(memory.tasks), memory.running * passed / task) if task > 0.0 else 0.0
    arrived = memory.arrived + max(0.0, tasks - memory.tasks + ended)
    length = now - memory.half_since
    if length < boot / 2:
        return replace(known, arrived=arrived)
    rates = (arrived / length, memory.rates[0])
    return replace(known, half_since=now, arrived=0.0, rates=rates)


def arrival_rate(memory: ScalingMemory) -> float:
    """Return how many tasks come in a second, steadily."""
    return min(memory.rates)

"""Which of the wanted nodes are spot nodes: they cost less, and Azure takes them away when it needs them.

A spot node that is lost costs a boot and half a task, which is run again. So what spot nodes really cost
follows from how often they were lost lately. Where that is more than what dedicated nodes cost, dedicated
ones are bought, until the losses are forgotten. Half of them are forgotten in an hour.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batchflow.pools.scaling.values import Observation, ScalingMemory
    from batchflow.protocol.documents import ScalingLimits

_HALF_LIFE: Final = 3600.0
"""Seconds after which hours and losses count half."""
_LEAST_HOURS: Final = 0.5
"""Node-hours that are taken as seen, so that a single loss in the first minutes decides nothing."""
_MOST_WASTE: Final = 0.5
"""Work lost for each unit done, above which spot nodes are not worth their price where it is unknown."""
_RESUME: Final = 0.5
"""The part of the waste that ends spot nodes at which they are bought again."""


def remember_spot(observation: Observation, memory: ScalingMemory, boot: float, task: float) -> ScalingMemory:
    """Add what happened to spot nodes since the last observation, and judge whether they are worth it."""
    passed = max(0.0, observation.now - memory.seen_at) if memory.seen_at else 0.0
    kept = 0.5 ** (passed / _HALF_LIFE)
    hours = memory.spot_hours * kept + observation.spot * min(passed, _HALF_LIFE) / 3600.0
    losses = memory.spot_losses * kept + observation.spot_lost
    wasted = losses / max(hours, _LEAST_HOURS) * (boot + task / 2) / 3600.0
    bearable = _bearable_waste(observation)
    paused = wasted > (bearable * _RESUME if memory.spot_paused else bearable)
    return replace(memory, spot_hours=hours, spot_losses=losses, spot_paused=paused)


def _bearable_waste(observation: Observation) -> float:
    """Return how much work may be lost for each unit done before dedicated nodes cost less."""
    dedicated, spot = observation.dedicated_price, observation.spot_price
    if not dedicated or not spot:
        return _MOST_WASTE
    return max(0.0, dedicated / spot - 1.0)


def split(agents: int, observation: Observation, memory: ScalingMemory) -> tuple[int, int]:
    """Return how many of the agents get dedicated and how many spot nodes. Their sum is `agents`.

    `agents` is within the limits. Each count is within its own limits.
    """
    limits = observation.limits
    dedicated = max(limits.min_nodes, _least_dedicated(agents, limits))
    spot = min(agents - dedicated, _most_spot(observation, memory))
    spot = max(spot, limits.min_spot, agents - limits.max_nodes)
    return agents - spot, spot


def _least_dedicated(agents: int, limits: ScalingLimits) -> int:
    return min(limits.max_nodes, math.ceil(limits.dedicated_share * agents))


def _most_spot(observation: Observation, memory: ScalingMemory) -> int:
    if memory.spot_paused or observation.spot_refused:
        return min(observation.spot, observation.limits.max_spot)
    return observation.limits.max_spot

"""How many agents a pool wants now. Pure: no clock, loop, chance or socket.

A new node costs its boot time, and the time that it stays idle at its end. It gains time for the tasks that
wait. For a burst of W node-seconds on n nodes that boot in b, with tasks of d seconds,

    cost = n (b + i) + W            mean time = b + d + W / 2n

and their product is least where each node has `sqrt(2 (b + i) (b + d))` seconds of work: more nodes cost more
than they gain, fewer gain less than they save. So that is the time in which the work is to be done that will
still wait when a node asked for now is ready. What nodes that are there and nodes on their way do until then
counts first. What comes meanwhile is added, where tasks come steadily (`arrivals`). A task that would get a
slot sooner than a new node boots gets none.

Bounds on being wrong:

- There are never more nodes than slots are needed for the tasks that are there.
- Where no duration is known, the nodes grow with the square root of the tasks, and with the time that tasks
  have run without an end.
- The number rises at most four times in a boot time, and in between when it would double.
- It falls by the agents that leave, which were idle for `agent.idle_exit`. A few tasks that are spread over
  many agents keep each of them from being idle for so long. So agents that the pool could have been without
  for that time, and for a boot time, are told to drain (`Decision.drain`).
- Nodes that have not booted are given up when they have been too many for half a boot time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from batchflow.pools.scaling.arrivals import arrival_rate, remember_arrivals
from batchflow.pools.scaling.spot import remember_spot, split
from batchflow.pools.scaling.values import UNKNOWN_BOOT, Decision

if TYPE_CHECKING:
    from batchflow.pools.scaling.values import Observation, ScalingMemory

_PAUSE: Final = 0.25
"""Boot times between two raises."""
_PATIENCE: Final = 0.5
"""Boot times after which booting nodes that are too many are given up."""
_IDLE_WEIGHT: Final = 0.25
"""The part of `agent.idle_exit` that counts as the cost of a new node: nodes are used again meanwhile."""
_LEAST_BOOT: Final = 1.0


def decide(observation: Observation, memory: ScalingMemory) -> Decision:
    """Decide how many agents are wanted, one for each node. The same input gives the same answer.

    The answer is within the limits. With the same memory it never falls when more tasks wait.
    """
    boot, task = boot_time(observation), task_time(observation)
    memory = remember_spot(observation, memory, boot, task)
    memory = remember_arrivals(observation, memory, boot, task)
    aim, reason = _aim(observation, boot, task, arrival_rate(memory))
    there = observation.ready + len(observation.booting)
    agents, memory = _steadied(aim, there, observation, memory, boot)
    limits = observation.limits
    bounded = max(limits.least, min(limits.most, agents))
    staying = max(bounded, min(limits.most, observation.ready))
    dedicated, spot = split(staying, observation, memory)
    return Decision(
        agents=staying,
        dedicated=dedicated,
        spot=spot,
        why=f"{reason}; {_bounds(agents, bounded)}" if bounded != agents else reason,
        memory=replace(memory, agents=staying, seen_at=observation.now),
        drain=max(0, observation.ready - bounded),
        needed=bounded,
        needed_dedicated=split(bounded, observation, memory)[0],
    )


def boot_time(observation: Observation) -> float:
    """Return how long a node is taken to boot, in seconds: a little more than the mean of those seen."""
    seen = observation.boot_seconds
    return UNKNOWN_BOOT if seen is None else max(_LEAST_BOOT, seen.mean)


def task_time(observation: Observation) -> float:
    """Return how long a waiting task is taken to run, in seconds.

    Where none has ended, tasks that have run for a while are taken to run as long again.
    """
    seen = observation.task_seconds
    if seen is None or not seen.count:
        return 2.0 * observation.running_seconds
    return max(0.0, seen.mean)


def _aim(observation: Observation, boot: float, task: float, rate: float) -> tuple[int, str]:
    """Return the number of agents that would be best, with the reason. Not bounded by limits.

    `rate`: tasks that come in a second.
    """
    tasks = observation.waiting + observation.running
    if not tasks:
        return 0, "no task waits or runs"
    most = math.ceil(tasks / observation.slots)
    busy = math.ceil(observation.running / observation.slots)
    if observation.waiting == 0:
        return busy, f"{observation.running} tasks run and none waits"
    if observation.task_seconds is None and task == 0.0:
        guess = math.ceil(math.sqrt(most))
        return max(busy, guess), f"{observation.waiting} tasks wait, of unknown duration"
    left = _left_after_boot(observation, boot, task, rate)
    share = math.sqrt(2.0 * (boot + _IDLE_WEIGHT * observation.idle_exit) * (boot + task))
    aim = math.floor(rate * task / observation.slots + left / share + 0.5) if left > 0 else busy
    why = (
        f"{observation.waiting} tasks of about {task:.3g} s wait, and a node takes about {boot:.0f} s to boot"
    )
    return max(1, busy, min(most, aim)), why


def _left_after_boot(observation: Observation, boot: float, task: float, rate: float) -> float:
    """Return the node-seconds of work that will wait when a node that is asked for now is ready."""
    slots = observation.slots
    work = (observation.waiting + rate * boot) * task
    free = max(0, observation.ready * slots - observation.running)
    until_free = min(boot, max(task / 2, 0.0))
    done = free * boot + (observation.ready * slots - free) * (boot - until_free)
    done += sum(min(boot, age) for age in observation.booting) * slots
    return max(0.0, work - done) / slots


def _steadied(
    aim: int, there: int, observation: Observation, memory: ScalingMemory, boot: float
) -> tuple[int, ScalingMemory]:
    """Return the number that is asked for, given the aim and what was asked for before."""
    now, last = observation.now, memory.agents
    if aim > max(there, last):
        due = now - memory.raised_at >= _PAUSE * boot or aim >= 2 * max(there, last)
        if not due:
            return max(there, last), replace(memory, low_since=None)
        return aim, replace(memory, raised_at=now, low_since=None)
    surplus = there - aim
    if surplus <= 0:
        return aim, replace(memory, low_since=None)
    held = there if memory.low_since is None else max(aim, min(there, last))
    since = now if memory.low_since is None else memory.low_since
    peak = aim if memory.low_since is None else max(memory.low_peak, aim)
    memory = replace(memory, low_since=since, low_peak=peak)
    if now - since >= max(observation.idle_exit, boot):
        return peak, replace(memory, low_since=now, low_peak=aim)
    if observation.booting and now - since >= _PATIENCE * boot:
        return max(peak, observation.ready), memory
    return held, memory


def _bounds(agents: int, bounded: int) -> str:
    return f"{agents} nodes would do, the pool's limits make them {bounded}"

"""What decides on the size of a simulated pool: the policy of batchflow, an oracle, Batch's formula, none."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from batchflow.local.batch.core.formula import DEDICATED, Program
from batchflow.local.batch.core.formula_values import FormulaFacts
from batchflow.local.batch.core.samples import METRICS, AutoscaleTiming, MetricSample
from batchflow.pools.scaling.policy import decide
from batchflow.pools.scaling.values import TASK_WEIGHT, Estimate, Observation, ScalingMemory, learn
from batchflow.protocol.documents import ScalingLimits
from tests.simulations.elastic import SET_PAUSE, ElasticPool, ElasticReport, shuffled
from tests.simulations.traces import Trace

Removal = Literal["idle first", "any, waits", "any, stopped", "any, drained"]
"""Which nodes Batch takes when the pool shrinks by as many as agents have left.

- idle first: those whose agent has left.
- any, waits: it does not look. A node with an agent stays until the agent leaves; the pool resizes meanwhile.
- any, stopped: as before, but the client stops the resize when it wants more nodes.
- any, drained: as before, but agents on nodes that are to leave are told to drain.
"""
LOOK = 10.0
"""Seconds between two looks of a client at a pool where something goes on."""


class PolicyControl:
    """The real policy, with what a client knows, and with Batch's rules for setting a formula."""

    def __init__(self, trace: Trace, idle_exit: float, removal: Removal = "idle first") -> None:
        """`removal`: which nodes Batch takes, and what becomes of a resize that waits for a busy one."""
        self._trace, self._idle_exit, self._removal = trace, idle_exit, removal
        self._memory = ScalingMemory()
        self._limits = ScalingLimits(max_nodes=trace.most)
        mean = trace.mean_task
        self._tasks: Estimate | None = Estimate(mean, mean / 2, 50) if trace.known else None
        self._boots = Estimate(trace.mean_boot, 10.0, 20)
        self._learned = 0
        self._set_at = -SET_PAUSE

    def tick(self, pool: ElasticPool) -> float | None:
        for duration in pool.ended[self._learned :]:
            self._tasks = learn(self._tasks, duration, TASK_WEIGHT)
        self._learned = len(pool.ended)
        decision = decide(self._observe(pool), self._memory)
        self._memory = decision.memory
        if decision.drain:
            least_busy = sorted(pool.ready_nodes(), key=lambda node: node.running)
            for node in least_busy[: decision.drain]:
                pool.drain(node)
        wanted = decision.agents - decision.drain
        there = pool.ready + len(pool.booting)
        missing, surplus = wanted - there, min(len(pool.booting), there - wanted)
        if missing > 0 or surplus > 0 or pool.abandoned:
            resizing = pool.now < pool.resizing_until or any(node.leaving for node in pool.nodes)
            if self._removal == "any, stopped" and missing > 0:
                for node in pool.nodes:
                    node.leaving = False
                resizing = pool.now < pool.resizing_until
            if resizing or pool.now - self._set_at < SET_PAUSE:
                pool.blocked += LOOK if missing > 0 and resizing else 0.0
            else:
                self._resize(pool, missing, surplus)
        if pool.over and not pool.nodes:
            return None
        return pool.now + LOOK

    def _resize(self, pool: ElasticPool, missing: int, surplus: int) -> None:
        self._set_at = pool.now
        for node in list(pool.booting)[::-1][: max(0, surplus)]:
            pool.remove(node)
        if self._removal != "idle first" and pool.abandoned:
            self._take_any(pool, len(pool.abandoned))
        else:
            pool.release()
        room = self._limits.most - len(pool.nodes)
        if min(missing, room) > 0:
            pool.add(min(missing, room))

    def _take_any(self, pool: ElasticPool, number: int) -> None:
        """Batch takes any nodes. Those without an agent go at once; the pool resizes until all are gone."""
        there = [node for node in pool.nodes if node.ready and not node.leaving]
        for node in shuffled(there, len(pool.ended))[:number]:
            if node in pool.abandoned:
                pool.abandoned.remove(node)
                pool.remove(node)
            else:
                node.leaving = True
                if self._removal == "any, drained":
                    pool.drain(node)

    def _observe(self, pool: ElasticPool) -> Observation:
        ages = [pool.now - at for at in pool.started.values()] if self._tasks is None else ()
        return Observation(
            now=pool.now,
            limits=self._limits,
            waiting=len(pool.waiting),
            running=pool.running,
            ready=pool.ready,
            booting=tuple(pool.now - at for at in pool.booting.values()),
            idle=tuple(pool.now - (node.idle_since or 0.0) for node in pool.idle_nodes()),
            slots=self._trace.slots,
            task_seconds=self._tasks,
            running_seconds=sum(ages) / len(ages) if ages else 0.0,
            boot_seconds=self._boots,
            idle_exit=self._idle_exit,
        )


class OracleControl:
    """Knows all durations and arrivals. Starts nodes at once when a task is there that needs them."""

    def __init__(self, trace: Trace, share: float) -> None:
        """`share`: node-seconds of work for each new node."""
        self._trace, self._share = trace, share

    def tick(self, pool: ElasticPool) -> float | None:
        if pool.over:
            return None
        if pool.waiting:
            aim = self._aim(pool)
            there = pool.ready + len(pool.booting)
            if aim > there:
                pool.add(aim - there)
        return pool.now + 3 * LOOK if pool.waiting else None

    def _aim(self, pool: ElasticPool) -> int:
        boot, slots = self._trace.mean_boot, self._trace.slots
        coming = pool.coming_until(pool.now + boot) / slots
        free = pool.ready * slots - pool.running
        longest = self._trace.mean_task / 2
        done = free * boot / slots + (pool.ready - free / slots) * max(0.0, boot - longest)
        done += sum(min(boot, pool.now - at) for at in pool.booting.values())
        left = pool.work_waiting / slots + coming - done
        if left <= 0:
            return max(1, math.ceil(pool.running / slots))
        most = math.ceil((len(pool.waiting) + pool.running) / slots)
        return max(1, min(most, self._trace.most, math.floor(coming / boot + left / self._share + 0.5)))


SHARES = (0.5, 1.0, 2.0)
"""Node-seconds of work for a new node, tried by oracles, as parts of the least product of cost and time."""
KEEPS = (0.0, 1.0, 3.0)
"""Boot times that a node is kept for work that will come, tried by the strict oracle."""


def oracle(trace: Trace, idle_exit: float | None = None) -> ElasticReport:
    """Return the best of some plans with full knowledge: that with the least product of cost and mean time.

    `idle_exit`: seconds for which idle nodes stay, as the user has set it. None: the strict oracle, whose
    nodes leave the moment they become idle, or stay where work will come soon.
    """
    boot = trace.mean_boot
    base = math.sqrt(2.0 * boot * (boot + trace.mean_task))
    plans = []
    for share in SHARES:
        control = OracleControl(trace, share * base)
        if idle_exit is not None:
            plans.append(ElasticPool(trace, control, idle_exit=idle_exit, last_first=True, prompt=True).run())
            continue
        for keep in KEEPS:
            pool = ElasticPool(
                trace, control, idle_exit=keep * boot, last_first=True, prompt=True, clairvoyant=True
            )
            plans.append(pool.run())
    return min(plans, key=lambda plan: plan.cost * plan.mean_time)


PENDING_TASKS = """
startingNumberOfVMs = 1;
maxNumberofVMs = {most};
pendingTaskSamplePercent = $PendingTasks.GetSamplePercent(180 * TimeInterval_Second);
pendingTaskSamples = pendingTaskSamplePercent < 70 ? startingNumberOfVMs :
    avg($PendingTasks.GetSample(180 * TimeInterval_Second));
$TargetDedicatedNodes=min(maxNumberofVMs, (pendingTaskSamples + {slots} - 1) / {slots});
$NodeDeallocationOption = taskcompletion;
"""
"""Azure's documented example; its maximum is the pool's, and a node takes as many tasks as it has slots.

(https://learn.microsoft.com/azure/batch/batch-automatic-scaling)
"""


class FormulaControl:
    """Batch's documented formula over the tasks themselves, evaluated every five minutes, on late samples."""

    EVERY, PERIOD, LATE = 300.0, 30.0, 30.0

    def __init__(self, trace: Trace) -> None:
        self._program = Program(PENDING_TASKS.format(most=trace.most, slots=trace.slots))
        self._samples: deque[MetricSample] = deque(maxlen=20)
        self._timing = AutoscaleTiming(sample_delay=self.LATE)
        self._index = METRICS.index("$PendingTasks")
        self._evaluate_at = (trace.seed * 37.0) % self.EVERY

    def tick(self, pool: ElasticPool) -> float | None:
        if pool.now >= self._evaluate_at:
            self._evaluate_at += self.EVERY
            self._evaluate(pool)
        values = [0.0] * len(METRICS)
        values[self._index] = float(len(pool.waiting) + pool.running)
        self._samples.append(MetricSample(pool.now, tuple(values)))
        return None if pool.over else pool.now + self.PERIOD

    def _evaluate(self, pool: ElasticPool) -> None:
        there = len(pool.nodes)
        facts = FormulaFacts(pool.now, there, 0, [0.0] * len(METRICS), list(self._samples), self._timing)
        target = int(self._program.run(facts)[DEDICATED])
        if target > there and pool.now >= pool.resizing_until:
            pool.add(target - there)
        for node in (pool.idle_nodes() + list(pool.booting))[: max(0, there - target)]:
            pool.remove(node)


class FixedControl:
    """A pool of fixed size, from the first task to the last."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def tick(self, pool: ElasticPool) -> float | None:
        if not pool.nodes:
            pool.add(self._nodes)
        return None

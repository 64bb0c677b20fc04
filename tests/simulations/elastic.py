"""A pool whose size changes: tasks, nodes that boot, agents that leave, and Batch's rules for resizing.

Discrete events. A node is paid from being asked for to being removed. Tasks go to the free slots in turn, as
a queue of Service Bus gives them to its receivers.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from tests.simulations.traces import Trace

ALLOCATION = 0.4
"""The part of a boot in which Batch allocates the machine: the pool is resizing meanwhile."""
SET_PAUSE = 30.0
"""Seconds between two settings of a formula."""


class ElasticNode:
    """A node with its agent."""

    __slots__ = ("asked", "draining", "gone", "idle_since", "leaving", "ready", "running")

    def __init__(self, asked: float) -> None:
        self.asked = asked
        self.ready = self.gone = False
        """`gone`: the agent has left, or the node."""
        self.draining = False
        """Whether the agent takes no more tasks."""
        self.leaving = False
        """Whether Batch waits until the agent has left, to remove the node."""
        self.running = 0
        self.idle_since: float | None = None


@dataclass(frozen=True)
class ElasticReport:
    """What a run cost and how long tasks took."""

    cost: float
    """Node-seconds."""
    mean_time: float
    """Seconds from submit to end."""
    largest: int
    """Most nodes at once."""
    resizes: int
    blocked: float
    """Seconds in which more nodes were wanted while the pool was resizing."""


class SizeControl(Protocol):
    """What decides on the number of nodes."""

    def tick(self, pool: ElasticPool) -> float | None:
        """Act on the pool; return when to be called again, None: at the next arrival."""


class ElasticPool:
    """One run of a trace under one control of the size."""

    def __init__(
        self,
        trace: Trace,
        control: SizeControl,
        *,
        idle_exit: float | None = None,
        last_first: bool = False,
        prompt: bool = False,
        clairvoyant: bool = False,
    ) -> None:
        """`idle_exit`: seconds after which an idle agent leaves; None: never.

        `last_first`: tasks go to the slot that was freed last. `prompt`: a node is removed when its agent
        leaves. `clairvoyant`: that it will leave is known when it becomes idle; its node is paid until then.
        """
        self.trace, self.control = trace, control
        self.now = 0.0
        self.waiting: deque[tuple[float, float]] = deque()
        self.work_waiting = 0.0
        self.running = self.ready = 0
        self.booting: dict[ElasticNode, float] = {}
        self.nodes: dict[ElasticNode, None] = {}
        self.abandoned: list[ElasticNode] = []
        """Nodes whose agent has left."""
        self.ended: list[float] = []
        """Durations of tasks that have ended."""
        self.started: dict[int, float] = {}
        self.resizing_until = 0.0
        self._idle_exit, self._last_first = idle_exit, last_first
        self._prompt, self._clairvoyant = prompt, clairvoyant
        self._arrivals = trace.arrivals
        self._next = self._starts = 0
        self._free: deque[ElasticNode] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._cost = self._time = self.blocked = 0.0
        self.largest = self.resizes = 0
        self._tick_at: float | None = None

    # What controls see

    def coming_until(self, at: float) -> float:
        """Return the seconds of work that will come until a time. Only an oracle may ask."""
        work = self.trace.work_until
        return work[bisect_right(self._arrivals, at, lo=self._next)] - work[self._next]

    @property
    def over(self) -> bool:
        return self._next == len(self._arrivals) and not self.running and not self.waiting

    def idle_nodes(self) -> list[ElasticNode]:
        """Return the nodes whose agent runs nothing."""
        return [node for node in self.ready_nodes() if not node.running]

    def ready_nodes(self) -> list[ElasticNode]:
        """Return the nodes whose agent takes tasks."""
        return [node for node in self.nodes if node.ready and not node.gone and not node.draining]

    # What controls do

    def add(self, number: int) -> None:
        """Ask for more nodes."""
        self.resizes += 1
        for _ in range(number):
            node = ElasticNode(self.now)
            boot = self.trace.boots[self._starts % len(self.trace.boots)]
            self._starts += 1
            self.nodes[node] = None
            self.booting[node] = self.now
            self.resizing_until = max(self.resizing_until, self.now + ALLOCATION * boot)
            self._at(self.now + boot, partial(self._booted, node))
        self.largest = max(self.largest, len(self.nodes))

    def remove(self, node: ElasticNode, paid_until: float | None = None) -> None:
        """Remove a node that runs nothing."""
        if node not in self.nodes:
            return
        del self.nodes[node]
        if node.ready and not node.gone and not node.draining:
            self.ready -= 1
        self.booting.pop(node, None)
        node.gone = True
        self._cost += (self.now if paid_until is None else paid_until) - node.asked

    def drain(self, node: ElasticNode) -> None:
        """Tell an agent to leave after its tasks."""
        if not node.draining:
            node.draining = True
            self.ready -= 1
        if not node.running:
            self._leave(node)

    def _leave(self, node: ElasticNode) -> None:
        """Let an idle agent leave. Its node stays until Batch removes it."""
        if node.leaving:
            self.remove(node)
            return
        if not node.draining:
            self.ready -= 1
        node.gone = True
        self.abandoned.append(node)

    def release(self) -> None:
        """Remove the nodes whose agents have left."""
        if self.abandoned:
            self.resizes += 1
        for node in self.abandoned:
            self.remove(node)
        self.abandoned.clear()

    # The run

    def run(self) -> ElasticReport:
        for at, duration in self.trace.tasks:
            self._at(at, partial(self._arrive, at, duration))
        self._tick()
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        for node in list(self.nodes):
            self.remove(node)
        return ElasticReport(
            self._cost, self._time / len(self._arrivals), self.largest, self.resizes, self.blocked
        )

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._serial), event))

    def _tick(self) -> None:
        self._tick_at = None
        self._schedule_tick(self.control.tick(self))

    def _schedule_tick(self, when: float | None) -> None:
        if when is not None and (self._tick_at is None or when < self._tick_at):
            self._tick_at = when
            self._at(when, lambda: self._tick() if self._tick_at == when else None)

    def _arrive(self, at: float, duration: float) -> None:
        self._next += 1
        self.waiting.append((at, duration))
        self.work_waiting += duration
        self._dispatch()
        if self._tick_at is None or self._tick_at > self.now + 1.0:
            self._schedule_tick(self.now + 1.0)

    def _booted(self, node: ElasticNode) -> None:
        if node.gone:
            return
        del self.booting[node]
        node.ready = True
        self.ready += 1
        self._free.append(node)
        self._became_idle(node)
        self._dispatch()

    def _dispatch(self) -> None:
        while self.waiting and self._free:
            node = self._free.pop() if self._last_first else self._free.popleft()
            if node.gone or node.draining:
                continue
            at, duration = self.waiting.popleft()
            self.work_waiting -= duration
            node.running += 1
            node.idle_since = None
            self.running += 1
            if node.running < self.trace.slots:
                self._free.append(node)
            serial = next(self._serial)
            self.started[serial] = self.now
            event: Callable[[], None] = partial(self._end, node, at, (serial, duration))
            heapq.heappush(self._events, (self.now + duration, serial, event))

    def _end(self, node: ElasticNode, at: float, task: tuple[int, float]) -> None:
        del self.started[task[0]]
        self.ended.append(task[1])
        self._time += self.now - at
        self.running -= 1
        if node.running == self.trace.slots:
            self._free.append(node)
        node.running -= 1
        if not node.running:
            if node.draining:
                self._leave(node)
            else:
                self._became_idle(node)
        self._dispatch()

    def _became_idle(self, node: ElasticNode) -> None:
        node.idle_since = since = self.now
        if self._idle_exit is not None:
            self._at(self.now + self._idle_exit, lambda: self._idled(node, since))

    def _idled(self, node: ElasticNode, since: float) -> None:
        if node.gone or node.idle_since != since:
            return
        if self._prompt:
            self.remove(node, paid_until=since if self._clairvoyant else self.now)
        else:
            self._leave(node)
            self._schedule_tick(self.now + 1.0)


def shuffled(nodes: list[ElasticNode], seed: int) -> list[ElasticNode]:
    """Return nodes in the order in which Batch takes them, where it does not look whether they are busy."""
    chance = random.Random(seed)
    return sorted(nodes, key=lambda node: chance.random())

"""Clients, a broker and up to ten thousand agents, pack by pack: what `exact` is too slow for.

Real is the packing policy: each pack is filled by it, task by task. Stand-ins that count are the tracker
(tasks are numbers), the queues (packs in a line; locks, duplicates and dead letters do not occur), the turns
that an agent's queues take (the next one that has something) and the scheduler: an agent takes a message when
a slot is free, one more in advance when tasks are short, spreads it over its free slots, and sends what has
ended every `LOADED_HOLD` seconds or round trips. `test_scale` holds this against `exact` where both can go.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from batchflow.protocol.durations import Durations
from batchflow.protocol.packing import ENVELOPE, MOST_BYTES, PackingPolicy
from node_agent.scheduling.load_policy import LOADED_HOLD, SHORT
from tests.simulations.costs import STANDARD, Costs, Tier
from tests.simulations.events import Credits, Processor, Timeline

ITEM = 150
"""Bytes of a small task, or result, as it travels."""
_COMMAND = "x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is simulated."""

    nodes: int
    tasks: int
    duration: float
    """Seconds, of each task."""
    slots: int = 1
    clients: int = 1
    rate: float = math.inf
    """Tasks a second that are submitted; without end: all are there at the beginning."""
    namespaces: int = 1
    queues: int = 1
    """Task queues of the pool, spread over the namespaces."""
    tier: Tier = STANDARD
    costs: Costs = field(default_factory=lambda: Costs(round_trip=0.005))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Times: seconds; shares: of the elapsed time."""

    fleet: Fleet
    elapsed: float
    p50: float
    p99: float
    credits: int
    fullest: int
    """Credits of the namespace that spent most."""
    packs: int
    megabytes: float
    busy: float
    client_cpu: float
    agent_cpu: float
    events: int

    @property
    def rate(self) -> float:
        return self.fleet.tasks / self.elapsed

    @property
    def credits_per_task(self) -> float:
        return self.credits / self.fleet.tasks


@dataclass(slots=True, eq=False)
class _Pack:
    client: _Client
    count: int
    submitted_at: float
    """Of its tasks, on average."""
    open: int = 0
    """Tasks whose results the broker does not have."""


class _Client:
    """Submits its share, makes packs of what waits, takes results."""

    def __init__(self, world: FleetWorld, number: int, share: int, rate: float) -> None:
        fleet = world.fleet
        self.mailbox = number % fleet.queues
        """All its results take this one of the results queues."""
        slots, trip = fleet.nodes * fleet.slots, fleet.costs.round_trip
        self.policy = PackingPolicy(slots, Durations({_COMMAND: fleet.duration}), trip)
        for _ in range(20):
            self.policy.seen(_COMMAND, fleet.duration)
        self.processor = Processor()
        self._world = world
        self._share = share
        self._rate = rate
        self._packed = 0
        self._back = 0
        self._lanes = fleet.queues

    def _arrived(self, now: float) -> int:
        return self._share if self._rate == math.inf else min(self._share, int(self._rate * now) + 1)

    def send(self, lane: int) -> None:
        """Whatever waits, by the link to one of the queues."""
        world, now = self._world, self._world.time.now
        arrived = self._arrived(now)
        if arrived == self._packed:
            if self._packed < self._share:
                world.time.at((self._packed + 1) / self._rate, self.send, lane)
            return
        size = (arrived - self._packed) * ITEM
        if (pause := self.policy.pause(now, self._packed - self._back, size)) > 0:
            world.time.after(pause, self.send, lane)
            return
        self.policy.submitted(arrived, now)
        packs = self._packs(arrived, now)
        tasks = sum(pack.count for pack in packs)
        costs = world.fleet.costs
        work = costs.send + len(packs) * costs.sent_message + tasks * costs.client_task / 2
        size = tasks * ITEM + len(packs) * ENVELOPE
        granted = world.spend(lane, self.processor.work(now, work), len(packs), size)
        world.packs += len(packs)
        world.time.at(granted + costs.round_trip / 2, world.enqueue, lane, packs)
        world.time.at(granted + costs.round_trip, self._accepted, lane, now)

    def _packs(self, arrived: int, now: float) -> list[_Pack]:
        packs: list[_Pack] = []
        room = MOST_BYTES
        messages = self.policy.messages(arrived - self._packed, self._packed - self._back)
        for _ in range(-(-messages // self._lanes)):
            if not (waiting := arrived - self._packed):
                break
            pack = self.policy.pack(waiting, self._packed - self._back, room)
            count = 0
            while count < waiting and pack.admits(_COMMAND, ITEM):
                count += 1
            if not count:
                break
            submitted_at = now if self._rate == math.inf else (self._packed + count / 2) / self._rate
            self._packed += count
            room -= count * ITEM + ENVELOPE
            packs.append(_Pack(self, count, min(now, submitted_at) if self._rate != math.inf else 0.0, count))
        return packs

    def _accepted(self, lane: int, started: float) -> None:
        self.policy.sent(self._world.time.now - started)
        self.send(lane)

    def receive_results(self, pack: _Pack, count: int) -> None:
        costs = self._world.fleet.costs
        now = self._world.time.now
        ready = self.processor.work(now, costs.received_message + count * costs.client_task / 2)
        self._back += count
        self._world.finish(count, ready - pack.submitted_at, ready)


class _Agent:
    """Slots, a message in advance, one link for results."""

    __slots__ = ("_world", "advance", "free", "lane", "processor", "receiving")

    def __init__(self, world: FleetWorld, number: int) -> None:
        self._world = world
        self.free = world.fleet.slots
        self.advance: _Pack | None = None
        self.receiving = False
        self.processor = Processor()
        self.lane = number % world.fleet.queues

    def want(self) -> None:
        """Ask for a message if one is wanted."""
        world = self._world
        if self.receiving or self.advance is not None or not (self.free or world.short):
            return
        self.receiving = True
        world.time.after(world.way, world.ask, self)

    def received(self, pack: _Pack) -> None:
        self.receiving = False
        costs = self._world.fleet.costs
        self.processor.work(self._world.time.now, costs.delivered_message)
        if self.free:
            self._start(pack)
        else:
            self.advance = pack
        self.want()

    def _start(self, pack: _Pack) -> None:
        """Spread it over the free slots."""
        world, costs = self._world, self._world.fleet.costs
        slots = min(self.free, pack.count)
        each = world.fleet.duration + costs.child_task
        begin = self.processor.work(world.time.now, pack.count * costs.agent_task)
        self.free -= slots
        for index in range(slots):
            count = pack.count // slots + (index < pack.count % slots)
            parts = max(1, min(count, round(count * each / world.pause)))
            done = 0
            for part in range(1, parts + 1):
                upto = count * part // parts
                world.time.at(begin + upto * each, self._ended, pack, upto - done, part == parts)
                done = upto

    def _ended(self, pack: _Pack, count: int, last: bool) -> None:
        world, costs = self._world, self._world.fleet.costs
        world.ran += count * world.fleet.duration
        work = costs.send + costs.sent_message + count * costs.agent_task / 2
        ready = self.processor.work(world.time.now, work)
        granted = world.spend(pack.client.mailbox, ready, 2, 2 * (count * ITEM + ENVELOPE))
        world.time.at(granted + costs.round_trip, pack.client.receive_results, pack, count)
        if last:
            self.free += 1
            if self.advance is not None:
                advance, self.advance = self.advance, None
                self._start(advance)
            self.want()


class FleetWorld:
    """See the module."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.time = Timeline()
        self.way = fleet.costs.round_trip / 2
        self.pause = max(LOADED_HOLD, fleet.costs.round_trip)
        self.short = fleet.duration < SHORT
        self.ran = 0.0
        self.packs = 0
        self.size = 0
        self._credits = [Credits(fleet.tier.credits, fleet.tier.burst) for _ in range(fleet.namespaces)]
        self._lines: list[deque[_Pack]] = [deque() for _ in range(fleet.queues)]
        self._idle: deque[_Agent] = deque()
        self._agents = [_Agent(self, number) for number in range(fleet.nodes)]
        share, rate = -(-fleet.tasks // fleet.clients), fleet.rate / fleet.clients
        shares = [min(share, fleet.tasks - share * number) for number in range(fleet.clients)]
        self._clients = [_Client(self, number, each, rate) for number, each in enumerate(shares)]
        self._finished = 0
        self._ended_at = 0.0
        self._latencies: Counter[int] = Counter()
        """How many tasks, by the logarithm of what they took beyond their own time: within a hundredth."""

    def run(self) -> Outcome:
        for agent in self._agents:
            agent.want()
        for client in self._clients:
            for lane in range(self.fleet.queues):
                self.time.at(0.0, client.send, lane)
        self.time.run(lambda: self._finished == self.fleet.tasks)
        elapsed = self._ended_at
        p50, p99 = self._percentiles(0.5, 0.99)
        return Outcome(
            self.fleet,
            elapsed,
            p50,
            p99,
            sum(each.used for each in self._credits),
            max(each.used for each in self._credits),
            self.packs,
            self.size / 1e6,
            self.ran / (elapsed * self.fleet.nodes * self.fleet.slots),
            max(client.processor.used for client in self._clients) / elapsed,
            max(agent.processor.used for agent in self._agents) / elapsed,
            self.time.happened,
        )

    def spend(self, lane: int, now: float, count: int, size: int) -> float:
        self.size += size
        return self._credits[lane % len(self._credits)].spend(now, count)

    def enqueue(self, lane: int, packs: list[_Pack]) -> None:
        line = self._lines[lane]
        line.extend(packs)
        while line and self._idle:
            self._give(self._idle.popleft(), lane)

    def ask(self, agent: _Agent) -> None:
        """An agent's receive reaches the broker: it gets from the next queue that has something, or waits."""
        queues = self.fleet.queues
        for step in range(queues):
            lane = (agent.lane + step) % queues
            if self._lines[lane]:
                self._give(agent, lane)
                return
        self._idle.append(agent)

    def _give(self, agent: _Agent, lane: int) -> None:
        pack = self._lines[lane].popleft()
        agent.lane = (lane + 1) % self.fleet.queues
        granted = self.spend(lane, self.time.now, 1, pack.count * ITEM + ENVELOPE)
        self.time.at(granted + self.way, agent.received, pack)

    def finish(self, count: int, latency: float, at: float) -> None:
        self._finished += count
        self._ended_at = max(self._ended_at, at)
        beyond = max(latency - self.fleet.duration, 1e-6)
        self._latencies[math.ceil(100 * math.log(beyond))] += count

    def _percentiles(self, *shares: float) -> list[float]:
        found, seen, wanted = [], 0, deque(share * self.fleet.tasks for share in shares)
        for step in sorted(self._latencies):
            seen += self._latencies[step]
            while wanted and seen >= wanted[0]:
                found.append(self.fleet.duration + math.exp(step / 100))
                wanted.popleft()
        return found

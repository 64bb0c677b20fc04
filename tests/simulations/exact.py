"""A session and its agents, task by task, on the real cores: packing, tracker, scheduler and queue.

What is simulated is only what lies between them: the ways, the CPU that messages take, the slots' children.
A client, an agent and a child are each a process of one thread on a core of its own. Good for some hundred
nodes and some hundred thousand tasks; beyond that, `fleet`.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchflow.local.queues import Draft, Queue, QueueProperties
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.documents import Cancellation
from batchflow.protocol.packing import ENVELOPE, MOST_BYTES, PackingPolicy
from batchflow.protocol.wire import TaskItem
from batchflow.sessions.records.tracker import Entry, Tracker
from node_agent.scheduling import events as to
from node_agent.scheduling.scheduler import Scheduler
from tests.simulations.costs import LOCAL, Costs, Tier
from tests.simulations.events import Credits, Processor, Timeline

if TYPE_CHECKING:
    from batchflow.local.queues import Message

ITEM = bytes(150)
"""A small task as it travels."""
_LOCK = 300.0
"""Seconds: longer than anything here takes, so that no lock has to be renewed."""


GRACE = 0.1
"""Seconds that an agent may hold what it has not begun: a pack in advance, or until it sees a straggler."""


@dataclass(frozen=True, slots=True)
class Job:
    """A task to be: when it is submitted, what it runs, how long that takes."""

    at: float
    command: str
    duration: float


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    tasks: int
    nodes: int
    slots: int
    elapsed: float
    latencies: Sequence[float] = field(repr=False)
    """From submitting a task to having its result, sorted."""
    credits: int
    messages: int
    """Of tasks."""
    handed_back: int
    unfair: float
    """Seconds that slots were free while another agent held tasks that it had not begun, beyond `GRACE` each
    time."""
    busy: float
    """Share of all slots' time in which tasks ran."""
    client_cpu: float
    """Share of the elapsed time."""

    @property
    def rate(self) -> float:
        return self.tasks / self.elapsed

    @property
    def credits_per_task(self) -> float:
        return self.credits / self.tasks

    @property
    def p50(self) -> float:
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(0.99 * len(self.latencies)))]


class World:
    """One session, one task queue, agents."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        nodes: int,
        slots: int = 1,
        costs: Costs | None = None,
        tier: Tier = LOCAL,
        policy: PackingPolicy | None = None,
        hold: float | None = None,
        window: int | None = None,
    ) -> None:
        """`window`: how many tasks are submitted and have no result, at most, as in a `map`."""
        self.hold = hold
        self.window = len(jobs) if window is None else window
        self.time = Timeline()
        self.costs = costs or Costs()
        self.credits = Credits(tier.credits, tier.burst)
        self.queue = Queue(QueueProperties(lock_duration=_LOCK, max_delivery_count=1000))
        self.client = Client(self, jobs, policy or PackingPolicy(slots=nodes * slots))
        self.agents = [Agent(self, number, slots) for number in range(nodes)]
        self.waiting: deque[Agent] = deque()
        """Agents whose receive waits at the broker."""
        self.unfair = 0.0
        self._unfair_since: float | None = None

    @property
    def way(self) -> float:
        return self.costs.round_trip / 2

    def run(self, limit: float = float("inf")) -> Report:
        for agent in self.agents:
            agent.feed(to.Tick())
        self.client.start()
        self.time.run(lambda: self.client.done, limit)
        elapsed = self.time.now
        slots = sum(agent.slots for agent in self.agents)
        return Report(
            tasks=len(self.client.latencies),
            nodes=len(self.agents),
            slots=slots,
            elapsed=elapsed,
            latencies=sorted(self.client.latencies),
            credits=self.credits.used,
            messages=self.client.messages,
            handed_back=sum(agent.handed_back for agent in self.agents),
            unfair=self.unfair,
            busy=sum(agent.ran for agent in self.agents) / (elapsed * slots),
            client_cpu=self.client.processor.used / elapsed,
        )

    def enqueue(self, drafts: Sequence[Draft]) -> None:
        """Messages reach the broker."""
        self.queue.send(drafts, self.time.now)
        self.deliver()

    def wait_for_message(self, agent: Agent) -> None:
        self.waiting.append(agent)
        self.deliver()

    def deliver(self) -> None:
        now = self.time.now
        while self.waiting and self.queue.has_ready():
            agent = self.waiting.popleft()
            (message,) = self.queue.receive(1, now, agent)
            granted = self.credits.spend(now)
            self.time.at(granted + self.way, agent.received, message)

    def look_for_unfairness(self) -> None:
        """Time in which one agent has a free slot while another one holds what it has not begun."""
        now = self.time.now
        idle = any(agent.idle_slots for agent in self.agents)
        unfair = idle and any(agent.unbegun for agent in self.agents)
        if not unfair:
            if self._unfair_since is not None:
                self.unfair += max(0.0, now - self._unfair_since - GRACE)
            self._unfair_since = None
        elif self._unfair_since is None:
            self._unfair_since = now


class Client:
    """The session: submits, sends what gathers, takes results."""

    def __init__(self, world: World, jobs: Sequence[Job], policy: PackingPolicy) -> None:
        self._world = world
        self._jobs = sorted(jobs, key=lambda job: job.at)
        self._next = 0
        self.tracker = Tracker()
        self.policy = policy
        self.processor = Processor()
        self.latencies: list[float] = []
        self.messages = 0
        self._sending = False
        self._names = 0

    @property
    def done(self) -> bool:
        return len(self.latencies) == len(self._jobs)

    def start(self) -> None:
        """Submit all that is due, then wait for the next."""
        world, now = self._world, self._world.time.now
        while self._has_room() and self._jobs[self._next].at <= now:
            number, job = self._next, self._jobs[self._next]
            self.tracker.add(
                Entry(number, number, str(number), str(number), job.command, "c", "j", job.at, item=ITEM)
            )
            self._next += 1
        if self._has_room():
            world.time.at(self._jobs[self._next].at, self.start)
        self._send()

    def _has_room(self) -> bool:
        return self._next < len(self._jobs) and self._next - len(self.latencies) < self._world.window

    def _send(self) -> None:
        if self._sending or not self.tracker.outbox:
            return
        world = self._world
        pause = self.policy.pause(world.time.now, self.tracker.queued, self.tracker.outbox_bytes)
        if pause > 0:
            self._sending = True
            world.time.after(pause, self._go_on)
            return
        self.policy.submitted(self.tracker.next_sequence(), world.time.now)
        packs: list[list[Entry]] = []
        room, is_last = MOST_BYTES, self.tracker.next_sequence() == len(self._jobs)
        messages = self.policy.messages(len(self.tracker.outbox), self.tracker.queued, is_last=is_last)
        for _ in range(messages):
            pack = self.policy.pack(len(self.tracker.outbox), self.tracker.queued, room, is_last=is_last)
            entries, items = self.tracker.take(pack)
            if not entries:
                break
            packs.append(entries)
            room -= sum(map(len, items)) + ENVELOPE
        if not packs:
            return
        self._sending = True
        self.messages += len(packs)
        tasks = sum(map(len, packs))
        costs = world.costs
        work = costs.send + len(packs) * costs.sent_message + tasks * costs.client_task / 2
        started = world.time.now
        granted = world.credits.spend(self.processor.work(started, work), len(packs))
        world.time.at(granted + world.way, world.enqueue, [self._draft(entries) for entries in packs])
        world.time.at(granted + 2 * world.way, self._accepted, packs, started)

    def _go_on(self) -> None:
        self._sending = False
        self._send()

    def _draft(self, entries: list[Entry]) -> Draft:
        self._names += 1
        items = [self.item(entry) for entry in entries]
        return Draft(b"", f"m{self._names}", headers=items, size=len(items) * len(ITEM))

    def item(self, entry: Entry) -> TaskItem:
        duration = self._jobs[entry.sequence].duration
        uid = wire.make_uid("c", entry.sequence)
        return TaskItem("c", "j", entry.task_id, entry.command, [], uid, "b", tag=duration)

    def _accepted(self, packs: list[list[Entry]], started: float) -> None:
        self.policy.sent(self._world.time.now - started)
        for entries in packs:
            self.tracker.accepted(entries)
        self._sending = False
        self._send()

    def receive_results(self, results: list[tuple[TaskItem, float]]) -> None:
        """A message of results has come."""
        costs = self._world.costs
        work = costs.received_message + len(results) * costs.client_task / 2
        ready = self.processor.work(self._world.time.now, work)
        self._world.time.at(ready, self._read, results)

    def _read(self, results: list[tuple[TaskItem, float]]) -> None:
        now = self._world.time.now
        was_full = not self._has_room()
        for item, duration in results:
            entry = self.tracker.find(wire.split_uid(item.uid)[1])
            if entry is None:
                continue
            self.policy.seen(item.command, duration)
            outcome = wire.result_of(item, status=Status.SUCCEEDED, host="n")
            self.tracker.resolve(entry, outcome)
            self.tracker.next_unclaimed()
            self.latencies.append(now - self._jobs[entry.sequence].at)
        if was_full and self._has_room():
            self.start()


class Agent:
    """The shell around a real scheduler."""

    def __init__(self, world: World, number: int, slots: int) -> None:
        self._world = world
        self.number = number
        self.slots = slots
        self.scheduler = Scheduler(slots, f"n{number}", None, 0.0)
        self.processor = Processor()
        self.ran = 0.0
        self.handed_back = 0
        self.idle_slots = slots
        self.unbegun = 0
        self._pulling = False
        self._receiving = False
        self._deliveries: dict[int, Message] = {}
        self._results: deque[tuple[int, TaskItem, float]] = deque()
        self._sending = False
        self._durations: dict[int, float] = {}
        self._numbers = 0
        self._tick_at: float | None = None
        self._holding = False
        self._on_their_way = 0
        """Tasks that have ended and whose results are not accepted yet."""
        self._left: dict[int, deque[int]] = {}
        """What each slot has not begun."""

    def feed(self, event: to.Event) -> None:
        now = self._world.time.now
        for command in self.scheduler.handle(event, now):
            self._obey(command)
        deadline = self.scheduler.next_deadline()
        if deadline is not None and (self._tick_at is None or deadline < self._tick_at):
            self._tick_at = max(deadline, now)
            self._world.time.at(self._tick_at, self._tick, self._tick_at)
        held = self.scheduler.held - sum(1 for left in self._left.values() if left)
        self.unbegun = max(0, held - len(self._results) - self._on_their_way)
        self._world.look_for_unfairness()

    def _tick(self, when: float) -> None:
        if self._tick_at == when:
            self._tick_at = None
            self.feed(to.Tick())

    def _obey(self, command: to.Command) -> None:
        time, costs = self._world.time, self._world.costs
        match command:
            case to.Pull():
                self._pulling = True
                self._receive()
            case to.Hold():
                self._pulling = False
            case to.Prepare(slot, _):
                time.after(0.0, self.feed, to.Prepared(slot))
            case to.Start(slot, tasks):
                self.idle_slots -= 1
                self._left[slot] = deque(tasks)
                work = len(tasks) * costs.agent_task
                time.at(self.processor.work(time.now, work), self._run_next, slot)
            case to.Follow(slot, tasks):
                self._left[slot].extend(tasks)
                self.processor.work(time.now, len(tasks) * costs.agent_task)
            case to.Recall(slot):
                left = self._left[slot]
                recalled = list(left)[1:]
                self._left[slot] = deque([left[0]])
                time.after(0.0, self.feed, to.Recalled(slot, recalled))
            case to.SendResult(task, _):
                self._results.append((task, self.scheduler.item(task), self._durations.pop(task, 0.0)))
                self._send()
            case to.Complete(delivery):
                ready = self.processor.work(time.now, costs.delivered_message / 2)
                time.at(ready + 2 * self._world.way, self._complete, delivery)
            case to.HandBack(task):
                self.handed_back += 1
                self._hand_back(task)
            case to.ReadCancellation(session):
                time.after(costs.blob, self.feed, to.CancellationRead(session, Cancellation(), time.now))
            case _:
                pass

    def _receive(self) -> None:
        if not self._receiving:
            self._receiving = True
            self._world.time.after(self._world.way, self._world.wait_for_message, self)

    def received(self, message: Message) -> None:
        ready = self.processor.work(self._world.time.now, self._world.costs.delivered_message / 2)
        self._world.time.at(ready, self._arrived, message)

    def _arrived(self, message: Message) -> None:
        self._receiving = False
        self._numbers += 1
        self._deliveries[self._numbers] = message
        age = self._world.time.now - message.enqueued_at
        self.feed(to.Arrived(self._numbers, message.headers, False, age))
        if self._pulling:
            self._receive()

    def _run_next(self, slot: int) -> None:
        time = self._world.time
        left = self._left[slot]
        if not left:
            self.idle_slots += 1
            self.feed(to.Freed(slot))
            return
        duration = float(self.scheduler.item(left[0]).tag)
        self.ran += duration
        time.after(duration + self._world.costs.child_task, self._ended, slot, duration)

    def _ended(self, slot: int, duration: float) -> None:
        task = self._left[slot].popleft()
        self._durations[task] = duration
        more = bool(self._left[slot])
        if more:
            self._run_next(slot)
        self.feed(to.Ended(task, None, None, 0.0, duration, 0.0))
        if not more:
            self._run_next(slot)

    def _send(self, held: bool = False) -> None:
        if self._sending or not self._results:
            return
        if not held and (hold := self._hold()) > 0:
            if not self._holding:
                self._holding = True
                self._world.time.after(hold, self._let_go)
            return
        self._sending = True
        world, costs = self._world, self._world.costs
        work = costs.send + costs.sent_message + len(self._results) * costs.agent_task / 2
        ready = self.processor.work(world.time.now, work)
        parcel = list(self._results)
        self._results.clear()
        self._on_their_way += len(parcel)
        granted = world.credits.spend(ready, 2)
        results: list[Any] = [(item, duration) for _, item, duration in parcel]
        world.time.at(granted + 2 * world.way, world.client.receive_results, results)
        world.time.at(granted + 2 * world.way, self._sent, [task for task, _, _ in parcel])

    def _hold(self) -> float:
        """What the scheduler says, or what is tried out."""
        hold = self._world.hold
        return self.scheduler.placement.hold if hold is None else hold * (self.scheduler.placement.hold > 0)

    def _let_go(self) -> None:
        self._holding = False
        self._send(True)

    def _sent(self, tasks: list[int]) -> None:
        self._sending = False
        self._on_their_way -= len(tasks)
        self.feed(to.ResultsAccepted(tasks))
        self._send()

    def _complete(self, delivery: int) -> None:
        message = self._deliveries.pop(delivery)
        assert message.lock_token is not None
        self._world.queue.complete(message.lock_token, self._world.time.now)
        self.feed(to.Completed(delivery))

    def _hand_back(self, task: int) -> None:
        world = self._world
        copy = wire.handed_back(self.scheduler.item(task))
        draft = Draft(b"", f"{copy.uid}-{copy.hop}", headers=[copy], size=len(ITEM))
        ready = self.processor.work(world.time.now, world.costs.send + world.costs.sent_message)
        granted = world.credits.spend(ready)
        world.time.at(granted + world.way, world.enqueue, [draft])
        world.time.at(granted + 2 * world.way, self.feed, to.CopyAccepted(task))

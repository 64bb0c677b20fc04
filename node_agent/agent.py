"""The agent: one asyncio process that runs the tasks of a pool on its node.

The scheduler decides, everything else here obeys: `feed` gives it an event and does what it answers. Services
(receiving, renewing, results, copies, slots, heartbeat, events) are eternal: when one ends, the agent ends
loudly, and its supervisor starts another one. What concerns one message or one document is a job: whatever
becomes of it turns into an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import CancelScope

from batchflow.model import Status
from batchflow.protocol import documents, layout, wire
from batchflow.support.frozen import frozen
from node_agent.control import heartbeat
from node_agent.control.cancellation_reader import CancellationReader
from node_agent.control.drain_orders import DrainWatcher
from node_agent.control.problems import Problems
from node_agent.execution import results
from node_agent.execution.outcomes import Outcome
from node_agent.execution.resources import TaskResources
from node_agent.execution.slot_loop import SlotLoop
from node_agent.links.broker_clock import BrokerClock
from node_agent.links.completions import AT_ONCE, Completions
from node_agent.links.dead_letters import DeadLetterHandler
from node_agent.links.lock_renewal import Renewals
from node_agent.links.result_sender import ResultSender
from node_agent.links.task_queue import Copy, TaskQueue
from node_agent.scheduling import events as to
from node_agent.scheduling.queue_rotation import QueueRotation
from node_agent.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import TaskGroup

    from batchflow.ports.broker import Broker, Delivery, QueueRef
    from batchflow.ports.storage import Container
    from node_agent.control.event_batcher import EventBatcher
    from node_agent.control.log_upload import LogUploader
    from node_agent.execution.resources import Bundles, RunningTasks
    from node_agent.execution.slot_queue import SlotProtocol
    from node_agent.scheduling.crash_history import CrashCount

logger = logging.getLogger(__name__)

_COARSE: Final = 0.05
"""Seconds that a tick may come late."""
_OFTEN: Final = 8
"""Times in as many seconds that the deadline is computed."""
_LAST_BEAT: Final = 5.0
"""Seconds that the last heartbeat may take."""


class ServiceEnded(Exception):
    """What shall never end has ended."""


@frozen
class Parts:
    """What an agent is put together from."""

    config: documents.AgentConfig
    agent: str
    """Its incarnation: new at every start."""
    boot_id: str
    broker: Broker
    ctl: Container
    out: Container
    bundles: Bundles
    slots: Sequence[SlotProtocol]
    running: RunningTasks
    crashes: Mapping[str, CrashCount]
    forget_crashes: Callable[[str], None]
    events: EventBatcher
    log: LogUploader | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A message under our lock."""

    queue: TaskQueue
    delivery: Delivery


class Agent:
    """Runs until it is drained or has been idle for long enough."""

    def __init__(self, parts: Parts) -> None:
        config = parts.config
        self._parts = parts
        self._config = config
        self._host = heartbeat.host_name()
        self._log = layout.log_blob(config.pool, heartbeat.node_id(), parts.agent)
        self._started_at = time.time()
        self._clock = BrokerClock()
        self._scheduler = Scheduler(
            len(parts.slots), self._host, config.idle_exit, time.monotonic(), dict(parts.crashes)
        )
        self._heartbeats = heartbeat.HeartbeatWriter(
            parts.out, parts.agent, config.heartbeat_interval, self._heartbeat, self._ticked
        )
        self._problems = Problems(self._heartbeats.changed)
        self._renewals = Renewals(config.lock_duration, renew=self._renew, lost=self._lease_lost)
        self._queues = [self._task_queue(access) for access in config.task_queues]
        self._dead_letter_numbers = count(-1, -1)
        self._dead_letter_handlers = [
            self._dead_letter_handler(access.queue) for access in config.task_queues
        ]
        self._result_senders = [self._result_sender(access.queue) for access in config.results_queues]
        self._cancellations = CancellationReader(parts.ctl, self._problems, self.feed)
        self._resources = TaskResources(
            agent=parts.agent,
            bundles=parts.bundles,
            ctl=parts.ctl,
            out=parts.out,
            running=parts.running,
            inline_limit=min(config.inline_limit, config.result_limit),
            result_limit=config.result_limit,
        )
        self._slot_loops = [
            SlotLoop(index, slot, self._resources, feed=self.feed) for index, slot in enumerate(parts.slots)
        ]
        self._events: deque[Sequence[to.Event]] = deque()
        self._feeding = False
        self._held: dict[int, _Held] = {}
        self._failed = 0
        """Results that are no success."""
        self._completions = Completions(self._complete)
        self._numbers = count(1)
        self._versions = heartbeat.versions()
        self._unopened = len(self._queues) + len(self._result_senders)
        self._jobs: asyncio.Queue[tuple[Callable[..., Coroutine[Any, Any, None]], tuple[object, ...]]]
        self._jobs = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tick_over = asyncio.Event()
        self._armed_since = 0.0
        self._armed = 0
        """Times since then that the deadline was computed."""
        self._rotation = QueueRotation(len(self._queues))
        self._listening: frozenset[int] = frozenset()
        self._turn_timer: asyncio.TimerHandle | None = None
        self._blocked_queues: set[QueueRef] = set()
        self._looking = 0
        self._over = asyncio.Event()
        self.exit_reason: str | None = None

    def _task_queue(self, access: documents.QueueAccess) -> TaskQueue:
        return TaskQueue(
            self._parts.broker, access.queue, self._clock, self._problems,
            arrived=self._arrived, nothing_left=self._nothing_left, copied=self._copied, opened=self._opened,
        )  # fmt: skip

    def _result_sender(self, queue: QueueRef) -> ResultSender:
        return ResultSender(
            self._parts.broker, queue, self._parts.agent, self._problems,
            accepted=self._accepted, too_large=self._too_large, blocked=partial(self._blocked, queue),
            opened=self._opened, hold=lambda: self._scheduler.hold,
        )  # fmt: skip

    def _dead_letter_handler(self, queue: QueueRef) -> DeadLetterHandler:
        return DeadLetterHandler(self._parts.broker, queue, self._fail_task, self._dead_letter_numbers)

    async def run(self) -> None:
        """Returns when the agent's work is over; `exit_reason` says why. Raises `ServiceEnded`."""
        async with anyio.create_task_group() as group:
            self._start_services(group)
            self.feed(to.Tick())
            await self._over.wait()
            group.cancel_scope.cancel()
        for timer in (self._timer, self._turn_timer):
            if timer is not None:
                timer.cancel()
        self._completions.close()
        with CancelScope(shield=True), anyio.move_on_after(_LAST_BEAT):
            await self._heartbeats.write()
            if self._parts.log is not None:
                await self._parts.log.flush_to(self._parts.out, self._log)

    def _start_services(self, group: TaskGroup) -> None:
        services: dict[str, Callable[[], Awaitable[None]]] = {"renewals": self._renewals.run}
        for index, queue in enumerate(self._queues):
            services |= {f"receive {index}": queue.receive, f"copies {index}": queue.copy}
        for index, sender in enumerate(self._result_senders):
            services[f"results {index}"] = sender.run
        for index, slot_loop in enumerate(self._slot_loops):
            services[f"slot {index}"] = slot_loop.serve
        for index in range(AT_ONCE):
            services[f"complete {index}"] = self._completions.run
        services["jobs"] = self._run_jobs
        services["heartbeat"] = self._heartbeats.run
        services["drain"] = DrainWatcher(self._parts.ctl, self._config.heartbeat_interval, self.drain).run
        for index, handler in enumerate(self._dead_letter_handlers):
            services[f"dead letters {index}"] = handler.run
        if self._parts.log is not None:
            services["log"] = partial(self._parts.log.run, self._parts.out, self._log)
        services["events"] = partial(self._parts.events.run, self._put_events)
        for name, service in services.items():
            group.start_soon(_eternal, name, service, name=name)

    def feed(self, *events: to.Event) -> None:
        """Tell the scheduler, and do what it says. What is fed meanwhile comes after that."""
        self._events.append(events)
        if self._feeding:
            return
        self._feeding = True
        now = time.monotonic()
        try:
            while self._events:
                for command in self._scheduler.handle_all(self._events.popleft(), now):
                    self._execute(command)
                for sender in self._result_senders:
                    sender.reconsider()
        finally:
            self._feeding = False
        self._arm(now)

    def stop(self) -> None:
        """Drain; called again, at once."""
        self.drain(self._config.drain_grace if self._scheduler.state != "draining" else 0.0)

    def drain(self, grace: float) -> None:
        """Stop: let tasks finish for `grace` seconds, hand back the rest."""
        logger.info("drain", extra={"grace": grace, "held": self._scheduler.held})
        self.feed(to.Drain(grace))

    def _arm(self, now: float) -> None:
        """Have a tick come at the scheduler's deadline, or up to `_COARSE` seconds later.

        A timer that is near is left alone, and when much happens one is set that is near: a deadline is not
        worth computing six times a task. A tick that comes too early does no harm.
        """
        if self._timer is not None and self._timer_at <= now + _COARSE:
            return
        deadline = self._scheduler.next_deadline()
        if deadline is None:
            return
        if self._is_busy(now):
            deadline = min(deadline, now + _COARSE)
        self._tick_by(deadline, now)

    def _tick_by(self, deadline: float, now: float) -> None:
        """Have a tick come no later than that."""
        if self._timer is None or deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - now), self._tick)

    def _is_busy(self, now: float) -> bool:
        """Whether deadlines are asked for all the time."""
        if now - self._armed_since > _COARSE:
            self._armed_since, self._armed = now, 0
        self._armed += 1
        return self._armed > _OFTEN

    def _tick(self) -> None:
        self._timer = None
        self.feed(to.Tick())
        self._tick_over.set()

    async def _ticked(self) -> None:
        """Have a tick come now, and return when the scheduler has dealt with it."""
        self._tick_over.clear()
        now = time.monotonic()
        self._tick_by(now, now)
        await self._tick_over.wait()

    def _execute(self, command: to.Command) -> None:
        match command:
            case to.SendResult(
                task, verdict, outcome
            ):  # the first to be asked for: there is one for each task
                self._send_result(task, verdict, outcome)
            case to.Prepare(slot, tasks):
                self._slot_loops[slot].prepare({task: self._scheduler.item(task) for task in tasks})
            case to.Start(slot, tasks):
                self._slot_loops[slot].start(tasks)
            case to.Follow(slot, tasks):
                self._slot_loops[slot].follow({task: self._scheduler.item(task) for task in tasks})
            case to.Stop(slot):
                self._slot_loops[slot].stop()
            case to.Recall(slot):
                self.feed(to.Recalled(slot, self._slot_loops[slot].recall()))
            case to.Complete(delivery):
                self._completions.add(delivery)
                if self._scheduler.state != "ready":
                    self._completions.flush()
            case to.HandBack():
                self._hand_back(command)
            case to.Pull():
                self._pull(True)
            case to.Hold():
                self._pull(False)
            case to.ReadCancellation(session):
                self._job(self._cancellations.read, session)
            case to.Leave(delivery):
                self._forget(delivery)
            case to.ForgetCrashes(uid):
                self._parts.forget_crashes(uid)
            case to.LastLook():
                self._job(self._look_once_more)
            case to.Announce(state):
                logger.info("agent_state", extra={"state": state})
                self._completions.flush()
                self._heartbeats.changed()
            case to.Exit(reason):
                self._exit(reason)

    def _job(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        self._jobs.put_nowait((work, args))

    async def _run_jobs(self) -> None:
        """Begin them, for ever. Here, in a task: a tick asks for them as well, and outside of tasks anyio
        refuses where sniffio is installed."""
        async with anyio.create_task_group() as jobs:
            while True:
                work, args = await self._jobs.get()
                jobs.start_soon(work, *args)

    # Messages

    def _arrived(self, queue: TaskQueue, delivery: Delivery, tasks: list[wire.TaskItem]) -> None:
        if self._scheduler.state == "exiting":
            for each in self._queues:
                each.pull(False)  # the last look is over, on every queue
        self._rotation.arrived(self._queues.index(queue), time.monotonic())
        self._listen()
        number = next(self._numbers)
        self._held[number] = _Held(queue, delivery)
        self._renewals.add(number)
        age = self._clock.age(delivery.enqueued_at)
        self.feed(to.Arrived(number, tasks, delivery.delivery_count > 0, age))

    async def _renew(self, number: int) -> None:
        held = self._held[number]
        await held.queue.renew(held.delivery)

    def _lease_lost(self, number: int) -> None:
        self.feed(to.LeaseGone(number))

    async def _complete(self, number: int) -> None:
        held = self._held[number]
        done = await held.queue.complete(held.delivery, partial(self._renewals.__contains__, number))
        self._forget(number)
        self.feed(to.Completed(number) if done else to.LeaseGone(number))

    def _forget(self, number: int) -> None:
        self._renewals.remove(number)
        self._held.pop(number, None)

    def _pull(self, wanted: bool) -> None:
        self._rotation.want(wanted, time.monotonic())
        self._listen()

    def _listen(self) -> None:
        """Listen to the queues whose turn it is."""
        listening = self._rotation.listening()
        for index in listening ^ self._listening:
            self._queues[index].pull(index in listening)
        self._listening = listening
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
        if (deadline := self._rotation.next_deadline()) is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._turn_timer = asyncio.get_running_loop().call_later(delay, self._pass_turn)

    def _pass_turn(self) -> None:
        self._rotation.advance(time.monotonic())
        self._listen()

    async def _look_once_more(self) -> None:
        """Say that we are going before looking: who does not see it yet still finds us looking."""
        await self._heartbeats.write()
        if self._scheduler.state != "exiting":
            return  # a message came meanwhile
        self._looking = len(self._queues)
        for queue in self._queues:
            queue.look_once_more()

    def _nothing_left(self) -> None:
        self._looking -= 1
        if not self._looking:
            self.feed(to.NothingLeft())

    # Results

    def _send_result(self, task: int, verdict: to.Verdict | None, outcome: object) -> None:
        self._completions.flush()
        item = self._scheduler.item(task)
        if verdict is not None:
            status = verdict.status
            encoded = results.encode_verdict(item, verdict, self._host, time.time())
        else:
            assert isinstance(outcome, Outcome)
            status = outcome.status
            encoded = results.encode_outcome(item, outcome, self._host)
        self._failed += status is not Status.SUCCEEDED
        mailbox = item.mailbox
        self._sender_for(mailbox).put(task, mailbox, encoded)

    def _sender_for(self, mailbox: str) -> ResultSender:
        return layout.queue_for(self._result_senders, mailbox)

    def _fail_task(self, number: int, item: wire.TaskItem, verdict: to.Verdict) -> None:
        """A dead letter's task gets its result."""
        encoded = results.encode_verdict(item, verdict, self._host, time.time())
        mailbox = item.mailbox
        sender = self._sender_for(mailbox)
        sender.put(number, mailbox, encoded)
        sender.reconsider()

    def _accepted(self, tasks: Sequence[int]) -> None:
        own = [task for task in tasks if task >= 0]
        for number in set(tasks).difference(own):
            for handler in self._dead_letter_handlers:
                handler.accepted(number)
        if own:
            self.feed(to.ResultsAccepted(own))

    def _too_large(self, task: int, error: str) -> None:
        if task < 0:
            return
        verdict = to.Verdict(Status.FAILED, "ResultTooLarge", f"the broker does not take the result: {error}")
        self._send_result(task, verdict, None)
        self._sender_for(self._scheduler.item(task).mailbox).reconsider()

    def _put_events(self, mailbox: str, items: Sequence[bytes]) -> None:
        self._sender_for(mailbox).put_events(mailbox, items)

    def _blocked(self, queue: QueueRef, blocked: bool) -> None:
        """While one results queue takes nothing, nothing is pulled: any task's result may be for it."""
        if blocked:
            self._blocked_queues.add(queue)
        else:
            self._blocked_queues.discard(queue)
        self.feed(to.Blocked(bool(self._blocked_queues)))

    def _hand_back(self, command: to.HandBack) -> None:
        item = self._scheduler.item(command.task)
        copy = wire.handed_back(item, attempt=command.attempt, history=command.history)
        logger.info("hand_back", extra={"uid": item.uid, "reason": command.reason, "hop": copy.hop})
        # Into the queue that it came from: only there duplicate detection knows a copy that is made again.
        held = self._held[self._scheduler.delivery(command.task)]
        held.queue.hand_back(Copy(command.task, copy, command.delay))

    def _copied(self, task: int, accepted: bool) -> None:
        self.feed(to.CopyAccepted(task) if accepted else to.CopyRefused(task))
        self._completions.flush()

    # Life

    def _opened(self) -> None:
        """One link more is open."""
        self._unopened -= 1
        if self._unopened == 0:
            logger.info("agent_ready", extra={"after": round(time.time() - self._started_at, 3)})
            self._heartbeats.changed()

    def _exit(self, reason: str) -> None:
        logger.info("agent_exit", extra={"reason": reason, "completed": self._scheduler.completed})
        self.exit_reason = reason
        self._over.set()

    def _heartbeat(self) -> documents.Heartbeat:
        now, monotonic = time.time(), time.monotonic()
        starting = self._unopened > 0 and self._scheduler.state == "ready"
        running = tuple(
            documents.Running(
                item.uid, item.task_id, item.client, item.job, item.command, since + now - monotonic
            )
            for item, since in self._scheduler.running()
        )
        return documents.Heartbeat(
            agent=self._parts.agent,
            node=heartbeat.node_id(),
            host=self._host,
            boot_id=self._parts.boot_id,
            pid=os.getpid(),
            state="starting" if starting else self._scheduler.state,
            slots=len(self._slot_loops),
            started_at=self._started_at,
            beat_at=now,
            interval=self._config.heartbeat_interval,
            running=running,
            completed=self._scheduler.completed,
            failed=self._failed,
            versions=self._versions,
            load=heartbeat.load(),
            memory_available=heartbeat.memory_available(),
            disk_free=heartbeat.disk_free(),
            clock_skew=self._clock.ahead,
            trouble=self._problems.text,
        )


async def _eternal(name: str, service: Callable[[], Awaitable[None]]) -> None:
    await service()
    raise ServiceEnded(f"the service {name} has ended")

"""The agent: one asyncio process that runs the tasks of a pool on its node.

The scheduler decides, everything else here obeys: `feed` gives it an event and does what it answers.
Services (receiving, renewing, results, copies, slots, heartbeat, events) never end: when one does, the
agent ends loudly, and its supervisor starts another one. What concerns one message or one document is a
job: whatever becomes of it turns into an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import CancelScope

from batchflow.protocol import documents, layout, wire
from batchflow.protocol.broadcasts import BROADCAST
from batchflow.protocol.needs import NEEDS
from batchflow.protocol.passed import FILES, VALUES
from batchflow.support.frozen import frozen
from node_agent.control import heartbeat
from node_agent.control.activity import ActivityWriter
from node_agent.control.broadcasts import BroadcastParts, BroadcastRunner
from node_agent.control.cancellation_reader import CancellationReader
from node_agent.control.drain_orders import DrainWatcher
from node_agent.control.failed_tasks import FailedTasks
from node_agent.control.preemption import PreemptionWatcher, address_of, stop_grace
from node_agent.control.problems import Problems
from node_agent.control.spending import SpendingReporter
from node_agent.control.usage import UsageWriter, is_dedicated
from node_agent.execution.resources import Environments, TaskResources
from node_agent.execution.slot_loop import SlotLoop
from node_agent.links.incoming import IncomingMessages, SettledMessages
from node_agent.links.outgoing import OutgoingResults
from node_agent.links.task_queue import Copy
from node_agent.scheduling import events as to
from node_agent.scheduling.budgets import Budgets
from node_agent.scheduling.fair_turns import FairTurns
from node_agent.scheduling.scheduler import Scheduler
from node_agent.system.node_kind import node_kind
from node_agent.system.task_fields import task_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import TaskGroup

    from batchflow.ports.broker import Broker
    from batchflow.ports.storage import Container
    from node_agent.bundles.task_files import FileCache
    from node_agent.control.event_batcher import EventBatcher
    from node_agent.control.log_upload import LogUploader
    from node_agent.execution.resources import Bundles, RunningTasks
    from node_agent.execution.slot_queue import SlotProtocol
    from node_agent.scheduling.crash_history import CrashCount

logger = logging.getLogger(__name__)

TICK: Final = 0.05
"""Seconds between two ticks while the agent holds tasks."""
_LAST_BEAT: Final = 5.0
"""Seconds that the last heartbeat may take, and what else is written at the end."""


class ServiceEnded(Exception):
    """A service has ended that never ends."""


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
    environments: Environments
    slots: Sequence[SlotProtocol]
    running: RunningTasks
    settled: SettledMessages
    crashes: Mapping[str, CrashCount]
    forget_crashes: Callable[[str], None]
    events: EventBatcher
    broadcasts: BroadcastParts
    files: FileCache
    log: LogUploader | None = None


class Ticker:
    """Has ticks come in time, by the loop's clock."""

    def __init__(self, scheduler: Scheduler, tick: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._tick = tick
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._over = asyncio.Event()

    def arm(self, now: float) -> None:
        """Have the next tick come: within `TICK` seconds while there are tasks, else at the scheduler's
        deadline.

        A deadline is not worth computing at every event, and a tick that comes too early does no harm.
        """
        if self._timer is not None and self._at <= now + TICK:
            return
        deadline = now + TICK if self._scheduler.held else self._scheduler.next_deadline()
        if deadline is not None:
            self._tick_by(deadline, now)

    async def tick(self) -> None:
        """Have a tick come now, and return when the scheduler has dealt with it."""
        self._over.clear()
        now = time.monotonic()
        self._tick_by(now, now)
        await self._over.wait()

    def close(self) -> None:
        """Let no more ticks come."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick_by(self, deadline: float, now: float) -> None:
        """Have a tick come no later than that."""
        if self._timer is None or deadline < self._at:
            self.close()
            self._at = deadline
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - now), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._tick()
        self._over.set()


class Agent:
    """Runs until it is drained or has been idle for long enough."""

    def __init__(self, parts: Parts) -> None:
        config = parts.config
        self.parts = parts
        self._host = heartbeat.host_name()
        self._log = layout.log_blob(config.pool, heartbeat.node_id(), parts.agent)
        self._started_at = time.time()
        self._kind = node_kind(len(parts.slots), config.tags, dedicated=is_dedicated())
        interval = config.heartbeat_interval / 2  # all know of a report within two of them
        budgets = Budgets(config.budget, is_dedicated(), config.agents, interval)
        self._scheduler = Scheduler(
            len(parts.slots),
            self._host,
            config.idle_exit,
            time.monotonic(),
            dict(parts.crashes),
            budgets,
            FairTurns(config.lanes) if config.lanes else None,
            self._kind,
        )
        self._ticker = Ticker(self._scheduler, lambda: self.feed(to.Tick()))
        self._heartbeats = heartbeat.HeartbeatWriter(
            parts.out, parts.agent, config.heartbeat_interval, self.heartbeat, self._ticker.tick
        )
        self._usage = UsageWriter(parts.out, parts.agent, self.usage)
        self._activity = ActivityWriter(parts.out, parts.agent, config.heartbeat_interval)
        address = "" if is_dedicated() else address_of(config.scheduled_events)
        self.preemption = PreemptionWatcher(address, self.drain) if address else None
        self._problems = Problems(self._heartbeats.changed)
        self._incoming = self._make_incoming(config)
        self._failed = FailedTasks()
        self._outgoing = self._make_outgoing(config)
        self._cancellations = CancellationReader(parts.ctl, self._problems, self.feed)
        self._spending = SpendingReporter(parts.out, self._problems, self.feed)
        resources = self._make_resources(config)
        self._slot_loops = [
            SlotLoop(index, slot, resources, feed=self.feed) for index, slot in enumerate(parts.slots)
        ]
        self._broadcasts = self._make_broadcasts(config, resources)
        self._unopened = len(config.task_queues) + len(config.results_queues)
        """Links that are not open yet."""
        self._events: deque[Sequence[to.Event]] = deque()
        self._feeding = False
        self._jobs: asyncio.Queue[tuple[Callable[..., Coroutine[Any, Any, None]], tuple[object, ...]]]
        self._jobs = asyncio.Queue()
        self._versions = heartbeat.versions()
        self._over = asyncio.Event()
        self.exit_reason: str | None = None

    def _make_incoming(self, config: documents.AgentConfig) -> IncomingMessages:
        return IncomingMessages(
            self.parts.broker,
            [access.queue for access in config.task_queues],
            lock_duration=config.lock_duration,
            problems=self._problems,
            feed=self.feed,
            settled=self.parts.settled,
            opened=self._opened,
            turns=self._scheduler.turns,
        )

    def _make_outgoing(self, config: documents.AgentConfig) -> OutgoingResults:
        return OutgoingResults(
            self.parts.broker,
            [access.queue for access in config.results_queues],
            [access.queue for access in config.task_queues],
            agent=self.parts.agent,
            host=self._host,
            problems=self._problems,
            feed=self.feed,
            item=self._scheduler.item,
            hold=lambda: self._scheduler.settlement.hold,
            opened=self._opened,
            keep=self._failed.keep,
            ended=self._activity.record.ended,
        )

    def _make_resources(self, config: documents.AgentConfig) -> TaskResources:
        parts = self.parts
        return TaskResources(
            agent=parts.agent,
            bundles=parts.bundles,
            environments=parts.environments,
            ctl=parts.ctl,
            out=parts.out,
            running=parts.running,
            inline_limit=min(config.inline_limit, config.result_limit),
            result_limit=config.result_limit,
            files=parts.files,
        )

    def _make_broadcasts(self, config: documents.AgentConfig, resources: TaskResources) -> BroadcastRunner:
        return BroadcastRunner(
            self.parts.broadcasts,
            self.parts.ctl,
            resources,
            self._outgoing,
            index=len(self.parts.slots),
            interval=config.heartbeat_interval,
            may_begin=lambda: self._scheduler.state == "ready",
            ahead=lambda: self._incoming.clock.ahead,
            beside=lambda tasks: self.feed(to.Beside(tasks)),
            forget_crashes=self.parts.forget_crashes,
        )

    async def run(self) -> None:
        """Return when the agent's work is over; `exit_reason` says why. Raises `ServiceEnded`."""
        async with anyio.create_task_group() as group:
            self._start_services(group)
            self.feed(to.Tick())
            await self._over.wait()
            group.cancel_scope.cancel()
        self._ticker.close()
        self._incoming.close()
        with CancelScope(shield=True), anyio.move_on_after(_LAST_BEAT):
            await self._heartbeats.write()
            await self._usage.write()
            await self._activity.write()
            if self.parts.log is not None:
                await self.parts.log.flush_to(self.parts.out, self._log)
            await self._failed.flush(self.parts.out)

    def _start_services(self, group: TaskGroup) -> None:
        parts = self.parts
        watcher = DrainWatcher(parts.ctl, parts.agent, parts.config.heartbeat_interval, self.drain)
        services: dict[str, Callable[[], Awaitable[None]]] = {
            **self._incoming.services(),
            **self._outgoing.services(),
            **{f"slot {index}": loop.serve for index, loop in enumerate(self._slot_loops)},
            "jobs": self._run_jobs,
            "heartbeat": self._heartbeats.run,
            "drain": watcher.run,
            "broadcasts": self._broadcasts.run,
            "events": partial(parts.events.run, self._outgoing.send_events),
            "usage": self._usage.run,
            "activity": self._activity.run,
            "failed tasks": partial(self._failed.run, parts.out),
        }
        if self.preemption is not None:
            services["preemption"] = self.preemption.run
        if parts.log is not None:
            services["log"] = partial(parts.log.run, parts.out, self._log)
        for name, service in services.items():
            group.start_soon(_eternal, name, service, name=name)

    def feed(self, *events: to.Event) -> None:
        """Give the scheduler events, and do what it says. What is fed meanwhile comes after that."""
        self._events.append(events)
        if self._feeding:
            return
        self._feeding = True
        now = time.monotonic()
        try:
            while self._events:
                for command in self._scheduler.handle_all(self._events.popleft(), now):
                    self._execute(command)
                self._outgoing.reconsider()
        finally:
            self._feeding = False
        if not self._over.is_set():
            self._ticker.arm(now)

    def stop(self) -> None:
        """Drain; called again, exit at once."""
        if self.preemption is not None:
            self.preemption.release()
        grace = stop_grace(self.parts.config.drain_grace, dedicated=is_dedicated())
        self.drain(grace if self._scheduler.state != "draining" else 0.0)

    def drain(self, grace: float) -> None:
        """Stop: let tasks finish for `grace` seconds, hand back the rest."""
        logger.info("drain", extra={"grace": grace, "held": self._scheduler.held})
        self.feed(to.Drain(grace))

    def heartbeat(self) -> documents.Heartbeat:
        """Return how the agent is at this moment."""
        now, monotonic = time.time(), time.monotonic()
        starting = self._unopened > 0 and self._scheduler.state == "ready"
        running = tuple(
            documents.Running(
                item.uid, item.task_id, item.client, item.job, item.command, since + now - monotonic
            )
            for item, since in self._scheduler.placement.running()
        )
        return documents.Heartbeat(
            agent=self.parts.agent,
            node=heartbeat.node_id(),
            host=self._host,
            boot_id=self.parts.boot_id,
            pid=os.getpid(),
            state="starting" if starting else self._scheduler.state,
            slots=len(self._slot_loops),
            started_at=self._started_at,
            beat_at=now,
            interval=self.parts.config.heartbeat_interval,
            running=running,
            completed=self._scheduler.completed,
            failed=self._outgoing.failed,
            cancelled=self._outgoing.cancelled,
            versions=self._versions,
            takes_wheels=True,
            load=heartbeat.load(),
            memory_available=heartbeat.memory_available(),
            disk_free=heartbeat.disk_free(),
            clock_skew=self._incoming.clock.ahead,
            trouble=self._problems.text,
            usage=self.usage(),
            accepts=(VALUES, FILES, BROADCAST, NEEDS),
            memory=self._kind.memory,
            gpus=self._kind.gpus,
            tags=tuple(sorted(self._kind.tags)),
        )

    def usage(self) -> documents.Usage:
        """Return what the agent has used of its node until now."""
        return documents.Usage(
            dedicated=is_dedicated(),
            seconds=round(time.monotonic() - self._scheduler.started_at, 3),
            busy=round(self._scheduler.busy_time.seconds, 3),
            tasks=self._scheduler.completed,
        )

    def _execute(self, command: to.Command) -> None:
        match command:
            case to.SendResult(task, verdict, outcome):  # asked for first: there is one for each task
                self._incoming.completions.flush()
                self._outgoing.send(task, verdict, outcome)
            case to.Prepare(slot, tasks):
                self._slot_loops[slot].prepare({task: self._scheduler.item(task) for task in tasks})
            case to.Start(slot, tasks):
                self._slot_loops[slot].start(tasks, self._scheduler.settlement.start_by(tasks))
            case to.Follow(slot, tasks):
                items = {task: self._scheduler.item(task) for task in tasks}
                self._slot_loops[slot].follow(items, self._scheduler.settlement.start_by(tasks))
            case to.Stop(slot):
                self._slot_loops[slot].stop()
            case to.Recall(slot):
                self.feed(to.Recalled(slot, self._slot_loops[slot].recall()))
            case to.Complete(delivery):
                self._incoming.complete(delivery)
                if self._scheduler.state != "ready":
                    self._incoming.completions.flush()
            case to.HandBack():
                self._hand_back(command)
            case to.Pull():
                self._incoming.pull(True)
            case to.Hold(express):
                self._incoming.pull(False, express=express)
            case to.ReadCancellation(session):
                self._job(self._cancellations.read, session)
            case to.ReportSpending(ledger, grains):
                self._job(self._spending.report, ledger, grains)
            case to.Leave(delivery):
                self._incoming.forget(delivery)
            case to.ForgetCrashes(uid):
                self.parts.forget_crashes(uid)
            case to.LastLook():
                self._job(self._look_once_more)
            case to.Announce(state):
                logger.info("agent_state", extra={"state": state})
                self._incoming.completions.flush()
                self._heartbeats.changed()
            case to.StepBack(error):
                logger.error("node_unfit", extra={"error": error})
                self._problems.begin("node", f"the node cannot run tasks, the agent starts anew: {error}")
            case to.Exit(reason):
                self._exit(reason)

    def _hand_back(self, command: to.HandBack) -> None:
        item = self._scheduler.item(command.task)
        copy = wire.handed_back(
            item, attempt=command.attempt, history=command.history, expires=command.expires
        )
        logger.info("hand_back", extra={**task_fields(item), "reason": command.reason, "hop": copy.hop})
        delivery = self._scheduler.delivery(command.task)
        self._incoming.hand_back(delivery, Copy(command.task, copy, command.delay))

    def _job(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        self._jobs.put_nowait((work, args))

    async def _run_jobs(self) -> None:
        """Begin jobs as they are asked for. Here, in a task: a tick asks for them as well, and outside of
        tasks anyio refuses where sniffio is installed."""
        async with anyio.create_task_group() as jobs:
            while True:
                work, args = await self._jobs.get()
                jobs.start_soon(work, *args)

    async def _look_once_more(self) -> None:
        """Say that the agent is going before it looks: a session that does not see this yet is still
        served."""
        await self._heartbeats.write()
        if self._scheduler.state == "exiting":  # no message came meanwhile
            self._incoming.look_once_more()

    def _opened(self) -> None:
        """Count one link more that is open."""
        self._unopened -= 1
        if self._unopened == 0:
            logger.info("agent_ready", extra={"after": round(time.time() - self._started_at, 3)})
            self._heartbeats.changed()

    def _exit(self, reason: str) -> None:
        logger.info("agent_exit", extra={"reason": reason, "completed": self._scheduler.completed})
        self.exit_reason = reason
        self._over.set()


async def _eternal(name: str, service: Callable[[], Awaitable[None]]) -> None:
    await service()
    raise ServiceEnded(f"the service {name} has ended")

"""Callbacks of the event loop: one that raises ends the agent, and nothing in them needs a task around it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import sniffio

from batchflow.errors import ProtocolError
from batchflow.model import Status
from batchflow.protocol import documents, layout, wire
from node_agent.agent import Agent
from node_agent.control import heartbeat
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.scheduling import events as to
from node_agent.scheduling.scheduler import Scheduler
from node_agent.startup.callbacks import CallbackFailed, fatal
from tests.support.agent_world import INCARNATION, World, succeed, task
from tests.support.waiting import BOUND

raise_ours = partial(wire.decode, b"no message")
Way = Callable[[asyncio.AbstractEventLoop], Any]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> None:
    """Allow errors of callbacks in asyncio's log: these tests are about them."""


def done_callback(loop: asyncio.AbstractEventLoop) -> None:
    future = loop.create_future()
    future.add_done_callback(lambda _: raise_ours())
    future.set_result(None)


def thread(loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    return loop.run_in_executor(None, loop.call_soon_threadsafe, raise_ours)


def handled_signal(loop: asyncio.AbstractEventLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, raise_ours)  # the loop takes it back when it is closed
    os.kill(os.getpid(), signal.SIGUSR1)


WAYS: dict[str, Way] = {
    "soon": lambda loop: loop.call_soon(raise_ours),
    "later": lambda loop: loop.call_later(0.001, raise_ours),
    "thread": thread,
    "future": done_callback,
    "signal": handled_signal,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_callback_that_raises_ends_the_agent(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever called it; the log has the traceback, and the cause is told."""

    async def agent() -> None:
        with fatal():
            begun = WAYS[way](asyncio.get_running_loop())
            await asyncio.Event().wait()
            del begun

    with pytest.raises(CallbackFailed) as caught:
        await asyncio.wait_for(agent(), BOUND)
    assert isinstance(caught.value.__cause__, ProtocolError)
    told = [record for record in caplog.records if record.message == "callback_failed"]
    assert [record.levelno for record in told] == [logging.CRITICAL]
    assert told[0].exc_info is not None
    assert told[0].exc_info[1] is caught.value.__cause__


async def test_what_is_read_from_a_socket_may_not_raise_either() -> None:
    """It would be called again at each turn of the loop."""
    ours, theirs = socket.socketpair()

    async def agent() -> None:
        with fatal():
            asyncio.get_running_loop().add_reader(ours, raise_ours)
            await asyncio.Event().wait()

    with ours, theirs:
        theirs.send(b"x")
        try:
            with pytest.raises(CallbackFailed):
                await asyncio.wait_for(agent(), BOUND)
        finally:
            asyncio.get_running_loop().remove_reader(ours)


async def test_what_the_agent_does_not_depend_on_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks of others, tasks whose exception nobody retrieved, sessions and transports."""
    loop = asyncio.get_running_loop()

    async def forgotten() -> None:
        raise_ours()

    with fatal():
        loop.call_soon(json.loads, "no JSON")
        loop.call_exception_handler({"message": "Unclosed client session", "client_session": object()})
        try:
            raise_ours()
        except ProtocolError as error:
            loop.call_exception_handler({"message": "Fatal error on SSL transport", "exception": error})
        lost = asyncio.create_task(forgotten())
        await asyncio.wait([lost])
        del lost
        gc.collect()
    told = [record.message.partition("\n")[0] for record in caplog.records]
    assert {record.name for record in caplog.records} == {"asyncio"}
    assert len(told) == 4
    assert told[0] == "Unclosed client session"
    assert told[1] == "Fatal error on SSL transport"
    assert told[2].startswith("Exception in callback loads(")
    assert told[3] == "Task exception was never retrieved"


async def test_a_cancellation_from_outside_stays_one() -> None:
    """The handler of the loop is taken back."""

    async def agent() -> None:
        with fatal():
            await asyncio.Event().wait()

    running = asyncio.create_task(agent())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert asyncio.get_running_loop().get_exception_handler() is None


class TickedAgent(Agent):
    """Its scheduler is told of everything in a callback of the loop, as of the time in a tick."""

    def feed(self, *events: to.Event) -> None:
        asyncio.get_running_loop().call_soon(self._feed_outside_of_tasks, events)

    def _feed_outside_of_tasks(self, events: tuple[to.Event, ...]) -> None:
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            sniffio.current_async_library()
        super().feed(*events)


async def test_whatever_the_scheduler_asks_for_may_come_in_a_tick() -> None:
    """With sniffio installed, for which a callback is no place to be: preparing, starting, stopping, reading
    cancellations, handing back, a last look and the end."""
    tries: list[int] = []

    def flaky(execution: Execution) -> Outcome:
        tries.append(execution.attempt)
        if execution.attempt < 2:
            return Outcome(Status.FAILED, error="not yet", kind="TaskFailed", exception="ValueError")
        return succeed(execution)

    async def slow(execution: Execution) -> Outcome:
        await asyncio.sleep(600.0)
        return succeed(execution)

    world = await World.make(slow=slow, flaky=flaky)
    agent = TickedAgent(world.parts(idle_exit=0.5))
    with fatal():
        running = asyncio.create_task(agent.run())
        await world.submit(*(task(number) for number in range(20)))
        await world.results(20)
        await world.submit(task(20, "flaky", retry={"max_attempts": 2, "backoff": 0.01}))
        assert [result.status for result in await world.results(1)] == [Status.SUCCEEDED]
        await world.submit(task(21, "slow"))
        await world.until(lambda: f"{INCARNATION}:21" in world.slots[0].begun)
        cancellation = documents.Cancellation({INCARNATION: ((21, 21),)})
        await world.ctl.put(layout.cancellation_blob("job", "client"), cancellation.encode())
        assert [result.status for result in await world.results(1)] == [Status.CANCELLED]
        async with asyncio.timeout(BOUND):
            await running
    assert tries == [1, 2]
    assert agent.exit_reason == "idle"


class FailingAgent(Agent):
    """From some time on its ticks fail."""

    failing = False

    def feed(self, *events: to.Event) -> None:
        if self.failing and to.Tick() in events:
            self._scheduler = cast("Scheduler", None)
        super().feed(*events)


async def test_an_agent_whose_tick_fails_ends() -> None:
    """It says nothing more of itself, not even at its end."""
    world = await World.make()
    agent = FailingAgent(world.parts(heartbeat_interval=0.3))

    async def run() -> None:
        with fatal():
            await agent.run()

    running = asyncio.create_task(run())
    await world.until(lambda: _has_beaten(world))
    agent.failing = True
    with pytest.raises(CallbackFailed):
        await asyncio.wait_for(running, BOUND)
    assert [beat.state for beat in await world.heartbeats()] == ["ready"]


async def _has_beaten(world: World) -> bool:
    return any(beat.state == "ready" for beat in await world.heartbeats())


async def test_each_heartbeat_follows_a_tick() -> None:
    """However much there is to tell: the scheduler has to be alive."""
    world = await World.make()
    written: asyncio.Queue[int] = asyncio.Queue()
    ticks: asyncio.Queue[None] = asyncio.Queue()
    asked: asyncio.Queue[None] = asyncio.Queue()
    agent = Agent(world.parts())

    async def ticked() -> None:
        asked.put_nowait(None)
        await ticks.get()

    def beat() -> documents.Heartbeat:
        written.put_nowait(ticks.qsize())
        return agent.heartbeat()

    pulse = heartbeat.HeartbeatWriter(world.out, "agent", 0.3, beat, ticked)
    running = asyncio.create_task(pulse.run())
    async with asyncio.timeout(BOUND):
        for _ in range(3):
            await asked.get()
            pulse.changed()
            assert written.empty()
            ticks.put_nowait(None)
            await written.get()
    running.cancel()
    await asyncio.wait([running])

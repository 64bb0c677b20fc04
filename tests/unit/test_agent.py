"""The agent against queues and blobs in memory: one road, and everything that may stand in it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchflow.errors import Backpressure, BrokerError, LeaseLost, StorageError
from batchflow.model import Status
from batchflow.ports.broker import OutgoingMessage
from batchflow.protocol import documents, layout, wire
from batchflow.protocol.packing import MOST_BYTES
from batchflow.support.backoff import Backoff
from node_agent.agent import Agent, ServiceEnded
from node_agent.bundles.task_inputs import TRIES
from node_agent.control import heartbeat
from node_agent.control.event_batcher import MOST_WAITING
from node_agent.control.log_upload import LogUploader
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.execution.results import fitting
from node_agent.links import dead_letters, task_queue
from node_agent.system.json_log import JsonLines
from tests.support.agent_world import INCARNATION, RESULTS, TASKS, World, succeed, task


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are short here."""

    class Quick(Backoff):
        def __init__(self, *_: object) -> None:
            super().__init__(0.01, 0.05)

    for module in (
        "batchflow.support.backoff",
        "node_agent.links.task_queue",
        "node_agent.bundles.task_inputs",
    ):
        monkeypatch.setattr(f"{module}.Backoff", Quick)


def sleeping(seconds: float) -> Any:
    async def behave(execution: Execution) -> Outcome:
        await asyncio.sleep(seconds)
        return succeed(execution)

    return behave


def held(gate: asyncio.Event) -> Any:
    async def behave(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    return behave


def times(number: int, error: Exception) -> Any:
    """A fault that happens so often, and then no more."""
    left = iter(range(number))

    async def fault() -> None:
        if next(left, None) is not None:
            raise error

    return fault


async def test_a_task_runs_and_its_result_comes_back() -> None:
    """One task in, one result out, and nothing is left in the queue."""
    world = await World.make()
    async with world.agent():
        await world.submit(task(0, tag={"my": "tag"}))
        (result,) = await world.results(1)
        await world.empty()
    assert (result.status, result.value, result.uid) == (Status.SUCCEEDED, "ok", "abc123:0")
    assert result.tag == {"my": "tag"}
    assert world.running.noted == [(0, ("abc123:0",)), (0, ())]


async def test_a_pack_is_answered_task_by_task() -> None:
    """Each of them, once, over two slots."""
    world = await World.make()
    async with world.agent(slots=2):
        await world.submit(*(task(number) for number in range(20)))
        results = await world.results(20)
        await world.empty()
    assert sorted(result.uid for result in results) == sorted(f"{INCARNATION}:{n}" for n in range(20))


async def test_the_result_is_accepted_before_the_task_is_completed() -> None:
    """Always, whatever the broker does."""
    world = await World.make()
    async with world.agent():
        await world.submit(task(0))
        await world.results(1)
        await world.empty()
    order = [call for call in world.faults.calls if call in ("send results", "complete")]
    assert order == ["send results", "complete"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"v": 99, "type": "tasks", "items": [{}]}',
        b'{"v": 1, "type": "tasks", "items": [{"id": "c"}]}',
        wire.join("tasks", [wire.encode(task(0, client="../../escape"))]),
        wire.join("tasks", [wire.encode(task(0, job="a/b"))]),
        wire.join("events", [wire.encode(wire.EventItem("a:1", "1", "log", "x", 1.0))]),
    ],
)
async def test_a_message_that_cannot_be_read_goes_to_the_dead_letters(body: bytes) -> None:
    """With the reason, and the agent goes on."""
    world = await World.make()
    async with world.agent():
        sender = await world.broker.sender(TASKS)
        await sender.send(OutgoingMessage(body, "bad"))
        await world.submit(task(1))
        assert (await world.results(1))[0].uid == "abc123:1"
        await world.empty()
        dead = await (await world.broker.receiver(TASKS, dead_letters=True)).receive(1.0)
    assert dead is not None
    assert dead.dead_letter_reason == "MessageUnreadable"
    assert dead.dead_letter_description


async def test_a_failure_is_told_with_its_details() -> None:
    """Kind, error, traceback, and what was printed. An agent that ends has kept the task."""

    def fail(execution: Execution) -> Outcome:
        return Outcome(
            Status.FAILED, error="boom", kind="TaskFailed", traceback="line 1", stdout="out", stderr="err"
        )

    world = await World.make(fail=fail)
    async with world.agent():
        await world.submit(task(0, "fail"))
        (result,) = await world.results(1)
    assert (result.error, result.kind, result.traceback) == ("boom", "TaskFailed", "line 1")
    assert (result.stdout, result.stderr) == ("out", "err")
    assert len([info async for info in world.out.list("failed/")]) == 1


async def test_a_slot_that_breaks_costs_one_task() -> None:
    """A fault of ours becomes the task's outcome; the slot takes the next one."""

    def broken(execution: Execution) -> Outcome:
        raise RuntimeError("a bug")

    world = await World.make(broken=broken)
    async with world.agent():
        await world.submit(task(0, "broken"))
        (result,) = await world.results(1)
        await world.submit(task(1))
        assert (await world.results(1))[0].status is Status.SUCCEEDED
    assert result.kind == "WorkerDied"
    assert "a bug" in (result.error or "")


async def test_large_results_travel_by_reference() -> None:
    """The blob holds the JSON; small ones stay in the message."""
    value = orjson.dumps("x" * 150_000)
    world = await World.make(big=lambda execution: Outcome(Status.SUCCEEDED, value))
    async with world.agent():
        await world.submit(task(0, "big"))
        (result,) = await world.results(1)
    assert isinstance(result.value, wire.Reference)
    assert result.value.size == len(value)
    assert (await world.out.get(result.value.blob)).data == value


async def test_a_result_above_the_cap_is_refused() -> None:
    """By a result that names size and limit."""
    value = orjson.dumps("x" * 50_000)
    world = await World.make(big=lambda execution: Outcome(Status.SUCCEEDED, value))
    async with world.agent(result_limit=40_000):
        await world.submit(task(0, "big"))
        (result,) = await world.results(1)
    assert result.kind == "ResultTooLarge"
    assert "50002" in (result.error or "")
    assert "40000" in (result.error or "")


async def test_arguments_by_reference_are_fetched() -> None:
    """From the control container."""
    seen: list[Any] = []

    def look(execution: Execution) -> Outcome:
        seen.append(execution.args)
        return succeed(execution)

    world = await World.make(look=look)
    await world.ctl.put("args/1.json", b"[1, [2], {}]")
    async with world.agent():
        await world.submit(task(0, "look", params=wire.Reference("args/1.json", 12)))
        await world.results(1)
    assert seen == [[1, [2], {}]]


@pytest.mark.parametrize(("data", "words"), [(None, "gone"), (b"{", "JSON"), (b"7", "list")])
async def test_arguments_that_cannot_be_had_reject_the_task(data: bytes | None, words: str) -> None:
    """Saying why; its companions run."""
    world = await World.make()
    if data is not None:
        await world.ctl.put("args/1.json", data)
    async with world.agent():
        await world.submit(task(0, params=wire.Reference("args/1.json", 12)), task(1))
        results = {result.uid: result for result in await world.results(2)}
    assert results["abc123:0"].kind == "TaskRejected"
    assert words in (results["abc123:0"].error or "")
    assert results["abc123:1"].status is Status.SUCCEEDED


def leaving(folder: Path) -> Any:
    def behave(execution: Execution) -> Outcome:
        (folder / "deep").mkdir(exist_ok=True)
        paths = (folder / "x.csv", folder / "deep" / "y.bin")
        for path in paths:
            path.write_bytes(path.name.encode())
        return Outcome(Status.SUCCEEDED, b"1", outputs=paths, output_folder=folder)

    return behave


@pytest.mark.parametrize("in_folders", [True, False])
async def test_outputs_are_uploaded_and_named(tmp_path: Path, in_folders: bool) -> None:
    """Under the prefix that the session looks in, by the task's own names; then the slot may remove them."""
    world = await World.make(leave=leaving(tmp_path))
    async with world.agent():
        await world.submit(task(0, "leave", execution_folders=in_folders))
        (result,) = await world.results(1)
    assert sorted(result.files) == ["deep/y.bin", "x.csv"]
    assert bool(result.folder) is in_folders
    prefix = layout.outputs_prefix("job", "client", "abc123:0", result.folder)
    assert (await world.out.get(prefix + "deep/y.bin")).data == b"y.bin"
    assert world.slots[0].cleaned == 1


async def test_no_execution_overwrites_the_files_of_another(tmp_path: Path) -> None:
    """Two executions of one task, as after a lost lock: each result leads to its own files."""
    world = await World.make(leave=leaving(tmp_path))
    async with world.agent():
        for _ in range(2):
            await world.submit(task(0, "leave", execution_folders=True))
            await world.results(1)
    found = [info.name async for info in world.out.list(layout.outputs_prefix("job", "client", "abc123:0"))]
    assert len({name.split("/")[4] for name in found}) == 2
    assert len(found) == 4


@pytest.mark.parametrize("failures", [2, 2 * TRIES])  # of two files
async def test_storage_in_trouble_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """For a while; then the task is handed back, and runs again."""
    world = await World.make(leave=leaving(tmp_path))
    fault = times(failures, StorageError("the disk is on fire", retryable=True))
    upload = world.out.upload

    async def failing(name: str, path: Any, *, create: bool = False) -> None:
        await fault()
        await upload(name, path, create=create)

    monkeypatch.setattr(world.out, "upload", failing)
    async with world.agent():
        await world.submit(task(0, "leave"))
        (result,) = await world.results(1)
    assert result.status is Status.SUCCEEDED
    assert ["on fire" in past.error for past in result.history] == [True] * (failures > TRIES)


@pytest.mark.parametrize(
    "error",
    [
        Backpressure("throttled: error 50009", retryable=True),
        Backpressure("the results queue is full", retryable=True),
        BrokerError("the connection was lost", retryable=True),
        BrokerError("the token has expired", retryable=True),
    ],
    ids=["throttled", "full", "lost", "expired"],
)
async def test_a_broker_in_trouble_gets_the_same_message_again(error: BrokerError) -> None:
    """Same bytes, same id; meanwhile the heartbeat says so, nothing is pulled, the lease is kept."""
    world = await World.make()
    well = asyncio.Event()

    async def throttled() -> None:
        if not well.is_set():
            raise error

    async def told() -> bool:
        return any(str(error) in (beat.trouble or "") for beat in await world.heartbeats())

    world.faults.before["send results"] = throttled
    async with world.agent(heartbeat_interval=0.3):
        await world.submit(task(0))
        await world.until(told)
        receives = world.faults.calls.count("receive")
        await world.submit(task(1))
        assert world.faults.calls.count("receive") == receives
        well.set()
        results = await world.results(2)
        await world.empty()
        await world.until(lambda: _is_well(world))
    assert sorted(result.uid for result in results) == ["abc123:0", "abc123:1"]


async def _is_well(world: World) -> bool:
    return all(beat.trouble is None for beat in await world.heartbeats())


async def test_a_lost_connection_is_opened_again() -> None:
    """Receiving fails for a while, then goes on."""
    world = await World.make()
    world.faults.before["receive"] = times(4, BrokerError("connection lost", retryable=True))
    world.faults.before["open receiver"] = times(2, BrokerError("cannot connect", retryable=True))
    world.faults.before["open sender"] = times(2, BrokerError("cannot connect", retryable=False))
    async with world.agent():
        await world.submit(task(0))
        await world.results(1)
        await world.until(lambda: _is_well(world))


async def test_results_that_gather_ride_together() -> None:
    """One send is slow: what came meanwhile is the next message, in order."""
    world = await World.make()
    gate = asyncio.Event()
    world.faults.before["send results"] = gate.wait  # type: ignore[assignment]
    async with world.agent():
        await world.submit(*(task(number) for number in range(10)))
        await world.until(lambda: len(world.slots[0].begun) == 10)
        gate.set()
        results = await world.results(10)
    assert [result.uid for result in results] == [f"abc123:{number}" for number in range(10)]
    assert world.faults.calls.count("send results") <= 2


async def test_a_task_longer_than_its_lock_runs_once() -> None:
    """The lock is renewed as long as it takes."""
    world = await World.make(lock_duration=0.6, slow=sleeping(2.0))
    async with world.agent(lock_duration=0.6, slots=2):
        await world.submit(task(0, "slow"))
        await world.results(1)
        await world.empty()
    assert sum(len(slot.begun) for slot in world.slots) == 1
    assert world.faults.calls.count("renew") >= 6


async def test_a_renewal_that_fails_is_tried_again() -> None:
    """Before the lock runs out."""
    world = await World.make(lock_duration=1.0, slow=sleeping(1.5))
    world.faults.before["renew"] = times(2, BrokerError("a hiccup", retryable=True))
    async with world.agent(lock_duration=1.0, slots=2):
        await world.submit(task(0, "slow"))
        await world.results(1)
        await world.empty()
    assert sum(len(slot.begun) for slot in world.slots) == 1


async def test_a_lost_lease_is_noticed_and_the_result_sent_all_the_same() -> None:
    """The broker delivers the task again, to the same agent, which does not run it twice."""
    gate = asyncio.Event()
    world = await World.make(lock_duration=0.6, held=held(gate))
    async with world.agent(lock_duration=0.6, slots=2):
        await world.submit(task(0, "held"))
        await world.until(lambda: len(world.slots[0].begun) == 1)
        world.faults.before["renew"] = times(1, LeaseLost("gone"))
        world.lapse(1.0)
        await world.until(lambda: world.faults.calls.count("renew") >= 3)
        gate.set()
        (result,) = await world.results(1)
        await world.empty()
    assert result.status is Status.SUCCEEDED
    assert sum(len(slot.begun) for slot in world.slots) == 1


async def test_a_cancelled_task_is_killed_and_one_that_waits_never_starts() -> None:
    """Soon after the document is there."""
    world = await World.make(slow=sleeping(60.0))
    async with world.agent():
        await world.submit(task(0, "slow"))
        await world.until(lambda: bool(world.slots[0].begun))
        cancellation = documents.Cancellation({INCARNATION: ((0, 0), (1, 1))})
        await world.ctl.put(layout.cancellation_blob("job", "client"), cancellation.encode())
        async with asyncio.timeout(20.0):
            (result,) = await world.results(1)
        await world.submit(task(1, "slow"))
        (other,) = await world.results(1)
    assert (result.status, other.status) == (Status.CANCELLED, Status.CANCELLED)
    assert world.slots[0].begun == world.slots[0].killed == ["abc123:0"]


async def test_the_first_task_of_a_session_waits_for_no_blob() -> None:
    """It is young: it may start before anything is known of its session."""
    world = await World.make()
    reads: list[str] = []
    original = world.ctl.get_if_changed

    async def reading(name: str, etag: str | None) -> Any:
        reads.append(name)
        return await original(name, etag)

    world.ctl.get_if_changed = reading  # type: ignore[method-assign]
    async with world.agent():
        await world.submit(task(0))
        await world.results(1)
    assert reads == []


async def test_a_retry_is_a_scheduled_copy() -> None:
    """Attempt and history travel with it; it may run on another agent."""
    tries: list[int] = []

    def flaky(execution: Execution) -> Outcome:
        tries.append(execution.attempt)
        if execution.attempt < 3:
            return Outcome(Status.FAILED, error="not yet", kind="TaskFailed", exception="ValueError")
        return succeed(execution)

    world = await World.make(flaky=flaky)
    async with world.agent():
        await world.submit(task(0, "flaky", retry={"max_attempts": 5, "backoff": 0.05}))
        (result,) = await world.results(1)
        await world.empty()
    assert tries == [1, 2, 3]
    assert result.attempt == 3
    assert [(past.number, past.error) for past in result.history] == [(1, "not yet"), (2, "not yet")]
    assert world.faults.calls.count("schedule tasks") == 2


async def test_a_drain_finishes_what_runs_and_hands_back_the_rest() -> None:
    """Uncharged; another agent runs it."""
    gate = asyncio.Event()
    world = await World.make(held=held(gate))
    async with world.doomed(drain_grace=10.0) as agent:
        await world.submit(task(0, "held"), task(1))
        await world.until(lambda: bool(world.slots[0].begun))
        agent.stop()
        await world.until(lambda: "send tasks" in world.faults.calls)
        gate.set()
        await world.until(lambda: agent.exit_reason is not None)
    assert agent.exit_reason == "drained"
    async with world.agent():
        results = await world.results(2)
        await world.empty()
    assert [(result.uid, result.attempt) for result in results] == [("abc123:0", 1), ("abc123:1", 1)]


async def test_a_drain_without_grace_stops_what_runs() -> None:
    """It is killed, handed back uncharged, and run by the next agent."""
    world = await World.make(slow=sleeping(60.0))
    async with world.doomed() as agent:
        await world.submit(task(0, "slow"))
        await world.until(lambda: bool(world.slots[0].begun))
        agent.drain(0.0)
        await world.until(lambda: agent.exit_reason == "drained")
    assert world.slots[0].killed == ["abc123:0"]
    world.behaviours["slow"] = succeed
    async with world.agent():
        (result,) = await world.results(1)
        await world.empty()
    assert result.attempt == 1


async def test_an_idle_agent_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Having said so in its heartbeat, and looked once more."""
    monkeypatch.setattr(task_queue, "LAST_LOOK", 0.1)
    world = await World.make()
    agent = Agent(world.parts(idle_exit=0.3))
    async with asyncio.timeout(20.0):
        await agent.run()
    assert agent.exit_reason == "idle"
    assert [beat.state for beat in await world.heartbeats()] == ["exiting"]


async def test_the_last_look_finds_what_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that was sent between the announcement and the exit is run."""
    monkeypatch.setattr(task_queue, "LAST_LOOK", 0.5)
    world = await World.make()
    agent = Agent(world.parts(idle_exit=0.2))
    running = asyncio.create_task(agent.run())

    async def announced() -> bool:
        return any(beat.state == "exiting" for beat in await world.heartbeats())

    await world.until(announced)
    await world.submit(task(0))
    assert (await world.results(1))[0].status is Status.SUCCEEDED
    async with asyncio.timeout(20.0):
        await running
    assert agent.exit_reason == "idle"


async def test_the_heartbeat_lists_the_running_tasks() -> None:
    """Host, versions, what runs since when, and the state."""
    gate = asyncio.Event()
    world = await World.make(held=held(gate))
    async with world.agent(heartbeat_interval=0.3):
        await world.submit(task(0, "held"))

        async def told() -> bool:
            return any(beat.running for beat in await world.heartbeats())

        await world.until(told)
        (beat,) = await world.heartbeats()
        gate.set()
        await world.results(1)
    (running,) = beat.running
    assert (running.uid, running.command, beat.state, beat.slots) == ("abc123:0", "held", "ready", 1)
    assert 0 <= beat.beat_at - running.since < 60
    assert {"python", "batchflow"} <= set(beat.versions)
    assert beat.memory_available is not None
    assert beat.disk_free is not None
    assert beat.clock_skew is not None
    assert [each.state for each in await world.heartbeats()] == ["exiting"]


async def test_storage_that_takes_no_heartbeat_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent works; the next heartbeat says the same."""
    world = await World.make()

    async def failing(*_: object, **__: object) -> str:
        raise StorageError("no", retryable=True)

    monkeypatch.setattr(world.out, "put", failing)
    async with world.agent():
        await world.submit(task(0))
        await world.results(1)


async def test_a_service_that_ends_ends_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loudly: the supervisor starts another one."""
    world = await World.make()
    agent = Agent(world.parts())

    async def ends(writer: heartbeat.HeartbeatWriter) -> None:
        return

    monkeypatch.setattr(heartbeat.HeartbeatWriter, "run", ends)
    with pytest.raises(ExceptionGroup) as caught:
        await agent.run()
    assert caught.group_contains(ServiceEnded)


async def test_dead_letters_become_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of tasks; what cannot be read stays for people."""
    world = await World.make()
    receiver = await world.broker.receiver(TASKS)
    sender = await world.broker.sender(TASKS)
    await world.submit(task(0), task(1))
    await sender.send(OutgoingMessage(b"nonsense", "bad"))
    for reason in ("MaxDeliveryCountExceeded", "other"):
        found = await receiver.receive(1.0)
        assert found is not None
        await receiver.dead_letter(found, reason, "for the test")
    often = partial(dead_letters.DeadLetterHandler, interval=0.05)
    monkeypatch.setattr("node_agent.links.outgoing.DeadLetterHandler", often)
    agent = Agent(world.parts())
    running = asyncio.create_task(agent.run())
    results = await world.results(2)

    async def one_left() -> bool:
        return (await world.broker.figures("tasks")).dead == 1

    await world.until(one_left)
    agent.drain(0.0)
    await running
    assert {result.kind for result in results} == {"TaskPoisoned"}
    assert sorted(result.uid for result in results) == ["abc123:0", "abc123:1"]


async def test_events_of_a_task_arrive_while_it_runs() -> None:
    """Log lines and progress, in the mailbox of their session."""
    gate = asyncio.Event()
    world = await World.make(held=held(gate))
    parts = world.parts()
    agent = Agent(parts)
    running = asyncio.create_task(agent.run())
    execution = Execution("abc123:0", "0", "client", "job", "held", [], None, 1)  # type: ignore[arg-type]
    for number in range(3):
        parts.events.tell(execution, wire.EventItem("abc123:0", "0", "progress", f"{number}/2", 1.0))
    parts.events.tell(execution, wire.EventItem("abc123:0", "0", "log", "hello", 1.0))
    link = await world.broker.mailbox(RESULTS, "job/client")
    message = await link.receive(5.0)
    assert message is not None
    events = wire.decode(message.body)
    agent.drain(0.0)
    await running
    told = [(event.kind, event.message) for event in events if isinstance(event, wire.EventItem)]
    assert told == [("progress", "2/2"), ("log", "hello")]


async def test_events_that_come_too_fast_are_dropped_and_counted() -> None:
    """The number comes as a warning; memory stays bounded."""
    world = await World.make()
    parts = world.parts()
    execution = Execution("abc123:0", "0", "client", "job", "held", [], None, 1)  # type: ignore[arg-type]
    for number in range(MOST_WAITING + 50):
        parts.events.tell(execution, wire.EventItem("abc123:0", "0", "stdout", f"line {number}", 1.0))
    agent = Agent(parts)
    running = asyncio.create_task(agent.run())
    events: list[wire.EventItem] = []
    link = await world.broker.mailbox(RESULTS, "job/client")
    while not any(event.kind == "warning" for event in events):
        message = await link.receive(5.0)
        assert message is not None
        events += [event for event in wire.decode(message.body) if isinstance(event, wire.EventItem)]
        await link.complete(message)
    agent.drain(0.0)
    await running
    assert len(events) == MOST_WAITING + 1
    assert events[-1].data == {"dropped": 50}


async def test_the_log_is_kept_in_a_blob() -> None:
    """Without what looks like a key."""
    world = await World.make()
    keeper = LogUploader(JsonLines())
    logger = logging.getLogger("test_the_log")
    logger.addHandler(keeper)
    logger.warning(
        "something", extra={"text": "Endpoint=sb://x/;SharedAccessKey=c2VjcmV0", "url": "a?sig=abc&x"}
    )
    await keeper.flush_to(world.out, "logs/a.log")
    logger.removeHandler(keeper)
    line = orjson.loads((await world.out.get("logs/a.log")).data)
    assert line["event"] == "something"
    assert "c2VjcmV0" not in line["text"]
    assert "abc" not in line["url"]


def test_a_result_always_fits_into_a_message() -> None:
    """Control characters, which grow sixfold in JSON, in everything that can be long."""
    noise = "\x01" * 64 * 1024
    result = wire.ResultItem(
        uid="a:1", client="c", job="j", task_id="1", command="x.py", status=Status.FAILED, host="host",
        value=None, error=noise, kind="TaskFailed", traceback=noise, tag=noise, stdout=noise, stderr=noise,
    )  # fmt: skip
    encoded = fitting(result)
    assert len(encoded) <= MOST_BYTES
    read = wire.decode(wire.join("results", [encoded]))[0]
    assert isinstance(read, wire.ResultItem)
    assert read.error

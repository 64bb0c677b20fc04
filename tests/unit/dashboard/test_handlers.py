"""The page's requests without a web framework: who may ask, what is answered, what acts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from batchflow.client import Client
from batchflow.dashboard import handlers as handlers_module
from batchflow.dashboard.app import ClientPools
from batchflow.dashboard.exchange import PageAnswer, PageRequest
from batchflow.dashboard.handlers import PageHandlers
from batchflow.dashboard.source import PoolSource
from batchflow.model import Status
from batchflow.pool import Pool
from batchflow.ports.broker import OutgoingMessage
from batchflow.ports.compute import NodeInfo
from batchflow.protocol import documents, layout, wire
from batchflow.retry import RetryPolicy
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.agent_world import task
from tests.support.services import Doubles
from tests.support.simulated_pool import SimulatedPool, SimulatedPools
from tests.support.waiting import eventually

TOKEN = "a-token-of-24-characters"
JSON = {"content-type": "application/json", "host": "127.0.0.1:80", "origin": "http://127.0.0.1:80"}


@pytest.fixture
async def simulated() -> AsyncIterator[PageHandlers]:
    handlers = PageHandlers(SimulatedPools(SimulatedPool(3, history=30.0)), token=TOKEN, control=False)
    yield handlers
    await handlers.aclose()


@pytest.fixture
async def handlers(client: Client) -> AsyncIterator[PageHandlers]:
    """Of the pool on the doubles, with control and without a token."""
    handlers = PageHandlers(ClientPools(client, None), token=None, control=True)
    yield handlers
    await handlers.aclose()


async def get(handlers: PageHandlers, path: str, **query: str) -> PageAnswer:
    return await handlers.handle(PageRequest("GET", path, query))


async def act(handlers: PageHandlers, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, Any]:
    body = {"pool": "demo", **body}
    answer = await handlers.handle(PageRequest("POST", "/act", {}, headers or JSON, orjson.dumps(body)))
    return answer.status, orjson.loads(answer.body)


@pytest.mark.parametrize(
    "path", ["/", "/wrong/", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/events", "/page.js", "/metrics"]
)
async def test_without_the_token_nothing_is_answered(simulated: PageHandlers, path: str) -> None:
    """Not even a file of the page."""
    answer = await get(simulated, path)
    assert answer.status == 403
    assert b"token" in answer.body


async def test_every_answer_forbids_what_is_not_the_pages_own(simulated: PageHandlers) -> None:
    """No script, style, frame or address of others, and no script in line."""
    for path in (f"/{TOKEN}/", f"/{TOKEN}/pools", "/wrong/", f"/{TOKEN}/none"):
        headers = (await get(simulated, path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy.partition("frame-ancestors")[0]
        assert headers["referrer-policy"] == "no-referrer"  # the address holds the token


async def test_the_page_refers_to_its_own_files_alone(simulated: PageHandlers) -> None:
    """And has neither script nor style in line."""
    page = (await get(simulated, f"/{TOKEN}/")).body.decode()
    assert "//" not in page.replace("<!doctype html>", "")
    assert "<style" not in page
    assert " style=" not in page
    assert "onclick" not in page
    for name in ("page.css", "page.js", "draw.js", "text.js", "icon.svg"):
        answer = await get(simulated, f"/{TOKEN}/{name}")
        assert answer.status == 200
        assert b"innerHTML" not in answer.body
        assert b"eval(" not in answer.body


async def test_a_watcher_gets_everything_and_then_what_changes(simulated: PageHandlers) -> None:
    """Nodes, parts and the runs of the last quarter of an hour."""
    answer = await get(simulated, f"/{TOKEN}/events")
    assert answer.stream is not None
    seen: dict[str, Any] = {}
    async for piece in answer.stream:
        if piece.startswith(b"data: "):
            seen |= orjson.loads(piece.removeprefix(b"data: "))
        if seen.get("parts", {}).get("now") and "runs" in seen:
            break
    assert seen["pool"] == "simulated"
    assert len(seen["runs"]) > 100
    await answer.stream.aclose()  # type: ignore[attr-defined]


async def test_metrics_are_there_without_a_page(simulated: PageHandlers) -> None:
    """The first request looks at the pool."""
    answer = await get(simulated, f"/{TOKEN}/metrics")
    assert b'batchflow_nodes{pool="simulated"} 4' in answer.body


class SlowPools(SimulatedPools):
    """Pools of any name, whose sources or nodes come when a test says so."""

    def __init__(self) -> None:
        super().__init__(SimulatedPool(2, history=1.0))
        self.asked: list[str] = []
        self.source_comes, self.nodes_come = asyncio.Event(), asyncio.Event()
        self.source_comes.set()
        self.nodes_come.set()

    async def source(self, pool_id: str) -> SimulatedPool:
        self.asked.append(pool_id)
        await self.source_comes.wait()
        pool = SimulatedPool(2, history=1.0)
        nodes = pool.nodes

        async def late() -> list[NodeInfo]:
            await self.nodes_come.wait()
            return await nodes()

        pool.nodes = late  # type: ignore[method-assign]
        return pool


async def test_a_page_of_one_pool_looks_at_it_once_whatever_an_address_names() -> None:
    """Made-up names would be watches that nothing ends."""
    pools = SlowPools()
    handlers = PageHandlers(pools, token=None, control=False, only="simulated")
    for number in range(3):
        assert (await get(handlers, "/events", pool=f"x{number}")).status == 200
    assert pools.asked == ["simulated"]
    await handlers.aclose()


async def test_a_pool_that_is_opened_during_a_scrape_does_not_end_the_scrape() -> None:
    """Both are requests of one page."""
    pools = SlowPools()
    pools.nodes_come.clear()
    handlers = PageHandlers(pools, token=None, control=False)
    await get(handlers, "/events", pool="one")
    scrape = asyncio.create_task(get(handlers, "/metrics"))
    await asyncio.sleep(0)
    await get(handlers, "/events", pool="two")
    pools.nodes_come.set()
    assert (await scrape).status == 200
    await handlers.aclose()


async def test_a_scrape_of_a_pool_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus asks again."""
    monkeypatch.setattr(handlers_module, "_FIRST_LOOK", 0.01)
    pools = SlowPools()
    pools.nodes_come.clear()
    handlers = PageHandlers(pools, token=None, control=False)
    assert (await get(handlers, "/metrics")).status == 503
    await handlers.aclose()


async def test_a_pool_that_is_found_after_the_close_is_not_looked_at() -> None:
    """Nothing would end that."""
    pools = SlowPools()
    pools.source_comes.clear()
    handlers = PageHandlers(pools, token=None, control=False)
    request = asyncio.create_task(get(handlers, "/events"))
    await eventually(lambda: pools.asked)
    await handlers.aclose()
    pools.source_comes.set()
    assert (await request).status == 503
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("dashboard of")]


async def test_a_pool_that_is_not_there_is_said(handlers: PageHandlers) -> None:
    """As JSON that the page shows."""
    answer = await get(handlers, "/events", pool="nope")
    assert answer.status == 404
    assert "nope" in orjson.loads(answer.body)["error"]


async def test_a_page_that_only_shows_does_not_act(simulated: PageHandlers) -> None:
    """Whoever asks."""
    request = PageRequest(
        "POST", f"/{TOKEN}/act", {}, JSON, b'{"pool":"simulated","action":{"do":"resize","nodes":1}}'
    )
    assert (await simulated.handle(request)).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {**JSON, "content-type": "text/plain"},
        {**JSON, "content-type": "application/x-www-form-urlencoded"},
        {**JSON, "origin": "http://evil.example"},
        {**JSON, "origin": "null"},
        {**JSON, "sec-fetch-site": "cross-site"},
        {},
    ],
)
async def test_a_request_from_another_site_does_not_act(
    handlers: PageHandlers, headers: dict[str, str]
) -> None:
    """Also where it knows the address."""
    status, told = await act(handlers, headers or {"host": "x"}, action={"do": "drain", "node": "node-1"})
    assert status == 403
    assert "question" not in told


async def test_an_action_is_asked_back_once(handlers: PageHandlers, pool: Pool, agent: Agent) -> None:
    """The answer counts once, and for the action that was asked about."""
    await agent.beat()
    drain = {"do": "drain", "node": "node-1"}
    status, asked = await act(handlers, action=drain)
    assert status == 200
    assert "node-1" in asked["question"]
    assert [info async for info in pool.runtime.ctl.list(layout.DRAIN_BLOB)] == []
    assert (await act(handlers, action={"do": "drain", "node": "node-2"}, answer=asked["answer"]))[0] == 409
    _, asked = await act(handlers, action=drain)
    assert (await act(handlers, action=drain, answer=asked["answer"]))[1] == {"done": "Node node-1 drains."}
    order = documents.DrainOrder.decode((await pool.runtime.ctl.get(layout.DRAIN_BLOB)).data)
    assert (order.nodes, order.agents) == (("node-1",), ("agent-1",))
    assert (await act(handlers, action=drain, answer=asked["answer"]))[0] == 409


async def test_a_resize_is_asked_back_once(
    handlers: PageHandlers, pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """Batch is asked for the nodes of the question, and for no others."""
    before = (await doubles.compute.pool("demo")).wanted
    resize = {"do": "resize", "nodes": before + 3}
    status, asked = await act(handlers, action=resize)
    assert status == 200
    assert f"{before + 3} dedicated nodes" in asked["question"]
    assert (await act(handlers, action={**resize, "nodes": 900}, answer=asked["answer"]))[0] == 409
    assert (await doubles.compute.pool("demo")).wanted == before
    _, asked = await act(handlers, action=resize)
    done = f"Batch was asked for {before + 3} nodes."
    assert (await act(handlers, action=resize, answer=asked["answer"]))[1] == {"done": done}
    assert (await doubles.compute.pool("demo")).wanted == before + 3
    assert (await act(handlers, action=resize, answer=asked["answer"]))[0] == 409


async def test_a_dead_letter_runs_again_after_its_question(
    handlers: PageHandlers, pool: Pool, doubles: Doubles
) -> None:
    """One that has gone meanwhile is said, and nothing is sent."""
    (queue,) = pool.runtime.manifest.task_queues
    body = wire.join("tasks", [wire.encode(task(1, task_id="lost"))])
    sender = await doubles.broker.sender(queue)
    await sender.send(OutgoingMessage(body, "m1"))
    receiver = await doubles.broker.receiver(queue)
    delivery = await receiver.receive(1.0)
    assert delivery is not None
    await receiver.dead_letter(delivery, "MaxDeliveryCountExceeded", "")
    (letter,) = await PoolSource(pool).dead_letters()
    replay = {"do": "replay", "queue": queue.entity, "number": letter["number"]}
    _, asked = await act(handlers, action=replay)
    assert queue.entity in asked["question"]
    done = {"done": "The dead letter is in its queue again."}
    assert (await act(handlers, action=replay, answer=asked["answer"]))[1] == done
    again = await receiver.receive(1.0)
    assert again is not None
    assert again.body == body
    _, asked = await act(handlers, action=replay)
    status, told = await act(handlers, action=replay, answer=asked["answer"])
    assert (status, "not there any more" in told["error"]) == (400, True)
    await receiver.aclose()


@pytest.mark.parametrize(
    "action", [{}, {"do": "delete"}, {"do": "resize", "nodes": -1}, {"do": "resize", "nodes": "9"}]
)
async def test_what_is_no_action_is_refused(
    handlers: PageHandlers, pool: Pool, action: dict[str, Any]
) -> None:
    """Before anything is asked."""
    assert (await act(handlers, action=action))[0] == 400


async def test_a_task_of_this_program_is_told_whole_and_can_be_cancelled(
    handlers: PageHandlers, pool: Pool, session: Session, agent: Agent
) -> None:
    """Its arguments while it waits; its value, traceback and output later."""
    task = await session.submit("x.py", args=["<b>", 2])
    await task.accepted()
    uid = f"{session.incarnation}:0"
    told = orjson.loads((await get(handlers, "/task", uid=uid)).body)
    assert (told["task_id"], told["status"], told["args"], told["own"]) == ("0", "queued", "['<b>', 2]", True)
    action = {"do": "cancel", "uid": uid, "label": "0"}
    _, asked = await act(handlers, action=action)
    assert (await act(handlers, action=action, answer=asked["answer"]))[1] == {
        "done": "The task is cancelled."
    }
    document = (await pool.runtime.ctl.get(layout.cancellation_blob("default", "client_1"))).data
    assert documents.Cancellation.decode(document).covers(session.incarnation, 0)


async def test_a_failed_task_is_told_with_its_traceback_and_runs_again(
    handlers: PageHandlers, session: Session, agent: Agent
) -> None:
    """With the same arguments, as a new task."""
    await get(handlers, "/task", uid="")  # from here on details are kept
    options: dict[str, Any] = {"timeout": 30.0, "tag": {"row": 1}, "requires": {"slots": 2}}
    options["retry"] = RetryPolicy(max_attempts=1)
    task = await session.submit("x.py", args=[7], task_id="seven", **options)
    (item,) = await agent.take()
    await agent.answer(
        item,
        status=Status.FAILED,
        kind="TaskFailed",
        error="no",
        traceback="line 1\nline 2",
        stdout="printed",
    )
    await task.outcome()
    told = orjson.loads((await get(handlers, "/task", uid=item.uid)).body)
    assert (told["status"], told["traceback"], told["stdout"]) == ("failed", "line 1\nline 2", "printed")
    assert told["repeat"] == f"batchflow replay {item.uid} --pool demo"
    assert told["options"].startswith("timeout=30.0, retry=")
    action = {"do": "retry", "uid": item.uid, "label": "seven"}
    _, asked = await act(handlers, action=action)
    status, _ = await act(handlers, action=action, answer=asked["answer"])
    assert status == 200
    (again,) = await agent.take()
    assert (again.task_id, again.params) == ("seven", [7])
    for name in (*options, "memory_limit", "stream_output"):
        assert getattr(again, name) == getattr(item, name)
    assert (again.timeout, again.tag, again.requires) == (30.0, {"row": 1}, {"slots": 2})
    assert again.uid != item.uid

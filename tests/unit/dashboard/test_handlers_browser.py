"""The page in a real browser: Debian's Chromium, driven by Playwright. Without one, all are skipped."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.dashboard.server import DashboardServer, serve
from batchflow.model import Status
from batchflow.pool import Pool
from batchflow.protocol import documents, layout
from batchflow.protocol.activity import ActivityBatch, SlotRun
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.simulated_pool import SimulatedPool, SimulatedPools
from tests.support.waiting import eventually

playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

TOKEN = "a-token-of-24-characters"
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>"\'&amp;\u202e%s${hit}'


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One browser for all tests; the address at which it is driven."""
    assert CHROMIUM is not None
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [CHROMIUM, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        told, end = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (told.exists() and told.read_text().strip()) and time.monotonic() < end:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
        process.terminate()


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        yield await driver.chromium.connect_over_cdp(chromium)


@asynccontextmanager
async def opened(browser: Any, address: str) -> AsyncIterator[Any]:
    """Open a page that may have no error, and may refuse nothing by its policy."""
    page = await browser.new_page()
    page.set_default_timeout(30_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Policy" in message.text else None)
    await page.goto(address)
    yield page
    assert wrong == []
    await page.close()


@asynccontextmanager
async def simulated(pool: SimulatedPool, **options: Any) -> AsyncIterator[tuple[DashboardServer, str]]:
    server, address = await serve(SimulatedPools(pool), token=TOKEN, **options)
    yield server, address
    await server.aclose()


async def until(page: Any, condition: str) -> None:
    """Wait until the page is so. Playwright's own wait needs `eval`, which the page's policy forbids."""

    async def holds() -> bool:
        return bool(await page.evaluate(condition))

    await eventually(holds)


async def test_the_page_shows_what_ended_while_it_is_open(browser: Any) -> None:
    """And what ended before it was opened."""
    pool = SimulatedPool(4, rate=2.0, history=60.0)
    async with simulated(pool) as (_, address), opened(browser, address) as page:
        await until(page, "document.querySelectorAll('#tasks-table tbody tr').length > 5")
        assert await page.locator("#pool option").all_text_contents() == ["simulated"]
        assert await page.locator("[data-figure=nodes] b").text_content() == "4/5"
        at = pool.clock() - 0.1
        run = SlotRun("new:1", "the new one", "x.py", "j", "c", at, at, at, "failed", "no such table")
        pool.extra.append(ActivityBatch("a", "n", "node-0000", 0, pool.clock(), 1, 1, 0, [run]))
        await page.get_by_role("button", name="the new one").first.click()
        await page.get_by_text("Only what agents record is known of it here.").wait_for()
        await page.keyboard.press("Escape")
        assert not await page.locator("#detail").is_visible()
        await page.locator("#failures").get_by_text("no such table").wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.set_viewport_size({"width": 360, "height": 700})
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_failed_task_of_this_program_is_shown_with_its_traceback(
    browser: Any, client: Client, session: Session, agent: Agent
) -> None:
    """And with its arguments, its output, and the command that repeats it. All of it is text."""
    address = await client.dashboard()
    assert await client.dashboard() == address
    async with opened(browser, address) as page:
        await page.locator("#sessions-table").get_by_text("client_1").wait_for()
        task = await session.submit("x.py", args=[HOSTILE], task_id=HOSTILE)
        (item,) = await agent.take()
        fields = {"status": Status.FAILED, "kind": "TaskFailed", "error": HOSTILE, "host": HOSTILE}
        fields |= {"traceback": "Traceback\n" + HOSTILE, "stdout": HOSTILE}
        await agent.answer(item, **fields, started_at=None, finished_at=None)
        await task.outcome()
        await page.locator("#tasks-table .name").first.click()
        await page.get_by_text(f"batchflow replay {item.uid} --pool demo").wait_for()
        told = await page.locator("#detail pre").all_text_contents()
        assert any(text == "Traceback\n" + HOSTILE for text in told)
        assert await page.locator("#detail h2").text_content() == HOSTILE
        assert await page.evaluate("window.hit") is None
        assert await page.locator("#detail img, main table img, .group img, main script").count() == 0


async def test_an_action_is_carried_out_after_its_question(
    browser: Any, client: Client, pool: Pool, agent: Agent
) -> None:
    """No leaves everything as it is; Yes drains the node."""
    await agent.beat()

    async def drained() -> bool:
        return [info async for info in pool.runtime.ctl.list(layout.DRAIN_BLOB)] != []

    address = await client.dashboard(control=True, token=TOKEN)
    async with opened(browser, address) as page:
        await page.get_by_text("As a table").click()
        await page.locator("#nodes-table .name", has_text="host-1").click()
        await page.get_by_role("button", name="Drain").click()
        await page.get_by_role("button", name="No, leave it").click()
        assert not await drained()
        await page.get_by_role("button", name="Drain").click()
        assert "node-1" in await page.locator("#ask-text").text_content()
        await page.get_by_role("button", name="Yes, do it").click()
        await page.get_by_text("Node node-1 drains.").wait_for()
    order = documents.DrainOrder.decode((await pool.runtime.ctl.get(layout.DRAIN_BLOB)).data)
    assert order.nodes == ("node-1",)


async def test_hostile_names_of_nodes_sessions_and_commands_stay_text(browser: Any) -> None:
    """In every part of the page, and in what a pointer shows."""
    pool = SimulatedPool(1, rate=1.0, history=20.0)
    pool.names, pool.done, pool.failed = [], {}, {}
    at = pool.clock()

    async def nothing() -> list[Any]:
        return []

    async def beats() -> list[documents.Heartbeat]:
        running = (documents.Running("r:1", HOSTILE, HOSTILE, HOSTILE, HOSTILE, at),)
        return [
            documents.Heartbeat(
                "a", HOSTILE, HOSTILE, "b", 1, "ready", 1, at, at, 5.0, running, trouble=HOSTILE
            )
        ]

    async def jobs() -> list[dict[str, Any]]:
        return [{"name": HOSTILE, "state": "open", "created": at}]

    async def why() -> dict[str, Any]:
        return {"summary": HOSTILE, "causes": [{"what": HOSTILE, "remedy": HOSTILE, "severity": "blocking"}]}

    pool.activity, pool.beats, pool.jobs, pool.explain = nothing, beats, jobs, why  # type: ignore[method-assign]
    async with simulated(pool) as (_, address), opened(browser, address) as page:
        await page.get_by_text("As a table").click()
        await page.locator("#nodes-table .name").first.wait_for()
        await page.locator("#jobs-note", has_text="img src").wait_for()
        await page.locator("#grid").hover(position={"x": 20, "y": 20})
        await page.locator("#tip", has_text="img src").wait_for()
        await page.locator("#grid").click(position={"x": 20, "y": 20})
        await page.locator("#detail", has_text="img src").wait_for()
        assert await page.evaluate("window.hit") is None
        assert await page.locator("body img").count() == 1


async def test_a_thousand_nodes_are_shown_with_few_elements(browser: Any) -> None:
    """The figures are in the docs: here only that all is there, with few elements."""
    pool = SimulatedPool(1000, rate=100.0, history=120.0)
    pool.extra, pool.rate = await pool.activity(), 0.0
    async with simulated(pool) as (_, address), opened(browser, address) as page:
        await until(page, "document.querySelector('#nodes-note').textContent.startsWith('1,001 nodes')")
        await until(page, "document.querySelectorAll('#tasks-table tbody tr').length == 12")
        await until(page, "document.querySelector('#stream-note').textContent.startsWith('12,')")
        labels = await page.locator("#tasks-table tbody tr button").all_text_contents()
        assert all(int(label.partition("-")[2]) > 11_900 for label in labels), "the latest, which came first"
        assert await page.evaluate("document.getElementById('grid').height > 200")
        assert await page.evaluate("document.querySelectorAll('*').length") < 1_500


async def test_the_page_goes_on_when_its_server_was_started_again(browser: Any) -> None:
    """At the same address, with the same token."""
    pool = SimulatedPool(2, rate=2.0, history=30.0)
    server, address = await serve(SimulatedPools(pool), token=TOKEN)
    port = int(address.split(":")[2].split("/")[0])
    async with opened(browser, address) as page:
        await page.locator("#link[data-state=live]").wait_for()
        await server.aclose()
        await page.locator("#link[data-state=lost]").wait_for()
        server, again = await serve(SimulatedPools(SimulatedPool(3, rate=2.0)), token=TOKEN, port=port)
        assert again == address
        await page.locator("#link[data-state=live]").wait_for()
        await until(page, "document.querySelector('#nodes-note').textContent.startsWith('4 nodes')")
    await server.aclose()


async def test_an_address_without_its_token_shows_nothing(browser: Any) -> None:
    """And says what is missing."""
    async with simulated(SimulatedPool(1, history=1.0)) as (_, address):
        page = await browser.new_page()
        answer = await page.goto(address.replace(TOKEN, "another-token-here"))
        assert answer.status == 403
        assert "token" in await page.locator("body").text_content()
        await page.close()

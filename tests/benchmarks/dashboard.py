"""The live page at 1,000 simulated nodes and 100 ends a second, in headless Chromium.

`python -m tests.benchmarks.dashboard [--seconds 30] [--watchers 50]`
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import time

from playwright.async_api import Page, async_playwright

from batchflow.dashboard.exchange import PageRequest
from batchflow.dashboard.handlers import PageHandlers
from batchflow.dashboard.server import DashboardServer
from tests.support.simulated_pool import SimulatedPool, SimulatedPools

TOKEN = "token-of-the-benchmark"
OBSERVE = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
}).observe({type: "longtask", buffered: true});
"""
CONTENT = """
window.shown = {};
new MutationObserver(() => {
  const note = document.getElementById("nodes-note")?.textContent ?? "";
  if (note.startsWith("1,")) window.shown.nodes ??= performance.now();
  const rows = document.querySelectorAll("#tasks-table tbody tr");
  if (rows.length === 12) window.shown.tasks ??= performance.now();
}).observe(document, {subtree: true, childList: true, characterData: true});
"""


async def first_content(page: Page, address: str) -> str:
    """Return when figures and nodes, and when tasks, were on the page, from the beginning of its request."""
    await page.goto(address, wait_until="commit")
    shown: dict[str, float] = {}
    while len(shown) < 2:
        await asyncio.sleep(0.05)
        shown = await page.evaluate("window.shown")
    return f"nodes after {shown['nodes']:.0f} ms, tasks after {shown['tasks']:.0f} ms"


async def drain(handlers: PageHandlers, received: list[int]) -> None:
    """Read a stream as a browser would, without showing it."""
    answer = await handlers.handle(PageRequest("GET", f"/{TOKEN}/events"))
    assert answer.stream is not None
    async for piece in answer.stream:
        received[0] += len(piece)


async def measure(nodes: int, rate: float, seconds: float, watchers: int) -> None:
    """Print the figures."""
    pool = SimulatedPool(nodes, 4, rate)
    pool.extra = await pool.activity()  # made up before anything is measured
    handlers = PageHandlers(SimulatedPools(pool), token=TOKEN, control=False)
    server = DashboardServer(handlers, TOKEN)
    address = await server.start()
    chromium = shutil.which("chromium")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1400, "height": 900})
        await page.add_init_script(OBSERVE + CONTENT)
        print(f"first content, nothing known yet: {await first_content(page, address)}")
        await asyncio.sleep(3)
        print(f"first content, opened again:      {await first_content(page, address)}")
        session = await page.context.new_cdp_session(page)

        async def heap() -> float:
            await session.send("HeapProfiler.collectGarbage")
            return float((await session.send("Runtime.getHeapUsage"))["usedSize"]) / 1e6

        begin, busy = await heap(), time.process_time()
        await page.evaluate("window.longest = 0")
        await asyncio.sleep(seconds)
        share = (time.process_time() - busy) / seconds
        print(f"longest main-thread task in {seconds:.0f} s: {await page.evaluate('window.longest'):.0f} ms")
        print(f"heap of the page: {begin:.1f} MB, then {await heap():.1f} MB")
        print(f"server, 1 page: {share:.1%} of a core, {peak():.0f} MB at most")
        received, busy = [0], time.process_time()
        tasks = [asyncio.create_task(drain(handlers, received)) for _ in range(watchers)]
        await asyncio.sleep(seconds)
        share = (time.process_time() - busy) / seconds
        print(f"server, {watchers + 1} pages: {share:.1%} of a core, {peak():.0f} MB at most, ", end="")
        print(f"{received[0] / 1e6 / seconds / watchers:.2f} MB/s for each")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await browser.close()
    await server.aclose()


def peak() -> float:
    """Return the most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--watchers", type=int, default=50)
    given = parser.parse_args()
    asyncio.run(measure(given.nodes, given.rate, given.seconds, given.watchers))

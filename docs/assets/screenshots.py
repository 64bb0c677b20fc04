"""Makes the pictures of the dashboard in the docs: `python docs/assets/screenshots.py`. Needs Chromium."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Final

from playwright.async_api import Browser, ViewportSize, async_playwright

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from batchflow import Client  # noqa: E402
from batchflow.dashboard.server import serve  # noqa: E402
from tests.support.simulated_pool import SimulatedPool, SimulatedPools  # noqa: E402

TASK: Final = b"""def do_action(engine, args):
    book = {"DE0001": 99.2}
    print("book of", len(book), "bonds")
    return book[args[0]]
"""


async def picture(
    browser: Browser, address: str, name: str, *, dark: bool = False, task: bool = False
) -> None:
    """Write what the page shows after three seconds; `task`: with a failed task opened."""
    size: ViewportSize = {"width": 1280, "height": 760 if task else 1000}
    page = await browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
    await page.goto(address)
    await page.locator("#tasks-table .name").first.wait_for()
    await asyncio.sleep(3)
    if task:
        await page.locator("#failures-body .name").first.click()
        await page.get_by_text("Run it here").wait_for()
    await page.screenshot(path=HERE / name)
    await page.close()


async def main() -> None:
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        server, address = await serve(SimulatedPools(SimulatedPool(12, 4, 20.0)))
        await picture(browser, address, "dashboard.png")
        await picture(browser, address, "dashboard-dark.png", dark=True)
        await server.aclose()
        server, address = await serve(SimulatedPools(SimulatedPool(1000, 4, 100.0)))
        await picture(browser, address, "dashboard-thousand.png")
        await server.aclose()
        async with Client.local(nodes=2, slots=2) as client:
            pool = await client.ensure_pool("bonds", files={"price.py": TASK})
            async with pool.session("alice") as session:
                address = await client.dashboard()
                page = asyncio.create_task(picture(browser, address, "dashboard-task.png", task=True))
                await asyncio.sleep(2)
                tasks = await session.submit_many("price.py", [["DE0001"], ["FR0007"], ["DE0001"]] * 4)
                for task in tasks:
                    await task.outcome()
                await page
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())

"""Two clients work on one job at the same time, and each receives its own results only."""

import argparse
import asyncio
from pathlib import Path

from batchflow import Client, Pool

TASKS = Path(__file__).parent / "tasks"


async def work(pool: Pool, name: str) -> list[str]:
    """Submit three tasks as the client of that name and collect whatever comes to its mailbox."""
    async with pool.session(name, job="shared") as session:
        for i in range(3):
            await session.submit("whoami.py", name, i, task_id=str(i))
        return sorted([result.unwrap() async for result in session.results()])


async def main(config: str | None) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples", files=TASKS)
        first, second = await asyncio.gather(work(pool, "client_1"), work(pool, "client_2"))
    print("client_1 received:", *first, sep="\n  ")
    print("client_2 received:", *second, sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    asyncio.run(main(parser.parse_args().config))

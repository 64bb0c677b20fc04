"""Two clients with separate connections work on one job. Each receives its own results only."""

import argparse
import asyncio
from pathlib import Path

from batchflow import Client, Pool

TASKS = Path(__file__).parent / "tasks"


async def work(pool: Pool, name: str) -> list[str]:
    """Submit three tasks as the client `name` and return all results in its mailbox."""
    async with pool.session(name, job="shared") as session:
        for i in range(3):
            await session.submit("whoami.py", name, i, task_id=str(i))
        return sorted([result.unwrap() async for result in session.results()])


async def main(config: str | None) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as first:
        pool = await first.ensure_pool("examples", files=TASKS)
        async with Client(first.settings) as second:
            same_pool = await second.pool("examples")
            received = await asyncio.gather(work(pool, "client_1"), work(same_pool, "client_2"))
    for name, values in zip(("client_1", "client_2"), received, strict=True):
        print(f"{name} received:", *values, sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    asyncio.run(main(parser.parse_args().config))

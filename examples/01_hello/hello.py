"""The smallest program: one Python task, one result."""

import argparse
import asyncio
from pathlib import Path

from batchflow import Client

TASKS = Path(__file__).parent / "tasks"


async def main(config: str | None) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples", files=TASKS)
        async with pool.session() as session:
            print(await session.run("hello.py", "world"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    asyncio.run(main(parser.parse_args().config))

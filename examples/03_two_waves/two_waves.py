"""Python and Java tasks in one program, then a second wave of another kind in the same session.

Task ids are labels: the second wave uses the ids of the first again.
"""

import argparse
import asyncio
from pathlib import Path

from batchflow import Client, Session

FILES = [Path(__file__).parent / "tasks", Path(__file__).parents[1] / "02_pi" / "tasks" / "pi.jar"]


async def show(session: Session) -> None:
    """Print the results of all tasks that were submitted, each as it arrives."""
    async for result in session.results():
        print(f"task {result.task_id}  {result.command:9}  {result.unwrap()}")


async def main(config: str | None) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples", files=FILES)
        async with pool.session() as session:
            print("first wave")
            for i in range(3):
                await session.submit("square.py", f"{i} {i + 1}", task_id=str(i))
                await session.submit("pi.jar", "1000", task_id=str(i))
            await show(session)

            print("second wave")
            for i in range(4):
                await session.submit("shout.py", "this is an input param list", task_id=str(i))
            await show(session)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    asyncio.run(main(parser.parse_args().config))

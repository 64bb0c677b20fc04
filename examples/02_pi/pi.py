"""The value of pi from 10, 20, 40, 100 and 1,000 tasks, each of which runs a jar on 100 random points."""

import argparse
import asyncio
from pathlib import Path
from statistics import fmean

from batchflow import Client, Session

TASKS = Path(__file__).parent / "tasks"


async def estimate(session: Session, total: int) -> float:
    """Return the mean of the estimates that `total` tasks print."""
    for i in range(total):
        await session.submit("pi_runner.py", "java -Xmx64m -jar pi.jar 100", task_id=str(i))
    return fmean([float(result.unwrap()[0]) async for result in session.results()])


async def main(config: str | None, totals: list[int]) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples", files=TASKS)
        async with pool.session() as session:
            print("# tasks  value of pi")
            for total in totals:
                print(f"{total:7d}  {await estimate(session, total):.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 20, 40, 100, 1000], metavar="N")
    options = parser.parse_args()
    asyncio.run(main(options.config, options.tasks))

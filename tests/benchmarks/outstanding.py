"""Submits many tasks that nobody runs and prints what each costs its client: bytes of resident memory.

Usage: python outstanding.py NUMBER ...    each beside the ones before; a line of JSON at the end.
"""

import asyncio
import gc
import json
import os
import sys
from pathlib import Path

from batchflow import Client, Task

TASKS = Path(__file__).parent / "tasks"
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def main(numbers: list[int]) -> None:
    async with Client.local(nodes=1) as client:
        pool = await client.ensure_pool("outstanding", files=TASKS)
        async with pool.session("many") as session:
            async for result in session.map("noop.py", range(200)):  # so that it is known how long they take
                result.unwrap()
            await pool.resize(0)
            before = resident()
            tasks: list[Task] = []
            figures = []
            for number in numbers:
                while len(tasks) < number:
                    tasks += await session.submit_many("noop.py", range(min(10_000, number - len(tasks))))
                await session.flush()
                assert session.counts.queued == number
                figures.append((resident() - before) / number)
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main([int(argument) for argument in sys.argv[1:]]))

"""Submits many tasks that wait for one that does not run, and prints what each costs its client in bytes.

Usage: python dependents.py NUMBER    a line of JSON at the end: the bytes, and the seconds of the submits.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from batchflow import Client, Task
from batchflow.errors import TasksLeftWaiting
from tests.benchmarks.outstanding import resident

TASKS = Path(__file__).parent / "tasks"


async def main(number: int) -> None:
    async with Client.local(nodes=1) as client:
        pool = await client.ensure_pool("dependents", files=TASKS)
        async with pool.session() as session:
            async for result in session.map("noop.py", range(200)):  # what is loaded at the first is loaded
                result.unwrap()
            await pool.resize(0)
            first = await session.submit("noop.py", 0)
            before, started = resident(), time.perf_counter()
            tasks: list[Task] = []
            while len(tasks) < number:
                tasks += await session.submit_many("noop.py", [first] * min(10_000, number - len(tasks)))
            taken = time.perf_counter() - started
            assert session.counts.waiting == number
            print(json.dumps([(resident() - before) / number, taken]), flush=True)


if __name__ == "__main__":
    with suppress(TasksLeftWaiting):  # that is what they are for
        asyncio.run(main(int(sys.argv[1])))

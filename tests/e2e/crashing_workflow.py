"""A client for the tests to kill: submits a workflow and prints the label of each result as it is shown."""

import asyncio
import sys

from batchflow import Client


async def main(config: str, name: str) -> None:
    async with Client.from_config(config) as client:
        pool = await client.pool("shared")
        async with pool.session(name, job="crash") as session:
            first = [await session.submit("adds.py", args=[n], task_id=f"a{n}") for n in range(24)]
            pairs = [
                await session.submit("adds.py", args=first[n : n + 2], task_id=f"b{n}")
                for n in range(0, 24, 2)
            ]
            total = await session.submit("adds.py", args=pairs, task_id="sum")
            left = [await session.submit("leaves_files.py", str(n), "", task_id=f"f{n}") for n in range(2)]
            files = [task.file(f"{n}.txt") for n, task in enumerate(left)]
            await session.submit("reads_files.py", *files, task_id="read", after=total)
            await session.flush()
            async for result in session.results():
                print(result.task_id, flush=True)  # noqa: T201


asyncio.run(main(sys.argv[1], sys.argv[2]))

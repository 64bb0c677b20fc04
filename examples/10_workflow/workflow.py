"""A workflow: count the words of a hundred files, merge the counts in pairs as they come, reduce the pairs.

A task is an argument of the task that takes its value. Nothing else is needed. The sum becomes a file, which
is an argument of the task that reads it.
"""

import argparse
import asyncio
from pathlib import Path

from batchflow import Client, Task

WORDS = ["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"]
TEXTS = {f"part-{n:03}.txt": " ".join(WORDS[: n % len(WORDS) + 1]).encode() for n in range(100)}
TASKS = Path(__file__).parent / "tasks"
FILES = TEXTS | {path.name: path for path in TASKS.glob("*.py")}


async def main(config: str | None) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples", files=FILES)
        async with pool.session() as session:
            counts = {name: await session.submit("count.py", name, task_id=name) for name in TEXTS}

            pairs: list[Task] = []
            counted: list[Task] = []
            async for result in session.results():
                if result.command == "count.py":
                    counted.append(counts[result.task_id])
                if len(counted) == 2:
                    pairs.append(await session.submit("merge.py", *counted))
                    counted.clear()

            total = await session.submit("merge.py", *pairs)
            words = await total
            print(f"{len(TEXTS)} files, {len(pairs)} pairs, {sum(words.values())} words")

            table = await session.submit("table.py", total)
            for word, count in await session.run("top.py", table.file("words.csv"), 3):
                print(f"{count:>4} {word}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    asyncio.run(main(parser.parse_args().config))

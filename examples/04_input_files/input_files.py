"""Input files travel with the tasks. Each task finds them by name in its current directory."""

import argparse
import asyncio
from pathlib import Path

from batchflow import Client

HERE = Path(__file__).parent


async def main(config: str | None) -> None:
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples", files=[HERE / "tasks", HERE / "inputs"])
        names = sorted(path.name for path in (HERE / "inputs").iterdir())
        async with pool.session() as session:
            async for result in session.map("count_words.py", names, ordered=True):
                count = result.unwrap()
                print(f"{names[result.index]}: {count['lines']} lines, {count['words']} words")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    asyncio.run(main(parser.parse_args().config))

"""saq on Redis: two workers with a concurrency of one; results are polled for as often as pays."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import work
from protocol import WORKERS, serve
from saq import Queue
from workers import Workers

POLL_ALONE = 0.001
POLL_MANY = 0.05
POLL_LAST = 0.2
CHUNK = 200


def function(task: Callable[[Any], Any]) -> Any:
    async def call(ctx: dict[str, Any], *, argument: Any) -> Any:
        return task(argument)

    call.__qualname__ = call.__name__ = task.__name__
    return call


queue = Queue.from_url(os.environ["REDIS_URL"])
settings = {"queue": queue, "functions": [function(task) for task in work.TASKS.values()], "concurrency": 1}


class Saq:
    def __init__(self) -> None:
        self._workers = Workers()

    async def open(self) -> None:
        for _ in range(WORKERS):
            await self._workers.start("saq", "on_saq.settings")
        await queue.connect()
        while len((await queue.info())["workers"]) < WORKERS:  # noqa: ASYNC110 - one that starts later
            await asyncio.sleep(POLL_ALONE)  # sweeps the first jobs away

    async def close(self) -> None:
        await queue.disconnect()
        await self._workers.close()

    async def submit(self, task: str, argument: Any) -> Any:
        job = await queue.enqueue(task, argument=argument)
        return job.key

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        values: list[Any] = []
        while len(values) < len(handles):
            jobs = await queue.jobs(handles[len(values) : len(values) + CHUNK])
            done = 0
            while done < len(jobs) and jobs[done].status == "complete":
                values.append(jobs[done].result)
                done += 1
            if done < len(jobs):
                await asyncio.sleep(POLL_LAST)
        return values

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return await queue.map(
            task, [{"argument": argument} for argument in arguments], poll_interval=POLL_MANY
        )

    async def run(self, task: str, argument: Any) -> Any:
        return await queue.apply(task, argument=argument, poll_interval=POLL_ALONE)


if __name__ == "__main__":
    serve(Saq())

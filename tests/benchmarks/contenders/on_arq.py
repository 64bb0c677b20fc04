"""arq on Redis: two workers of one job at a time; polls every millisecond where its default is 0.5 s."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import work
from arq import create_pool, func
from arq.connections import RedisSettings
from protocol import WORKERS, serve
from workers import Workers

POLL = 0.001
SILENT = {"version": 1}
REDIS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


def function(task: Callable[[Any], Any]) -> Any:
    async def call(ctx: dict[str, Any], argument: Any) -> Any:
        return task(argument)

    return func(call, name=task.__name__)


class WorkerSettings:
    functions = tuple(function(task) for task in work.TASKS.values())
    redis_settings = REDIS
    max_jobs = 1
    poll_delay = POLL


class Arq:
    def __init__(self) -> None:
        self._workers = Workers()

    async def open(self) -> None:
        for _ in range(WORKERS):
            await self._workers.start("arq", "--custom-log-dict=on_arq.SILENT", "on_arq.WorkerSettings")
        self._redis = await create_pool(REDIS)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._workers.close()

    async def submit(self, task: str, argument: Any) -> Any:
        return await self._redis.enqueue_job(task, argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [await handle.result(poll_delay=POLL) for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return await self.gather([await self.submit(task, argument) for argument in arguments])

    async def run(self, task: str, argument: Any) -> Any:
        return await (await self.submit(task, argument)).result(poll_delay=POLL)


if __name__ == "__main__":
    serve(Arq())

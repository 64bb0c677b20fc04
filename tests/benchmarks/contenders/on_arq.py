"""arq on Redis: two workers of one job at a time; polls every millisecond where its default is 0.5 s."""

import os

import work
from arq import create_pool, func
from arq.connections import RedisSettings
from protocol import WORKERS, serve
from workers import Workers

POLL = 0.001
SILENT = {"version": 1}
REDIS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


def function(task):
    async def call(ctx, argument):
        return task(argument)

    return func(call, name=task.__name__)


class WorkerSettings:
    functions = tuple(function(task) for task in work.TASKS.values())
    redis_settings = REDIS
    max_jobs = 1
    poll_delay = POLL


class Arq:
    def __init__(self):
        self._workers = Workers()

    async def open(self):
        for _ in range(WORKERS):
            await self._workers.start("arq", "--custom-log-dict=on_arq.SILENT", "on_arq.WorkerSettings")
        self._redis = await create_pool(REDIS)

    async def close(self):
        await self._redis.aclose()
        await self._workers.close()

    async def submit(self, task, argument):
        return await self._redis.enqueue_job(task, argument)

    async def gather(self, handles):
        return [await handle.result(poll_delay=POLL) for handle in handles]

    async def map(self, task, arguments):
        return await self.gather([await self.submit(task, argument) for argument in arguments])

    async def run(self, task, argument):
        return await (await self.submit(task, argument)).result(poll_delay=POLL)


if __name__ == "__main__":
    serve(Arq())

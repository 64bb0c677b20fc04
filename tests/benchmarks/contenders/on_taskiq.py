"""taskiq with a list of Redis (a task is lost with its worker), two workers of one task at a time."""

import os

import work
from protocol import WORKERS, serve
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from workers import Workers

POLL = 0.001

broker = ListQueueBroker(os.environ["REDIS_URL"]).with_result_backend(
    RedisAsyncResultBackend(os.environ["REDIS_URL"], keep_results=False)
)


def function(task):
    async def call(argument):
        return task(argument)

    return broker.register_task(call, task_name=task.__name__)


FUNCTIONS = {name: function(task) for name, task in work.TASKS.items()}


class Taskiq:
    def __init__(self):
        self._workers = Workers()

    async def open(self):
        for _ in range(WORKERS):
            await self._workers.start(
                *("taskiq", "worker", "on_taskiq:broker", "--workers=1", "--max-async-tasks=1"),
                "--log-level=ERROR",
            )
        await broker.startup()

    async def close(self):
        await broker.shutdown()
        await self._workers.close()

    async def submit(self, task, argument):
        return await FUNCTIONS[task].kiq(argument)

    async def gather(self, handles):
        return [(await handle.wait_result(check_interval=POLL)).return_value for handle in handles]

    async def map(self, task, arguments):
        return await self.gather([await FUNCTIONS[task].kiq(argument) for argument in arguments])

    async def run(self, task, argument):
        handle = await FUNCTIONS[task].kiq(argument)
        return (await handle.wait_result(check_interval=POLL)).return_value


if __name__ == "__main__":
    serve(Taskiq())

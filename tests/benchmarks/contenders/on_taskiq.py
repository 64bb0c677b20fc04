"""taskiq with a list of Redis (a task is lost with its worker), two workers of one task at a time."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import work
from protocol import WORKERS, serve
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from workers import Workers

POLL = 0.001

broker = ListQueueBroker(os.environ["REDIS_URL"]).with_result_backend(
    RedisAsyncResultBackend(os.environ["REDIS_URL"], keep_results=False)
)


def function(task: Callable[[Any], Any]) -> Any:
    async def call(argument: Any) -> Any:
        return task(argument)

    return broker.register_task(call, task_name=task.__name__)


FUNCTIONS = {name: function(task) for name, task in work.TASKS.items()}


class Taskiq:
    def __init__(self) -> None:
        self._workers = Workers()

    async def open(self) -> None:
        for _ in range(WORKERS):
            await self._workers.start(
                *("taskiq", "worker", "on_taskiq:broker", "--workers=1", "--max-async-tasks=1"),
                "--log-level=ERROR",
            )
        await broker.startup()

    async def close(self) -> None:
        await broker.shutdown()
        await self._workers.close()

    async def submit(self, task: str, argument: Any) -> Any:
        return await FUNCTIONS[task].kiq(argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [(await handle.wait_result(check_interval=POLL)).return_value for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return await self.gather([await FUNCTIONS[task].kiq(argument) for argument in arguments])

    async def run(self, task: str, argument: Any) -> Any:
        handle = await FUNCTIONS[task].kiq(argument)
        return (await handle.wait_result(check_interval=POLL)).return_value


if __name__ == "__main__":
    serve(Taskiq())

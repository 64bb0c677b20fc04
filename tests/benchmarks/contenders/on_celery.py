"""Celery on Redis or RabbitMQ: two prefork workers with a concurrency of one, acks late, JSON."""

import os
from collections.abc import Sequence
from typing import Any

import work
from celery import Celery, group
from protocol import WORKERS, serve
from workers import Workers

app = Celery("on_celery", broker=os.environ["CELERY_BROKER"], backend=os.environ["CELERY_BACKEND"])
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
FUNCTIONS = {name: app.task(name=name)(function) for name, function in work.TASKS.items()}


class OnCelery:
    def __init__(self) -> None:
        self._workers = Workers()

    async def open(self) -> None:
        for index in range(WORKERS):
            await self._workers.start(
                *("celery", "--quiet", "--app=on_celery", "worker"),
                *("--concurrency=1", f"--hostname=worker{index}@%h", "--loglevel=ERROR"),
            )

    async def close(self) -> None:
        app.close()
        await self._workers.close()

    async def submit(self, task: str, argument: Any) -> Any:
        return FUNCTIONS[task].delay(argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get() for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return group(map(FUNCTIONS[task].s, arguments)).apply_async().join_native()

    async def run(self, task: str, argument: Any) -> Any:
        return FUNCTIONS[task].delay(argument).get()


if __name__ == "__main__":
    serve(OnCelery())

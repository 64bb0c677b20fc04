"""Parsl with the HighThroughputExecutor: one block on this machine, two workers."""

import asyncio
import tempfile
from collections.abc import Sequence
from typing import Any

import parsl
import work
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from protocol import WORKERS, serve


class Parsl:
    async def open(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        executor = HighThroughputExecutor(
            address="127.0.0.1",
            max_workers_per_node=WORKERS,
            cores_per_worker=1,
            encrypted=False,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        config = Config(executors=[executor], run_dir=self._folder.name, usage_tracking=0)
        parsl.load(config)
        self._apps = {name: parsl.python_app(function) for name, function in work.TASKS.items()}

    async def close(self) -> None:
        parsl.dfk().cleanup()
        parsl.clear()
        self._folder.cleanup()

    async def submit(self, task: str, argument: Any) -> Any:
        return self._apps[task](argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result() for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return [handle.result() for handle in [self._apps[task](argument) for argument in arguments]]

    async def run(self, task: str, argument: Any) -> Any:
        return await asyncio.wrap_future(self._apps[task](argument))


if __name__ == "__main__":
    serve(Parsl())

"""`concurrent.futures.ProcessPoolExecutor`: no broker, no other machine; what is possible on this one."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from protocol import WORKERS, serve
from work import TASKS


class Executor:
    async def open(self) -> None:
        self._pool = ProcessPoolExecutor(WORKERS)

    async def close(self) -> None:
        self._pool.shutdown()

    async def submit(self, task: str, argument: Any) -> Any:
        return self._pool.submit(TASKS[task], argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result() for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return list(self._pool.map(TASKS[task], arguments))

    async def run(self, task: str, argument: Any) -> Any:
        return await asyncio.wrap_future(self._pool.submit(TASKS[task], argument))


if __name__ == "__main__":
    serve(Executor())

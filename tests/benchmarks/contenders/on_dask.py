"""Dask distributed: a `LocalCluster` of two worker processes of one thread, every call a task of its own."""

from collections.abc import Sequence
from typing import Any

import work
from distributed import Client, LocalCluster
from protocol import WORKERS, serve


class Dask:
    async def open(self) -> None:
        self._cluster = await LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, asynchronous=True
        )
        self._client = await Client(self._cluster, asynchronous=True)

    async def close(self) -> None:
        await self._client.close()
        await self._cluster.close()

    async def submit(self, task: str, argument: Any) -> Any:
        return self._client.submit(work.TASKS[task], argument, pure=False)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return await self._client.gather(handles)

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return await self._client.gather(self._client.map(work.TASKS[task], arguments, pure=False))

    async def run(self, task: str, argument: Any) -> Any:
        return await self._client.submit(work.TASKS[task], argument, pure=False)

    async def join(self, parts: Sequence[Any]) -> Any:
        return self._client.submit(work.join, list(parts), pure=False)


if __name__ == "__main__":
    serve(Dask())

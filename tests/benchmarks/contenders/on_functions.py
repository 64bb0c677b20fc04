"""batchflow with functions in place of files, on its local cloud."""

from collections.abc import Sequence
from typing import Any

import work
from protocol import WORKERS, serve

from batchflow import Client


class Functions:
    async def open(self) -> None:
        self._client = await Client.local(nodes=WORKERS)
        pool = await self._client.ensure_pool("bench")
        self._session = await pool.session()

    async def close(self) -> None:
        await self._client.aclose()

    async def submit(self, task: str, argument: Any) -> Any:
        return await self._session.submit(work.TASKS[task], args=[argument])

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [await handle for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return [result.unwrap() async for result in self._session.map(work.TASKS[task], arguments)]

    async def run(self, task: str, argument: Any) -> Any:
        return await self._session.run(work.TASKS[task], args=[argument])


if __name__ == "__main__":
    serve(Functions())

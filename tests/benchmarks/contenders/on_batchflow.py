"""batchflow on its local cloud, through the unmodified Azure SDKs, in one message queue of Service Bus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import WORKERS, serve

from batchflow import Client

HERE = Path(__file__).parent
FILES = [HERE / "work.py", HERE.parent / "tasks"]


class Batchflow:
    async def open(self) -> None:
        self._client = await Client.local(nodes=WORKERS)
        pool = await self._client.ensure_pool("bench", files=FILES)
        self._session = await pool.session()

    async def close(self) -> None:
        await self._client.aclose()

    async def submit(self, task: str, argument: Any) -> Any:
        return await self._session.submit(f"{task}.py", args=[argument])

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [await handle for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return [result.unwrap() async for result in self._session.map(f"{task}.py", arguments)]

    async def run(self, task: str, argument: Any) -> Any:
        return await self._session.run(f"{task}.py", args=[argument])

    async def join(self, parts: Sequence[Any]) -> Any:
        return await self._session.submit("join.py", args=[list(parts)])


if __name__ == "__main__":
    serve(Batchflow())

"""Dask distributed: a `LocalCluster` of two worker processes of one thread, every call a task of its own."""

import work
from distributed import Client, LocalCluster
from protocol import WORKERS, serve


class Dask:
    async def open(self):
        self._cluster = await LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, asynchronous=True
        )
        self._client = await Client(self._cluster, asynchronous=True)

    async def close(self):
        await self._client.close()
        await self._cluster.close()

    async def submit(self, task, argument):
        return self._client.submit(work.TASKS[task], argument, pure=False)

    async def gather(self, handles):
        return await self._client.gather(handles)

    async def map(self, task, arguments):
        return await self._client.gather(self._client.map(work.TASKS[task], arguments, pure=False))

    async def run(self, task, argument):
        return await self._client.submit(work.TASKS[task], argument, pure=False)


if __name__ == "__main__":
    serve(Dask())

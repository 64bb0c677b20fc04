"""`concurrent.futures.ProcessPoolExecutor`: no broker, no other machine; what is possible on this one."""

import asyncio
from concurrent.futures import ProcessPoolExecutor

from protocol import WORKERS, serve
from work import TASKS


class Executor:
    async def open(self):
        self._pool = ProcessPoolExecutor(WORKERS)

    async def close(self):
        self._pool.shutdown()

    async def submit(self, task, argument):
        return self._pool.submit(TASKS[task], argument)

    async def gather(self, handles):
        return [handle.result() for handle in handles]

    async def map(self, task, arguments):
        return list(self._pool.map(TASKS[task], arguments))

    async def run(self, task, argument):
        return await asyncio.wrap_future(self._pool.submit(TASKS[task], argument))


if __name__ == "__main__":
    serve(Executor())

"""ipyparallel: a local cluster of two engines behind a load-balanced view."""

from collections.abc import Sequence
from typing import Any

import ipyparallel
import work
from protocol import WORKERS, serve


class Ipyparallel:
    async def open(self) -> None:
        self._cluster = ipyparallel.Cluster(n=WORKERS, log_level=40)
        self._client = self._cluster.start_and_connect_sync(activate=False)
        self._view = self._client.load_balanced_view()

    async def close(self) -> None:
        self._client.close()
        self._cluster.stop_cluster_sync()

    async def submit(self, task: str, argument: Any) -> Any:
        return self._view.apply_async(work.TASKS[task], argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get() for handle in handles]

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        return self._view.map_async(work.TASKS[task], list(arguments), chunksize=1, ordered=False).get()

    async def run(self, task: str, argument: Any) -> Any:
        return self._view.apply_sync(work.TASKS[task], argument)


if __name__ == "__main__":
    serve(Ipyparallel())

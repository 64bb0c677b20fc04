"""ipyparallel: a local cluster of two engines behind a load-balanced view."""

import ipyparallel
import work
from protocol import WORKERS, serve


class Ipyparallel:
    async def open(self):
        self._cluster = ipyparallel.Cluster(n=WORKERS, log_level=40)
        self._client = self._cluster.start_and_connect_sync(activate=False)
        self._view = self._client.load_balanced_view()

    async def close(self):
        self._client.close()
        self._cluster.stop_cluster_sync()

    async def submit(self, task, argument):
        return self._view.apply_async(work.TASKS[task], argument)

    async def gather(self, handles):
        return [handle.get() for handle in handles]

    async def map(self, task, arguments):
        return self._view.map_async(work.TASKS[task], list(arguments), chunksize=1, ordered=False).get()

    async def run(self, task, argument):
        return self._view.apply_sync(work.TASKS[task], argument)


if __name__ == "__main__":
    serve(Ipyparallel())

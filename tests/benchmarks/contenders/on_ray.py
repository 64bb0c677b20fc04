"""Ray: a local cluster with two processors, every call a remote function."""

from collections.abc import Sequence
from typing import Any

import ray
import work
from protocol import WORKERS, serve


class Ray:
    async def open(self) -> None:
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        self._functions = {name: ray.remote(function) for name, function in work.TASKS.items()}
        self._join = ray.remote(work.join)

    async def close(self) -> None:
        ray.shutdown()

    async def submit(self, task: str, argument: Any) -> Any:
        return self._functions[task].remote(argument)

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        return ray.get(list(handles))

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        function = self._functions[task]
        return ray.get([function.remote(argument) for argument in arguments])

    async def run(self, task: str, argument: Any) -> Any:
        return ray.get(self._functions[task].remote(argument))

    async def join(self, parts: Sequence[Any]) -> Any:
        return self._join.remote(*parts)


if __name__ == "__main__":
    serve(Ray())

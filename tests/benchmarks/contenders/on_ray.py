"""Ray: a local cluster with two processors, every call a remote function."""

import ray
import work
from protocol import WORKERS, serve


class Ray:
    async def open(self):
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        self._functions = {name: ray.remote(function) for name, function in work.TASKS.items()}

    async def close(self):
        ray.shutdown()

    async def submit(self, task, argument):
        return self._functions[task].remote(argument)

    async def gather(self, handles):
        return ray.get(list(handles))

    async def map(self, task, arguments):
        function = self._functions[task]
        return ray.get([function.remote(argument) for argument in arguments])

    async def run(self, task, argument):
        return ray.get(self._functions[task].remote(argument))


if __name__ == "__main__":
    serve(Ray())

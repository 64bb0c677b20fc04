"""The worker processes of a contender that does not start them itself."""

import asyncio
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXIT_SECONDS = 5.0


class Workers:
    """Programs of this Python's environment, started at once and ended by a signal, at last by SIGKILL."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, *module_and_arguments: str) -> None:
        """`python -m` this, in the folder of the contenders."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module_and_arguments),
            cwd=HERE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        self._processes.append(process)

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*map(_end, self._processes))


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

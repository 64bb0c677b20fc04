"""One program, run to its end by the agent: jars and executables as tasks, and what a child asks for."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from batchflow.support import linux
from batchflow.support.frozen import frozen
from node_agent.child.runner import NICENESS, OUTPUT_LIMIT, reply
from node_agent.execution.capture import Pipe
from node_agent.system import process_groups
from node_agent.system.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


@frozen
class ProgramEnded:
    """How a program ended, and what it printed."""

    exit_code: int
    """Negative: the number of the signal."""
    stdout: Tail
    stderr: Tail
    pid: int
    """What its process was."""

    def reply(self) -> dict[str, Any]:
        """Return this as the worker gets it."""
        return reply(self.exit_code, self.stdout, self.stderr)


class Program:
    """A program in a session of its own."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        on_output: Callable[[str, bytes], None] | None = None,
        most_processes: int | None = None,
    ) -> None:
        """`on_output` gets what is printed as it comes: ("stdout" or "stderr", bytes). `most_processes`: see
        `processes.spawn`."""
        self._argv = argv
        self._cwd = cwd
        self._env = env
        self._on_output = on_output
        self._most_processes = most_processes
        self._process: asyncio.subprocess.Process | None = None
        self._kill_at_start = False

    @property
    def pid(self) -> int | None:
        """None before it started and after it was waited for."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    def kill_when_started(self) -> None:
        """Kill it as soon as it has started, if it has not yet."""
        self._kill_at_start = True

    async def run(self) -> ProgramEnded:
        """Start it and wait for it. Raises OSError when it does not start.

        Not to be cancelled: kill the process instead.
        """
        stdout, stderr = Tail(OUTPUT_LIMIT), Tail(OUTPUT_LIMIT)
        pipes = [self._pipe("stdout", stdout), self._pipe("stderr", stderr)]
        try:
            self._process = await process_groups.spawn(
                self._argv,
                cwd=self._cwd,
                env=self._env,
                stdout=pipes[0].writer,
                stderr=pipes[1].writer,
                niceness=NICENESS,
                most_processes=self._most_processes,
            )
            if self._kill_at_start:
                linux.signal_all([self._process.pid], signal.SIGKILL)
            for pipe in pipes:
                pipe.close_writer()
            exit_code = await self._process.wait()
            for pipe in pipes:
                pipe.drain()
        finally:
            for pipe in pipes:
                pipe.close()
        return ProgramEnded(exit_code, stdout, stderr, self._process.pid)

    def _pipe(self, name: str, tail: Tail) -> Pipe:
        on_output = self._on_output
        if on_output is None:
            return Pipe(tail.add)

        def sink(data: bytes) -> None:
            tail.add(data)
            on_output(name, data)

        return Pipe(sink)

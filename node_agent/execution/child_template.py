"""The agent's end of the template of its Python children (see `node_agent.child.template`)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from node_agent.execution.capture import Pipe
from node_agent.system import process_groups
from node_agent.system.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

_PACKAGES: Final = str(Path(__file__).resolve().parents[2])
_ERRORS: Final = 4096
"""Bytes of the template's stderr that are kept."""
_END_BOUND: Final = 1.0
"""Seconds to wait until a template whose line is closed has ended."""
_TRIES: Final = 2
"""Of a request, because the template may have ended unnoticed."""


class ChildTemplate:
    """One template for all slots of an agent. The first request starts it, also after its end."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """`env`: the environment of tasks."""
        self._path = env.get("PYTHONPATH")
        self._env = dict(env)
        self._env["PYTHONPATH"] = _PACKAGES if self._path is None else _PACKAGES + os.pathsep + self._path
        self._env[process_groups.MARK] = "-" * process_groups.MARK_LENGTH
        self._lock = asyncio.Lock()
        self._line: socket.socket | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._errors = Tail(_ERRORS)
        self._users = 0

    def join(self) -> None:
        """Count a slot that uses it."""
        self._users += 1

    async def leave(self) -> None:
        """Count a slot no longer, and end the template with the last one. Its children are not affected."""
        self._users -= 1
        if not self._users:
            self._hang_up()
            await self._ended()

    async def last_words(self) -> str:
        """Return what the template wrote before it ended; nothing while it works. Safe to cancel."""
        if self._line is not None:
            await self._ended()
        return self._errors.text()

    def changes(self, env: Mapping[str, str]) -> dict[str, str | None]:
        """Return what a child has to change in its environment to have this one; None: remove the name."""
        changed: dict[str, str | None] = {
            name: value for name, value in env.items() if self._env.get(name) != value
        }
        removed = self._env.keys() - env.keys() - {process_groups.MARK}
        return changed | dict.fromkeys(removed)

    async def fork(self, mark: str, descriptors: Sequence[int], most_processes: int | None = None) -> None:
        """Ask for a child that takes over copies of these descriptors; see `node_agent.child.template`.

        Raises OSError when the template cannot be started. A child that cannot be forked closes its
        descriptors.
        """
        request = {"variable": process_groups.MARK, "mark": mark, "most_processes": most_processes}
        for _ in range(_TRIES):
            async with self._lock:
                if self._line is None:
                    self._line = await self._start()
            try:
                socket.send_fds(self._line, [orjson.dumps(request)], list(descriptors))
            except (BrokenPipeError, ConnectionResetError):
                self._hang_up()
            else:
                return
        said = await self.last_words()
        raise ChildProcessError(f"the template of the Python children ends as soon as it is started: {said}")

    async def _start(self) -> socket.socket:
        if not self._users:
            raise ChildProcessError("the agent's slots are being closed")
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.setblocking(False)
        self._errors = errors = Tail(_ERRORS)
        pipe = Pipe(errors.add)
        try:
            with theirs:
                process = await process_groups.spawn(
                    (sys.executable, "-P", "-m", "node_agent.child", str(theirs.fileno())),
                    cwd=Path("/"),
                    env=self._env,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=pipe.writer,
                    pass_fds=(theirs.fileno(),),
                )
        except BaseException:
            line.close()
            pipe.close()
            raise
        pipe.close_writer()
        self._watcher = asyncio.create_task(
            self._watch(process, line, pipe, errors), name="wait for the children's template"
        )
        return line

    async def _watch(
        self, process: asyncio.subprocess.Process, line: socket.socket, pipe: Pipe, errors: Tail
    ) -> None:
        try:
            exit_code = await process.wait()
            pipe.drain()
        finally:
            pipe.close()
            line.close()
        if self._line is line:
            self._line = None
            logger.warning("child_template_ended", extra={"exit_code": exit_code, "stderr": errors.text()})

    async def _ended(self) -> None:
        """Wait a moment until the template has ended."""
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=_END_BOUND)

    def _hang_up(self) -> None:
        """Close the line, so that the template ends."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

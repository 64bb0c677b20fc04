"""The processes of a slot: its warm children and the programs that its task runs; finding and ending them.

Tasks of different keys, which are sessions, never run in one child. The child of the tasks that run is the
current one. Those of other keys are kept, and stand still meanwhile. One more has run no task yet: it is
there for the next key. It is forked as soon as the last such child is taken, and a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow.support import linux
from node_agent.child import frames, java
from node_agent.child.runner import start_failure
from node_agent.execution.program import Program, ProgramEnded
from node_agent.execution.python_worker import PythonWorker, WorkerSettings
from node_agent.execution.warm_workers import Key, WarmWorkers
from node_agent.system import process_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from node_agent.execution.child_template import ChildTemplate

logger = logging.getLogger(__name__)

NOTICE: Final = 0.25
"""Seconds between `engine.cancelled` and SIGTERM, at most half of the grace."""
_START_TRIES: Final = 3
_START_BOUND: Final = 60.0
"""Seconds that a child may take to be ready."""
_REFILL: Final = 0.02
"""Seconds after a child got its first key until the next one is forked, beside the task that it runs."""
_LEAST_MEMORY: Final = 4 * 1024**2
"""Bytes that a child counts at least: its own pages and the kernel's, such as page tables and pipes."""


class SlotProcesses:
    """See the module."""

    def __init__(
        self, template: ChildTemplate, settings: WorkerSettings, warm: WarmWorkers[PythonWorker]
    ) -> None:
        """`template`: what children are forked from; `warm`: keeps the children of other keys."""
        self.child: PythonWorker | None = None
        """The current one."""
        self.on_output: Callable[[str, bytes], None] | None = None
        """Gets what the programs of `java_runner` print, as it comes."""
        self.on_note: Callable[[dict[str, Any]], None] | None = None
        """Gets what the task reports, as it comes."""
        self.cwd = settings.cwd
        """Where the programs of `java_runner` run."""
        self.variables: Mapping[str, str] = {}
        """The environment variables of the task that runs."""
        self._template = template
        self._settings = settings
        self._key: Key | None = None
        """Of the current child; None while it has run no task."""
        self._warm = warm
        self._refill: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._marks = 0
        self._starting: asyncio.Task[PythonWorker] | None = None
        self._closed = False
        self._programs: dict[str, Program] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def prewarm(self, *, successor: bool = False) -> None:
        """Begin to start a child, when there is none; `successor`: also when there is one that is soon to be
        replaced."""
        if (self.child is None or successor) and self._starting is None and not self._closed:
            self._starting = asyncio.create_task(self._start(), name="start a Python child")

    async def ready(self) -> None:
        """Wait until there is a child. Raises OSError when none can be started. Safe to cancel."""
        await self._have_child()

    async def worker(self, key: Key) -> PythonWorker:
        """Return the worker for tasks of a key, ready to take tasks.

        Raises OSError when none can be started. Safe to cancel.
        """
        if self.child is not None and not self.child.alive:
            await self.kill()
        if self._key != key:
            if self._key is not None:
                self._set_aside()
            self._take_back(key)
        child = await self._have_child()
        if self._key is None:
            self._key = key
            self._refill_soon()
        return child

    def _set_aside(self) -> None:
        """Keep the current child for later tasks of its key."""
        child, key = self.child, self._key
        self.child = self._key = None
        if child is None or key is None:
            return
        child.freeze()
        memory = max(0, process_groups.private(child.pid) - child.private_at_start) + _LEAST_MEMORY
        for gone in self._warm.keep(key, child, memory):
            self._end(gone)

    def _take_back(self, key: Key) -> None:
        """Make the child that was kept for a key the current one, if there is one."""
        found = self._warm.take(key)
        if found is None:
            return
        if not found.alive:
            self._end(found)
            return
        if self.child is not None:  # it has run nothing, and is not needed
            self._end(self.child)
        found.thaw()
        self.child, self._key = found, key

    def _end(self, child: PythonWorker) -> None:
        """End a child that runs nothing."""
        child.kill()
        ending = asyncio.create_task(child.close(), name="end a Python child")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _refill_soon(self) -> None:
        if self._refill is None:
            loop = asyncio.get_running_loop()
            self._refill = loop.call_later(_REFILL, self._fill)

    def _fill(self) -> None:
        self._refill = None
        self.prewarm(successor=True)

    async def _have_child(self) -> PythonWorker:
        tries = 0
        while self.child is None:
            self.prewarm()
            if (starting := self._starting) is None:
                raise ChildProcessError("the slot is being closed")
            await asyncio.wait([starting])
            if self._starting is starting:
                self._starting = None
                tries += 1
                self._take_on(starting, tries == _START_TRIES)
        return self.child

    def _take_on(self, starting: asyncio.Task[PythonWorker], last_try: bool) -> None:
        try:
            self.child, self._key = starting.result(), None
        except OSError as error:
            logger.warning("child_did_not_start", extra={"error": str(error)})
            if last_try:
                raise

    async def run(
        self, argv: Sequence[str], cwd: Path, on_output: Callable[[str, bytes], None] | None = None
    ) -> ProgramEnded:
        """Run a program; what it leaves behind is killed. Raises OSError when it does not start.

        Not to be cancelled: `kill` ends it.
        """
        mark = self._new_mark()
        env = {**self.env_with(self.variables), process_groups.MARK: mark}
        most = self._settings.most_processes
        program = self._programs[mark] = Program(
            argv, cwd=cwd, env=env, on_output=on_output, most_processes=most
        )
        try:
            ended = await program.run()
            if process_groups.left_behind(ended.pid, mark):
                await process_groups.kill(lambda: process_groups.left_behind(ended.pid, mark))
        finally:
            del self._programs[mark]
        return ended

    def env_with(self, variables: Mapping[str, str]) -> Mapping[str, str]:
        """Return the environment of the programs of a task with these variables."""
        return {**self._settings.env, **variables} if variables else self._settings.env

    def roots(self) -> set[int]:
        """Return the processes that were started here and live."""
        pids = {program.pid for program in self._programs.values()}
        if self.child is not None and self.child.alive:
            pids.add(self.child.pid)
        return {pid for pid in pids if pid is not None}

    def family(self) -> set[int]:
        """Return all processes of the task, the worker included."""
        sessions, marks = self._signs()
        return process_groups.family(process_groups.table(min(sessions, default=0)), sessions, marks)

    def population(self, entries: Mapping[int, linux.ProcessStat]) -> int:
        """Count these processes and threads, by that table."""
        return process_groups.population(entries, *self._signs())

    def _signs(self) -> tuple[set[int], set[str]]:
        """Return the sessions and the marks by which they are known."""
        marks = set(self._programs)
        sessions = self.roots()
        if self.child is not None:
            marks.add(self.child.mark)
            sessions.add(self.child.pid)
        return sessions, marks

    async def stop(self, ended: asyncio.Future[Any], grace: float, notify: PythonWorker | None) -> None:
        """Tell the task to end; `ended` is done when it has. Kills what is left after `grace` seconds.

        `notify`: the child that the task runs in, which is told first.
        """
        if notify is not None:
            notice = min(NOTICE, grace / 2)
            grace -= notice
            notify.send(frames.encode(frames.CANCEL))
            await asyncio.wait([ended], timeout=notice)
        if not ended.done():
            linux.signal_all(self.family(), signal.SIGTERM)
            await asyncio.wait([ended], timeout=grace)
        await self.kill()

    async def kill(self) -> None:
        """Kill all processes, the child included."""
        self.freeze()
        self._kill_starting_programs()
        roots = self.roots()
        await process_groups.kill(self.family, roots)
        await self._await_calls()
        if (child := self.child) is not None:
            await child.close()
            if self.child is child:
                self.child = self._key = None

    def freeze(self) -> None:
        """Stop everything that has not left the groups of its roots, until `kill` or `thaw`."""
        process_groups.signal_groups(self.roots(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        process_groups.signal_groups(self.roots(), signal.SIGCONT)

    async def sweep(self) -> None:
        """Kill all processes but the child."""
        self._kill_starting_programs()
        assert self.child is not None
        keep = {self.child.pid}
        await process_groups.kill(lambda: self.family() - keep, self.roots())
        await self._await_calls()

    async def aclose(self) -> None:
        """Kill everything, for good. May be called while a task runs, which then ends."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        for child in self._warm.take_all():
            self._end(child)
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        await self.kill()
        if starting is not None and not starting.cancelled() and starting.exception() is None:
            self.child = starting.result()
            await self.kill()
        if self._ending:
            await asyncio.wait(self._ending, timeout=process_groups.DEATH_BOUND)

    def _new_mark(self) -> str:
        self._marks += 1
        return f"{self._name}-{self._marks}".ljust(process_groups.MARK_LENGTH, "-")

    async def _start(self) -> PythonWorker:
        child = PythonWorker(
            self._template,
            self._settings,
            self._new_mark(),
            on_call=self._on_call,
            on_note=self._note,
        )
        try:
            await child.start()
            async with asyncio.timeout(_START_BOUND):
                is_ready = await child.ready
            if not is_ready:
                said = child.startup_error or await self._template.last_words()
                raise ChildProcessError(f"the Python child ended before it was ready: {said[-2000:]}")
        except BaseException:
            child.kill()
            await child.close()
            raise
        return child

    def _note(self, note: dict[str, Any]) -> None:
        if self.on_note is not None:
            self.on_note(note)

    def _on_call(self, child: PythonWorker, call: dict[str, Any]) -> None:
        """Run a program that the worker asks for."""
        task = asyncio.create_task(self._serve(child, call), name="run a program for a task")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _serve(self, child: PythonWorker, call: dict[str, Any]) -> None:
        reply = await self._run_call([str(part) for part in call["command"]])
        child.send(frames.encode(frames.REPLY, orjson.dumps({**reply, "call": call["call"]})))

    async def _run_call(self, command: list[str]) -> dict[str, Any]:
        if (found := java.program(command[0], self.env_with(self.variables))) is None:
            return {"error": java.MISSING}
        command[0] = found
        try:
            return (await self.run(command, self.cwd, self.on_output)).reply()
        except OSError as error:
            return {"error": start_failure(command, error)}

    def _kill_starting_programs(self) -> None:
        for program in self._programs.values():
            program.kill_when_started()

    async def _await_calls(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=process_groups.DEATH_BOUND)

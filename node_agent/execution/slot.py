"""A slot: one place for a running task, with its warm Python child and its working directories.

Rules:

- One task at a time. Python tasks run in the warm child, jars and executables in a process of their own.
- Whatever a task does ends in an `Outcome`; only what is wrong with the node itself is raised.
- When a task is over nothing of it is left running: its processes are killed, wherever they went (see
  `node_agent.system.process_groups`), and its working directory is put in order.
- A child is replaced after a task that died, was killed, ended its process or left it in doubt, and past the
  settings' number of tasks or memory. The next one is started at once, before it is needed.
- A task is told to end in three steps: `engine.cancelled` turns true, a moment later SIGTERM to all its
  processes, and SIGKILL when the grace is over. Past a limit of memory or processes there is only the third.
- Tasks that were given together and have not begun can be taken back at any time.
- Several Python tasks can be sent to the child at once, and others after them while they run. It waits for
  the slot's word before it starts the next one if there is something to put in order after the last, so
  packs mix nothing up.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson
from anyio import CancelScope

from batchflow.errors import ConfigurationError
from batchflow.model import Status
from batchflow.support import linux
from node_agent.bundles.workspace import Place, Workspace, remove
from node_agent.child import frames
from node_agent.child.java import lines
from node_agent.execution import commands, outcomes
from node_agent.execution.limits import Expired, Limits, TooMany, TooMuch
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.execution.process_limits import ProcessLimiter
from node_agent.execution.program import ProgramEnded
from node_agent.execution.python_worker import Answer, Gone, PythonWorker, Unbegun, WorkerSettings
from node_agent.execution.slot_processes import SlotProcesses
from node_agent.execution.task_events import TaskEvents
from node_agent.system import process_groups

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.protocol.documents import AgentConfig
    from batchflow.protocol.wire import EventItem

__all__ = ["Execution", "Outcome", "Slot"]

CANCEL_GRACE: Final = 0.75
"""Seconds from a cancellation to SIGKILL, at most."""

Done = Callable[[int, Sequence[Outcome]], None]
"""The outcomes of tasks that were run one after the other, the first one by its index."""


@dataclass(slots=True)
class _Dispatched:
    """Tasks that were sent to a child together."""

    child: PythonWorker
    place: Place
    room: int
    """How many more it may be sent."""


class Slot:
    """See the module. Used by one coroutine at a time."""

    def __init__(
        self,
        index: int,
        root: Path,
        config: AgentConfig,
        *,
        on_event: Callable[[Execution, EventItem], None],
        node: str | None = None,
        limiter: ProcessLimiter | None = None,
        most_processes: int | None = None,
    ) -> None:
        """Made in a running event loop, which at once begins to start the slot's child.

        `root`: a folder that the slot makes its own in; `node`: what tasks see as this node's name, by
        default the host's name. `limiter`: the agent's, by default one of its own; `most_processes`: see
        `processes.spawn`.
        """
        process_groups.adopt_orphans()
        self.index = index
        self._config = config
        self._on_event = on_event
        folder = root.absolute() / f"slot-{index}"
        remove(folder)
        folder.mkdir(parents=True)
        self._workspace = Workspace(folder)
        settings = WorkerSettings(
            env=process_groups.environment(),
            cwd=folder,
            node=socket.gethostname() if node is None else node,
            result_limit=config.result_limit,
            memory_mark=config.child_memory,
            output_limit=config.output_limit,
            most_processes=most_processes,
        )
        self._processes = SlotProcesses(settings, self._on_note)
        self._events: TaskEvents | None = None
        self._limits: Limits | None = None
        """Of the task that runs."""
        self._limiter = limiter or ProcessLimiter(config.process_limit)
        self._limiter.join(self)
        self._kept: set[Path] = set()
        self._line: list[Execution] | None = None
        """What `run_many` runs, in this order; None while it runs nothing."""
        self._begun = 0
        """Of the line: how many have begun, or were sent to the child."""
        self._dispatched: _Dispatched | None = None
        """What the child was sent of them."""
        self._recalled = False
        self._closed = False
        self._processes.prewarm()

    @property
    def child_pid(self) -> int | None:
        """The process that Python tasks run in; None while there is none."""
        child = self._processes.child
        return child.pid if child is not None and child.alive else None

    async def ready(self) -> None:
        """Wait until the child is warm. Raises OSError when none can be started."""
        await self._processes.worker()

    async def run(self, execution: Execution, files: Path) -> Outcome:
        """Run a task to its end. `files`: the bundle's folder in the cache.

        Raises `StorageError` or OSError when the node itself cannot run it. Cancelling this tells the task
        to end, and raises when none of its processes is left, within `CANCEL_GRACE` and a moment.
        """
        found: list[Outcome] = []
        await self.run_many((execution,), files, lambda _, outcomes: found.extend(outcomes))
        return found[0]

    async def run_many(self, executions: Sequence[Execution], files: Path, done: Done) -> None:
        """Run tasks of one bundle one after the other; `done` gets the outcomes as they come, in this order.

        Raises and cancels as `run` does; `done` was then called for those that had ended.
        """
        if self._closed:
            raise RuntimeError("the slot is closed")
        try:
            place = await self._workspace.prepare(executions[0].bundle, files)
        except ConfigurationError as error:
            done(0, [_now(outcomes.rejected(str(error))) for _ in executions])
            return
        self._line, self._recalled, index = list(executions), False, 0
        try:
            while index < len(self._line) and not self._recalled:
                self._begun = index + 1
                index = await self._run_next(index, place, done)
        finally:
            self._line = self._dispatched = None

    def follow(self, executions: Sequence[Execution]) -> bool:
        """Have `run_many` run more, of the same bundle, after all that it runs; False when it does not, for
        it runs nothing, or what it had was taken back."""
        if self._line is None or self._recalled:
            return False
        is_first = self._begun == len(self._line)
        self._line += executions
        if self._dispatched is not None and is_first:
            self._dispatch(self._dispatched)
        return True

    def recall(self) -> int:
        """Take back what has not begun of the tasks that `run_many` runs; how many of them it still runs, or
        has run."""
        self._recalled = True
        if self._dispatched is not None:
            self._begun -= self._dispatched.child.recall()
        return self._begun

    def clean(self, outcome: Outcome | None = None) -> None:
        """Remove what an outcome left in its outputs (None: all outcomes), once it was uploaded."""
        for folder in [folder for folder in self._kept if outcome is None or folder == outcome.output_folder]:
            self._kept.discard(folder)
            remove(folder.parent)

    async def aclose(self) -> None:
        """Kill what runs and give everything back. Idempotent; takes a few seconds at most."""
        self._closed = True
        self._limiter.leave(self)
        with CancelScope(shield=True):
            await self._processes.aclose()
        self._workspace.close()

    @property
    def running(self) -> bool:
        return self._limits is not None

    def count(self, entries: Mapping[int, linux.ProcessStat]) -> int:
        """How many processes and threads there are; the task is ended when that is above its limit."""
        count = self._processes.population(entries)
        if self._limits is not None and count > self._limiter.limit:
            self.freeze()
            self._limits.too_many(count)
        return count

    def freeze(self) -> None:
        """Make the task stand still, for a moment."""
        self._processes.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self._processes.thaw()

    async def _run_next(self, index: int, place: Place, done: Done) -> int:
        """Run one of the line, and those after it that can ride along; the index of what comes next."""
        assert self._line is not None
        match _resolve(self._line[index], place):
            case commands.Refusal(reason, kind):
                done(index, [_now(outcomes.failed(kind, reason))])
            case commands.RunProgram(argv):
                done(index, [await self._launch(self._line[index], argv, place)])
            case commands.Action():
                return await self._run_pack(index, place, done)
        return index + 1

    async def _run_pack(self, index: int, place: Place, done: Done) -> int:
        """Send tasks to the child at once; the index of the first that it did not run."""
        assert self._line is not None
        child = await self._fresh_worker(self._line[index].memory_limit)
        await child.forgotten()
        child.move(place)
        self._dispatched = dispatched = _Dispatched(
            child, place, max(1, self._config.child_tasks - child.tasks)
        )
        self._begun = index
        self._dispatch(dispatched, 1 if self._recalled else None)
        try:
            while index < self._begun:
                ran = await self._run_in(child, self._line[index], place)
                if ran is None:
                    break
                outcome, flags = ran
                found = [outcome]
                if not flags:
                    found += map(_read, child.answered())
                done(index, found)
                index += len(found)
                if self._processes.child is not child:
                    return index
                if flags:
                    child.send(frames.encode(frames.GO))
        except BaseException:
            if self._processes.child is child:
                await self._replace_child()  # it may hold more of them
            raise
        finally:
            self._dispatched = None
        if child.tasks >= self._config.child_tasks:
            await self._replace_child()
        return index

    def _dispatch(self, dispatched: _Dispatched, most: int | None = None) -> None:
        """Send to the child what comes next in the line, after what it was sent, as far as it is for it."""
        assert self._line is not None
        end = self._begun + (dispatched.room if most is None else min(most, dispatched.room))
        tasks = []
        for execution in self._line[self._begun : end]:
            if not isinstance(_resolve(execution, dispatched.place), commands.Action):
                break
            tasks.append(_encode(execution))
        if tasks:
            dispatched.child.dispatch(tasks)
            dispatched.room -= len(tasks)
            self._begun += len(tasks)
            if not dispatched.room:
                self._processes.prewarm(successor=True)

    async def _fresh_worker(self, memory_limit: int | None) -> PythonWorker:
        """A child that has not used up much of the limit before the task begins."""
        child = await self._processes.worker()
        if (
            memory_limit is not None
            and child.tasks
            and process_groups.resident([child.pid]) > memory_limit / 2
        ):
            await self._replace_child()
            child = await self._processes.worker()
        return child

    async def _run_in(
        self, child: PythonWorker, execution: Execution, place: Place
    ) -> tuple[Outcome, int] | None:
        """One task that was sent to the child: its outcome, and the flags of the answer; None when it was
        taken back before it began."""
        began_at = time.time()
        events = self._begin(execution, place)
        child.on_output = self._processes.on_output
        waiter: asyncio.Future[Any] = child.answer()
        limits = self._begin_limits(waiter, execution)
        try:
            end = await waiter
        except asyncio.CancelledError:
            await self._abandon(child.answer(), place, child)
            raise
        finally:
            self._limits = None
            limits.stop()
        if isinstance(end, Unbegun):
            events.finish()
            return None
        flags = frames.RETIRE
        if isinstance(end, Answer):
            flags, began_at = end.flags, end.began_at
        if flags:
            with CancelScope(shield=True):
                outcome = await self._settle(child, end, execution, limits)
                outcome = await self._put_in_order(outcome, place, flags)
            outcome = replace(outcome, started_at=began_at, finished_at=time.time())
        else:
            outcome = _read(end)
        events.finish()
        return outcome, flags

    def _begin_limits(self, waiter: asyncio.Future[Any], execution: Execution) -> Limits:
        limits = self._limits = Limits(self._processes, waiter, execution.timeout, execution.memory_limit)
        self._limiter.wake()
        return limits

    async def _settle(self, child: PythonWorker, end: Any, execution: Execution, limits: Limits) -> Outcome:
        """The outcome of a task in the child that did not simply answer; none of its processes is left."""
        if isinstance(end, Answer):
            if end.flags & frames.RETIRE:
                await self._replace_child()
            elif end.flags & frames.LEFTOVERS:
                await self._processes.sweep()
            return _read(end)
        if isinstance(end, Gone):
            await self._replace_child()
            return replace(outcomes.died(end.exit_code, end.stderr), stdout=end.stdout, stderr=end.stderr)
        ended = child.answer()
        outcome = await self._overstepped(end, ended, execution, limits, child)
        last = ended.result() if ended.done() else None
        if not isinstance(last, (Answer, Gone)):
            return outcome
        return replace(outcome, stdout=last.stdout, stderr=last.stderr)

    async def _overstepped(
        self,
        end: Expired | TooMuch | TooMany,
        ended: asyncio.Future[Any],
        execution: Execution,
        limits: Limits,
        child: PythonWorker | None,
    ) -> Outcome:
        """A limit was reached: end the task."""
        match end:
            case Expired():
                await self._processes.stop(ended, self._config.grace, child)
                outcome = outcomes.timed_out(execution.timeout or 0.0, limits.used())
            case TooMuch(used):
                await self._processes.kill()
                outcome = outcomes.out_of_memory(execution.memory_limit or 0, used)
            case TooMany(used):
                await self._processes.kill()
                outcome = outcomes.too_many_processes(self._limiter.limit, used)
        self._processes.prewarm()
        return outcome

    async def _launch(self, execution: Execution, argv: Sequence[str], place: Place) -> Outcome:
        """Run a jar or another executable as the task."""
        started_at = time.time()
        events = self._begin(execution, place)
        running = asyncio.create_task(self._processes.run(argv, place.directory, self._processes.on_output))
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        running.add_done_callback(lambda _: _resolve_once(waiter))
        limits = self._begin_limits(waiter, execution)
        try:
            end = await waiter
        except asyncio.CancelledError:
            await self._abandon(running, place, None)
            raise
        finally:
            self._limits = None
            limits.stop()
        with CancelScope(shield=True):
            over = end and await self._overstepped(end, running, execution, limits, None)
            outcome = self._launched(execution, await running, over)
            outcome = await self._put_in_order(outcome, place, frames.RETIRE)
        events.finish()
        return replace(outcome, started_at=started_at, finished_at=time.time())

    def _launched(self, execution: Execution, ended: ProgramEnded, over: Outcome | None) -> Outcome:
        """The outcome of a program; `over`: of one that overstepped a limit."""
        limit = self._config.output_limit
        stdout, stderr = ended.stdout.text(limit), ended.stderr.text(limit)
        outcome = over or _program_outcome(execution.command, ended, stderr, self._config.result_limit)
        return replace(outcome, stdout=stdout, stderr=stderr)

    def _begin(self, execution: Execution, place: Place) -> TaskEvents:
        events = self._events = TaskEvents(execution, self._on_event)
        self._processes.cwd = place.directory
        self._processes.on_output = events.on_output if execution.stream_output else None
        return events

    async def _abandon(self, ended: asyncio.Future[Any], place: Place, child: PythonWorker | None) -> None:
        """The task was cancelled: end it, and forget what it did."""
        with CancelScope(shield=True):
            await self._processes.stop(ended, min(CANCEL_GRACE, self._config.grace), child)
            self._processes.prewarm()
            folder, _ = await self._workspace.collect(place)
            if folder is not None:
                remove(folder)

    async def _put_in_order(self, outcome: Outcome, place: Place, flags: int) -> Outcome:
        """Put the working directory in order, and keep what the task left in `outputs`."""
        if not flags & frames.TOUCHED and not (flags & frames.RETIRE and self._workspace.touched(place)):
            return outcome
        folder, files = await self._workspace.collect(place)
        if folder is None:
            return outcome
        outputs = folder / "outputs"
        self._kept.add(outputs)
        return replace(outcome, outputs=files, output_folder=outputs)

    async def _replace_child(self) -> None:
        with CancelScope(shield=True):
            await self._processes.kill()
        self._processes.prewarm()

    def _on_note(self, note: dict[str, Any]) -> None:
        if self._events is not None:
            self._events.on_note(note)


def _resolve(execution: Execution, place: Place) -> commands.Action | commands.RunProgram | commands.Refusal:
    for name, limit in (("timeout", execution.timeout), ("memory_limit", execution.memory_limit)):
        if limit is not None and not limit > 0:
            return commands.Refusal(f"{name} is {limit}: it must be above 0")
    return commands.resolve(execution.command, execution.args, execution.bundle, place.files, place.directory)


def _encode(execution: Execution) -> bytes:
    """A task as the child gets it."""
    fields = {
        "command": execution.command,
        "args": execution.args,
        "task_id": execution.task_id,
        "job": execution.job,
        "client": execution.client,
        "attempt": execution.attempt,
        "memory_limit": execution.memory_limit,
        "stream": execution.stream_output,
    }
    return orjson.dumps(fields)


def _read(answer: Answer) -> Outcome:
    return outcomes.answered(
        answer.kind,
        answer.payload,
        stdout=answer.stdout,
        stderr=answer.stderr,
        started_at=answer.began_at,
        finished_at=answer.ended_at,
    )


def _program_outcome(command: str, ended: ProgramEnded, stderr: str, limit: int) -> Outcome:
    """The value of a program is the lines of its stdout."""
    if ended.exit_code:
        return outcomes.ended(command, ended.exit_code, stderr)
    if not ended.stdout.complete:
        return outcomes.failed(
            "ResultTooLarge",
            f"{command} printed {ended.stdout.size} bytes, the limit is {ended.stdout.limit}: "
            "let it write a file to outputs/",
            exit_code=0,
        )
    value = orjson.dumps(lines(ended.stdout.text()))
    if len(value) > limit:
        text = f"the lines of {command} are {len(value)} bytes of JSON, the limit is {limit}"
        return outcomes.failed("ResultTooLarge", text, exit_code=0)
    return Outcome(Status.SUCCEEDED, value, exit_code=0)


def _resolve_once(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _now(outcome: Outcome) -> Outcome:
    now = time.time()
    return replace(outcome, started_at=now, finished_at=now)

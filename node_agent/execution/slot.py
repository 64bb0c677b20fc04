"""A slot: one place for a running task, with its Python worker and its working directories.

Rules:

- One task runs at a time. Python tasks run in the worker, jars and executables in a process of their own.
- Whatever a task does ends in an `Outcome`; only what is wrong with the node itself is raised.
- When a task is over nothing of it is left running: its processes are killed, wherever they went (see
  `node_agent.system.process_groups`), and its working directory is put in order.
- Tasks of different sessions run in different children, unless both sessions say that they may share one.
- A child is replaced after a task that died, was killed, ended its process or left it in doubt, and past the
  settings' number of tasks or memory. The next one is started at once, before it is needed.
- A task is told to end in three steps: `engine.cancelled` turns true, a moment later SIGTERM to all its
  processes, and SIGKILL when the grace is over. Past a limit of memory or processes there is only the third.
- Several Python tasks can be sent to the worker at once, and others after them while they run; `SlotQueue`
  has the record of them. The worker waits for a GO before it starts the next one if there is something to
  put in order after the last, so packs mix nothing up.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import orjson
from anyio import CancelScope

from batchflow.model import Status
from batchflow.support import linux
from node_agent.bundles.workspace import Place, Workspace, remove
from node_agent.child import frames
from node_agent.child.java import lines
from node_agent.execution import commands, outcomes
from node_agent.execution.child_template import ChildTemplate
from node_agent.execution.limits import Expired, Limits, TooMany, TooMuch
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.execution.process_limits import ProcessLimiter
from node_agent.execution.program import ProgramEnded
from node_agent.execution.python_worker import Answer, Gone, PythonWorker, Unbegun, WorkerSettings
from node_agent.execution.slot_processes import SlotProcesses
from node_agent.execution.slot_queue import SlotGone
from node_agent.execution.task_events import TaskEvents
from node_agent.execution.warm_workers import Key, WarmWorkers
from node_agent.system import process_groups, thread_limits

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.protocol.bundle import Bundle
    from batchflow.protocol.documents import AgentConfig
    from batchflow.protocol.wire import EventItem

CANCEL_GRACE: Final = 0.75
"""Seconds from a cancellation to SIGKILL, at most."""

_CHECK_INTERVAL: Final = 1.0
"""Seconds for which files that were found unchanged are not compared again for tasks of the same session."""
_DESCRIPTORS: Final = 6
"""That a worker takes here: its channel, two eventfds, two pipes, and its process."""
_MOST_DESCRIPTORS: Final = 4096
"""That are counted on, however many a process may have."""


class Slot:
    """See the module. Used by one coroutine at a time. `open` makes one."""

    def __init__(
        self,
        index: int,
        workspace: Workspace,
        processes: SlotProcesses,
        config: AgentConfig,
        limiter: ProcessLimiter,
        on_event: Callable[[Execution, EventItem], None],
        template: ChildTemplate,
    ) -> None:
        self.index = index
        self._workspace = workspace
        self._processes = processes
        self._config = config
        self._limiter = limiter
        self._on_event = on_event
        self._template = template
        self._events: TaskEvents | None = None
        self._limits: Limits | None = None
        """Of the task that runs."""
        self._checked_for: tuple[Key, Path] | None = None
        self._checked_at = 0.0
        """Whose tasks the files were checked for, where, and when by the monotonic clock."""
        self._kept: set[Path] = set()
        self._closed = False
        processes.on_note = self._on_note

    @classmethod
    def open(
        cls,
        index: int,
        root: Path,
        config: AgentConfig,
        *,
        on_event: Callable[[Execution, EventItem], None],
        node: str | None = None,
        limiter: ProcessLimiter | None = None,
        most_processes: int | None = None,
        template: ChildTemplate | None = None,
    ) -> Self:
        """Make a slot with a new folder, in a running event loop, and begin to start its worker.

        `root`: a folder that the slot makes its own in; `node`: what tasks see as this node's name, by
        default the host's name. `limiter`, `template`: the agent's, by default the slot's own.
        `most_processes`: see `processes.spawn`.
        """
        process_groups.adopt_orphans()
        workspace = Workspace(root.absolute() / f"slot-{index}")
        workspace.restore()
        slots = config.slots or os.cpu_count() or 1
        settings = WorkerSettings(
            env=thread_limits.task_environment(workspace.home, slots),
            cwd=workspace.root,
            node=socket.gethostname() if node is None else node,
            result_limit=config.result_limit,
            memory_mark=config.child_memory,
            output_limit=config.output_limit,
            most_processes=most_processes,
        )
        limiter = limiter or ProcessLimiter(config.process_limit)
        template = template or ChildTemplate(settings.env)
        template.join()
        warm = WarmWorkers[PythonWorker](config.warm_memory, _most_warm(slots))
        processes = SlotProcesses(template, settings, warm)
        slot = cls(index, workspace, processes, config, limiter, on_event, template)
        limiter.join(slot)
        processes.prewarm()
        return slot

    async def ready(self) -> None:
        """Wait until the worker is ready. Raises OSError when none can be started."""
        await self._processes.ready()

    async def prepare(self, bundle: Bundle, files: Path) -> Place:
        """Make the working directory of the bundle's tasks. `files`: the bundle's folder in the cache.

        Raises `ConfigurationError`, and OSError when the node itself cannot.
        """
        if self._closed:
            raise RuntimeError("the slot is closed")
        self._workspace.require_intact()
        self._workspace.home.mkdir(exist_ok=True)
        return await self._workspace.prepare(bundle, files)

    def resolve(
        self, execution: Execution, place: Place
    ) -> commands.Action | commands.RunProgram | commands.Refusal:
        """Return how the task runs."""
        for name, limit in (("timeout", execution.timeout), ("memory_limit", execution.memory_limit)):
            if limit is not None and not limit > 0:
                return commands.Refusal(f"{name} is {limit}: it must be above 0")
        if execution.function is not None:
            return commands.ACTION
        return commands.resolve(
            execution.command,
            execution.args,
            execution.bundle,
            place.files,
            place.directory,
            self._processes.env_with(execution.variables),
        )

    def is_intact(self) -> bool:
        """Return whether the slot's folder is where the slot made it."""
        return self._workspace.is_intact()

    async def restore(self) -> None:
        """Make the slot's folder and its worker anew. Raises OSError."""
        if self._closed:
            return
        with CancelScope(shield=True):
            await self._processes.kill()
        self._kept.clear()
        await asyncio.to_thread(self._workspace.restore)
        self._processes.prewarm()

    def clean(self, outcome: Outcome | None = None) -> None:
        """Remove what an outcome left in its outputs (None: all outcomes), once it was uploaded."""
        for folder in [folder for folder in self._kept if outcome is None or folder == outcome.output_folder]:
            self._kept.discard(folder)
            remove(folder.parent)

    async def aclose(self) -> None:
        """Kill what runs and give everything back. Idempotent; takes a few seconds at most."""
        closed, self._closed = self._closed, True
        self._limiter.leave(self)
        with CancelScope(shield=True):
            await self._processes.aclose()
            if not closed:
                await self._template.leave()
        self._workspace.close()

    @property
    def running(self) -> bool:
        """Whether it runs a task."""
        return self._limits is not None

    def count(self, entries: Mapping[int, linux.ProcessStat]) -> int:
        """Count the processes and threads of the task; end the task when there are more than its limit."""
        count = self._processes.population(entries)
        if self._limits is not None and count > self._limiter.limit:
            self.freeze()
            self._limits.too_many(count)
        return count

    def freeze(self) -> None:
        """Make the task stand still, for a moment."""
        self._processes.freeze()

    def thaw(self) -> None:
        """Let the task go on."""
        self._processes.thaw()

    async def worker(self, place: Place, execution: Execution) -> PythonWorker:
        """Return the worker for a task and those of its session, ready for tasks of this place.

        It has not used up much of the task's memory limit. Raises OSError when none can be started.
        """
        place = await self._checked(place, execution)
        worker = await self._processes.worker(execution.process_key)
        limit = execution.memory_limit
        if limit is not None and worker.tasks and process_groups.resident([worker.pid]) > limit / 2:
            await self._replace_worker()
            worker = await self._processes.worker(execution.process_key)
        await worker.forgotten()
        worker.move(place, execution.packages, execution.variables)
        await self._bring(place, execution)
        return worker

    async def _bring(self, place: Place, execution: Execution) -> None:
        """Bring the files of other tasks that a task takes. If it does not begin, a check removes them."""
        if execution.files:
            self._checked_for = None
            with CancelScope(shield=True):  # a thread goes on that nothing waits for
                await self._workspace.bring(place, execution.files)

    async def _checked(self, place: Place, execution: Execution) -> Place:
        """Return the place as its bundle has it, whatever the tasks of other sessions did there.

        Raises `StorageError` when a cached file was changed.
        """
        now, wanted = time.monotonic(), (execution.process_key, place.directory)
        if wanted == self._checked_for and now - self._checked_at < _CHECK_INTERVAL:
            return place
        if await self._workspace.check(place):
            place = await self._workspace.prepare(place.bundle, place.files)
        self._checked_for, self._checked_at = wanted, now
        return place

    def room(self, worker: PythonWorker) -> int:
        """Return how many tasks the worker may be sent before it is replaced."""
        return max(1, self._config.child_tasks - worker.tasks)

    def dispatch(
        self, worker: PythonWorker, executions: Sequence[Execution], start_by: float, room: int
    ) -> None:
        """Send tasks to the worker; `room`: how many more may follow. The worker begins none of them after
        `start_by`, by the monotonic clock."""
        worker.dispatch([_encode(execution, start_by) for execution in executions])
        if not room:
            self._processes.prewarm(successor=True)

    def has(self, worker: PythonWorker) -> bool:
        """Return whether this is still the slot's worker."""
        return self._processes.child is worker

    async def discard(self, worker: PythonWorker) -> None:
        """Replace the worker, for it may hold tasks that nothing waits for."""
        if self.has(worker):
            await self._replace_worker()

    async def release(self, worker: PythonWorker) -> None:
        """Replace the worker if it has run as many tasks as it may."""
        if self.has(worker) and worker.tasks >= self._config.child_tasks:
            await self._replace_worker()

    async def run(self, worker: PythonWorker, execution: Execution, place: Place) -> Sequence[Outcome]:
        """Run a task that was sent to the worker; its outcome, and those of tasks that were answered with it.

        Empty when the worker gave the task back before it began. Cancelling this tells the task to end, and
        raises when none of its processes is left, within `CANCEL_GRACE` and a moment.
        """
        began_at = time.time()
        events = self._begin(execution, place)
        worker.on_output = self._processes.on_output
        waiter: asyncio.Future[Any] = worker.answer()
        limits = self._begin_limits(waiter, execution)
        try:
            end = await waiter
        except asyncio.CancelledError:
            await self._abandon(worker.answer(), place, worker)
            raise
        finally:
            self._limits = None
            limits.stop()
        if isinstance(end, Unbegun):
            events.finish()
            return ()
        flags = frames.RETIRE
        if isinstance(end, Answer):
            flags, began_at = end.flags, end.began_at
        if not flags:
            events.finish()
            outcome = _read(end)
            outcome.spans = events.spans
            return [outcome, *map(_read, worker.answered())]
        with CancelScope(shield=True):
            outcome = await self._settle(worker, end, execution, limits)
            outcome = await self._put_in_order(outcome, place, flags)
        events.finish()
        finished_at = time.time()
        if self.has(worker):
            worker.send(frames.encode(frames.GO))
        return [replace(outcome, started_at=began_at, finished_at=finished_at, spans=events.spans)]

    def _begin_limits(self, waiter: asyncio.Future[Any], execution: Execution) -> Limits:
        limits = self._limits = Limits(self._processes, waiter, execution.timeout, execution.memory_limit)
        self._limiter.wake()
        return limits

    async def _settle(self, worker: PythonWorker, end: Any, execution: Execution, limits: Limits) -> Outcome:
        """Return the outcome of a task that the worker did not simply answer; none of its processes is
        left."""
        if isinstance(end, Answer):
            if end.flags & frames.RETIRE:
                await self._replace_worker()
            elif end.flags & frames.LEFTOVERS:
                await self._processes.sweep()
            return _read(end)
        if isinstance(end, Gone):
            await self._replace_worker()
            return replace(outcomes.died(end.exit_code, end.stderr), stdout=end.stdout, stderr=end.stderr)
        ended = worker.answer()
        outcome = await self._overstepped(end, ended, execution, limits, worker)
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
        worker: PythonWorker | None,
    ) -> Outcome:
        """End a task that has reached a limit."""
        match end:
            case Expired():
                await self._processes.stop(ended, self._config.grace, worker)
                outcome = outcomes.timed_out(execution.timeout or 0.0, limits.used())
            case TooMuch(used):
                await self._processes.kill()
                outcome = outcomes.out_of_memory(execution.memory_limit or 0, used)
            case TooMany(used):
                await self._processes.kill()
                outcome = outcomes.too_many_processes(self._limiter.limit, used)
        self._processes.prewarm()
        return outcome

    async def launch(self, execution: Execution, argv: Sequence[str], place: Place) -> Outcome:
        """Run a jar or another executable as the task."""
        place = await self._checked(place, execution)
        await self._bring(place, execution)
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
            try:
                outcome = self._launched(execution, await running, over)
            except OSError as error:
                if (refused := outcomes.not_started(argv, error)) is None:
                    raise
                outcome = refused
            outcome = await self._put_in_order(outcome, place, frames.RETIRE)
        events.finish()
        return replace(outcome, started_at=started_at, finished_at=time.time())

    def _launched(self, execution: Execution, ended: ProgramEnded, over: Outcome | None) -> Outcome:
        """Return the outcome of a program; `over`: of one that overstepped a limit."""
        limit = self._config.output_limit
        stdout, stderr = ended.stdout.text(limit), ended.stderr.text(limit)
        outcome = over or _program_outcome(execution.command, ended, stderr, self._config.result_limit)
        return replace(outcome, stdout=stdout, stderr=stderr)

    def _begin(self, execution: Execution, place: Place) -> TaskEvents:
        events = self._events = TaskEvents(execution, self._on_event)
        self._processes.cwd = place.directory
        self._processes.variables = execution.variables
        self._processes.on_output = events.on_output if execution.stream_output else None
        return events

    async def _abandon(self, ended: asyncio.Future[Any], place: Place, worker: PythonWorker | None) -> None:
        """End a cancelled task, and forget what it did."""
        with CancelScope(shield=True):
            await self._processes.stop(ended, min(CANCEL_GRACE, self._config.grace), worker)
            self._processes.prewarm()
            folder, _ = await self._workspace.collect(place)
            if folder is not None:
                remove(folder)

    async def _put_in_order(self, outcome: Outcome, place: Place, flags: int) -> Outcome:
        """Put the working directory in order, and keep what the task left in `outputs`."""
        if self._closed:
            raise SlotGone("the slot was closed while the task ran")
        if not self._workspace.is_intact():
            raise SlotGone(f"the slot's folder {self._workspace.root} was gone after the task had run")
        if not flags & frames.TOUCHED and not (flags & frames.RETIRE and self._workspace.touched(place)):
            return outcome
        folder, files = await self._workspace.collect(place)
        if folder is None:
            return outcome
        outputs = folder / "outputs"
        self._kept.add(outputs)
        return replace(outcome, outputs=files, output_folder=outputs)

    async def _replace_worker(self) -> None:
        with CancelScope(shield=True):
            await self._processes.kill()
        self._processes.prewarm()

    def _on_note(self, note: dict[str, Any]) -> None:
        if self._events is not None:
            self._events.on_note(note)


def _most_warm(slots: int) -> int:
    """Return how many workers each of so many slots may keep: half of this process's descriptors are enough
    for them."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = _MOST_DESCRIPTORS
    return max(1, min(limit, _MOST_DESCRIPTORS) // (2 * _DESCRIPTORS * slots))


def _encode(execution: Execution, start_by: float) -> bytes:
    """Return a task as the worker gets it."""
    fields: dict[str, Any] = {
        "start_by": start_by,
        "command": execution.command,
        "args": None if isinstance(execution.args, bytes) else execution.args,
        "task_id": execution.task_id,
        "job": execution.job,
        "client": execution.client,
        "attempt": execution.attempt,
        "memory_limit": execution.memory_limit,
        "stream": execution.stream_output,
    }
    if (function := execution.function) is not None:
        pickle = None if function.pickle is None else str(function.pickle)
        fields["function"] = {"pickle": pickle, "keywords": function.keywords}
    if execution.pickles:
        fields["pickles"] = True
    if execution.trace is not None:
        fields["trace"] = execution.trace
    if inputs := execution.inputs:
        fields["inputs"] = [value.path for value in inputs]
    head = orjson.dumps(fields)
    if isinstance(execution.args, bytes):
        return len(head).to_bytes(4, "big") + head + execution.args
    return head


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
    """Return how a program ended. Its value is the lines of its stdout."""
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

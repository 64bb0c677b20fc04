"""One slot at work: what a task needs is fetched, the task runs, what it left is brought away.

A worker is a service: it takes an assignment, works it off, and says that its slot is free, for ever. Nothing
that a task does ends it. Blob Storage in trouble is tried again for about half a minute, then it is the
task's outcome.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import anyio
import orjson
from anyio import CancelScope
from orjson import Fragment

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.model import Status
from batchflow.protocol import layout, wire
from batchflow.support.backoff import Backoff
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import first_error
from node_agent.execution.outcomes import Execution, Outcome, failed
from node_agent.execution.results import Done, failure
from node_agent.scheduling.events import Ended, Feed, Freed, Prepared

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from batchflow.ports.storage import Container
    from batchflow.protocol.bundle import Bundle

logger = logging.getLogger(__name__)

TRIES: Final = 6
"""Of a request to Blob Storage, with waits of 0.5 to 10 seconds between them."""
GIVE_WAY: Final = 2
"""Turns of the event loop in which a result gets on its way before the slot is seen to: it is waited for."""
UPLOADS: Final = 4
"""Files of a task that are uploaded at once."""

T = TypeVar("T")

_Open = dict[int, wire.TaskItem]
"""The tasks of an assignment that have not ended."""


class SlotProtocol(Protocol):
    """What a worker needs of a slot."""

    async def run_many(
        self, executions: Sequence[Execution], files: Path, done: Callable[[int, Sequence[Outcome]], None]
    ) -> None: ...

    def follow(self, executions: Sequence[Execution]) -> bool: ...

    def recall(self) -> int: ...

    def clean(self, outcome: Outcome | None = None) -> None: ...

    async def aclose(self) -> None: ...


class Bundles(Protocol):
    """What a worker needs of the cache."""

    def use(self, bundle_hash: str) -> AbstractAsyncContextManager[tuple[Bundle, Path]]: ...


class RunningTasks(Protocol):
    """What outlives the agent: which task runs where."""

    def begin(self, slot: int, uids: Sequence[str]) -> None: ...

    def end(self, slot: int) -> None: ...


@frozen
class TaskResources:
    """Where the agent's workers fetch from and bring to."""

    agent: str
    bundles: Bundles
    ctl: Container
    out: Container
    running: RunningTasks
    inline_limit: int
    result_limit: int


@dataclass(slots=True)
class _Assignment:
    open: _Open
    bundle: Bundle | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    scope: CancelScope | None = None
    """Once it is worked off. The worker's task makes it: a tick makes assignments as well, and outside of
    tasks anyio refuses where sniffio is installed."""
    stopped: bool = False
    started: tuple[int, ...] = ()
    line: list[tuple[int, Execution]] = field(default_factory=list)
    """What the slot has not been given."""
    running: list[int] = field(default_factory=list)
    """Those that it was given together, in their order."""


class SlotLoop:
    """The worker of one slot."""

    def __init__(
        self,
        index: int,
        slot: SlotProtocol,
        resources: TaskResources,
        *,
        feed: Feed,
        done: Callable[[int, Done], None],
    ) -> None:
        self._index = index
        self._slot = slot
        self._resources = resources
        self._feed = feed
        self._done = done
        self._work: asyncio.Queue[_Assignment] = asyncio.Queue(1)
        self._current: _Assignment | None = None

    def prepare(self, tasks: Mapping[int, wire.TaskItem]) -> None:
        """Bring what they need to the slot, then wait for `start` or `stop`."""
        self._current = _Assignment(dict(tasks))
        self._work.put_nowait(self._current)

    def start(self, tasks: tuple[int, ...]) -> None:
        """Run these of the prepared tasks."""
        assert self._current is not None
        self._current.started = tasks
        self._current.go.set()

    def stop(self) -> None:
        """Kill what runs. No-op when the slot is just becoming free."""
        if self._current is not None:
            self._current.stopped = True
            if self._current.scope is not None:
                self._current.scope.cancel()

    def follow(self, tasks: Mapping[int, wire.TaskItem]) -> None:
        """Run these after those that run. They are of the same bundle, and carry their arguments."""
        assignment = self._current
        assert assignment is not None
        assert assignment.bundle is not None
        assignment.open |= tasks
        self._note(assignment)
        following = []
        for task, item in tasks.items():
            assert isinstance(item.params, list)
            following.append((task, _execution(item, assignment.bundle, item.params)))
        if not assignment.line and self._slot.follow([execution for _, execution in following]):
            assignment.running += tasks
        else:
            assignment.line += following

    def recall(self) -> list[int]:
        """Take back those of the tasks that have not begun; which they are."""
        assignment = self._current
        if assignment is None or not assignment.running:
            return []
        kept = self._slot.recall()
        recalled = assignment.running[kept:] + [task for task, _ in assignment.line]
        del assignment.running[kept:]
        assignment.line.clear()
        for task in recalled:
            del assignment.open[task]
        self._note(assignment)
        return recalled

    def _note(self, assignment: _Assignment) -> None:
        self._resources.running.begin(self._index, [item.uid for item in assignment.open.values()])

    async def serve(self) -> None:
        """Work off what comes, for ever."""
        try:
            while True:
                assignment = await self._work.get()
                with CancelScope() as assignment.scope:
                    if assignment.stopped:
                        assignment.scope.cancel()
                    await self._attempt(assignment)
                for _ in range(GIVE_WAY):
                    await asyncio.sleep(0)
                self._resources.running.end(self._index)
                self._current = None
                self._feed(Freed(self._index))
        finally:
            with CancelScope(shield=True):
                await self._slot.aclose()

    async def _attempt(self, assignment: _Assignment) -> None:
        """Every task of the assignment has ended when this returns; cancelled, some have not."""
        try:
            await self._work_off(assignment)
        except _Unfit as unfit:
            self._fail(assignment.open, unfit.kind, str(unfit))
        except Exception as error:
            logger.exception("slot_failed", extra={"slot": self._index})
            self._fail(assignment.open, "WorkerDied", f"the agent could not run the task: {error!r}")

    def _fail(self, tasks: _Open, kind: str, error: str) -> None:
        ended = list(tasks)
        tasks.clear()
        outcome = failed(kind, error, finished_at=time.time())
        self._end([(task, Done(outcome)) for task in ended])

    async def _work_off(self, assignment: _Assignment) -> None:
        bundle_hash = next(iter(assignment.open.values())).bundle
        async with AsyncExitStack() as stack:
            bundle, files = await self._bundle(bundle_hash, stack)
            executions = await self._executions(assignment.open, bundle)
            assignment.bundle = bundle
            self._feed(Prepared(self._index))
            await assignment.go.wait()
            started = {task: executions[task] for task in assignment.started if task in executions}
            for task in executions.keys() - started:
                del assignment.open[task]
            assignment.line[:0] = started.items()  # before those that follow already
            self._note(assignment)
            while assignment.line:
                async with asyncio.TaskGroup() as uploads:
                    await self._run_line(assignment, files, uploads)

    async def _run_line(self, assignment: _Assignment, files: Path, uploads: asyncio.TaskGroup) -> None:
        """Run what there is, and what follows it. What is large is brought away while others run."""

        def done(first: int, outcomes: Sequence[Outcome]) -> None:
            ended = []
            for task, outcome in zip(islice(assignment.running, first, None), outcomes, strict=False):
                item = assignment.open.pop(task)
                if self._is_light(outcome):
                    ended.append((task, _light(outcome)))
                else:
                    uploads.create_task(self._bring_away(task, item, outcome))
            self._end(ended)

        assignment.running = [task for task, _ in assignment.line]
        executions = [execution for _, execution in assignment.line]
        assignment.line.clear()
        await self._slot.run_many(executions, files, done)
        assignment.running = []

    async def _bundle(self, bundle_hash: str, stack: AsyncExitStack) -> tuple[Bundle, Path]:
        try:
            return await _patiently(
                lambda: stack.enter_async_context(self._resources.bundles.use(bundle_hash))
            )
        except BlobNotFound as error:
            raise _Unfit("TaskRejected", f"its files are not in the pool: {error}") from error
        except ProtocolError as error:
            raise _Unfit("TaskRejected", f"its files cannot be used: {error}") from error
        except StorageError as error:
            raise _Unfit("TaskFailed", f"its files could not be fetched: {error}") from error

    def _is_light(self, outcome: Outcome) -> bool:
        """Whether all of it fits into the result."""
        return not outcome.outputs and (
            outcome.value is None or len(outcome.value) <= self._resources.inline_limit
        )

    async def _bring_away(self, task: int, item: wire.TaskItem, outcome: Outcome) -> None:
        try:
            done = await self._brought(item, outcome)
        except (StorageError, OSError) as error:
            fault = f"what it left could not be stored: {error}"
            done = Done(replace(outcome, status=Status.FAILED, kind="TaskFailed", error=fault, value=None))
        finally:
            self._slot.clean(outcome)
        self._end([(task, done)])

    async def _brought(self, item: wire.TaskItem, outcome: Outcome) -> Done:
        files = await self._upload(item, outcome) if outcome.outputs else ()
        value = outcome.value
        if value is None:
            return Done(outcome, None, files)
        if len(value) <= self._resources.inline_limit:
            return Done(outcome, Fragment(value), files)
        if len(value) > self._resources.result_limit:
            return Done(_too_large(outcome, len(value), self._resources.result_limit), None, files)
        resources = self._resources
        name = layout.result_blob(item.job, item.client, item.uid, item.attempt, resources.agent)
        await _patiently(lambda: resources.out.put(name, value))
        return Done(outcome, wire.Reference(name, len(value)), files)

    async def _upload(self, item: wire.TaskItem, outcome: Outcome) -> tuple[str, ...]:
        prefix = layout.outputs_prefix(item.job, item.client, item.uid)
        names = outcome.output_names()
        limiter = anyio.CapacityLimiter(UPLOADS)

        async def upload(name: str, path: Path) -> None:
            async with limiter:
                await _patiently(lambda: self._resources.out.upload(prefix + name, path))

        error: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                for name, path in zip(names, outcome.outputs, strict=True):
                    group.start_soon(upload, name, path)
        except* (StorageError, OSError) as errors:
            error = first_error(errors)  # raised in here it would come in a group, before Python 3.11.4
        if error is not None:
            raise error
        return names

    async def _arguments(self, item: wire.TaskItem) -> list[Any]:
        reference = item.params
        if isinstance(reference, list):
            return reference
        try:
            blob = await _patiently(lambda: self._resources.ctl.get(reference.blob))
            arguments = orjson.loads(blob.data)
        except BlobNotFound as error:
            raise _Unfit("TaskRejected", f"its arguments are gone: {error}") from error
        except StorageError as error:
            raise _Unfit("TaskFailed", f"its arguments could not be fetched: {error}") from error
        except orjson.JSONDecodeError as error:
            raise _Unfit("TaskRejected", f"its arguments are not JSON: {error}") from error
        if not isinstance(arguments, list):
            raise _Unfit("TaskRejected", "its arguments are not a list")
        return arguments

    async def _executions(self, tasks: _Open, bundle: Bundle) -> dict[int, Execution]:
        """What runs, by task. A task whose arguments cannot be had ends here."""
        executions = {}
        for task, item in list(tasks.items()):
            try:
                executions[task] = _execution(item, bundle, await self._arguments(item))
            except _Unfit as unfit:
                self._fail({task: tasks.pop(task)}, unfit.kind, str(unfit))
        return executions

    def _end(self, ended: Sequence[tuple[int, Done]]) -> None:
        events = []
        for task, done in ended:
            self._done(task, done)
            events.append(_ended(task, done.outcome))
        self._feed(*events)


def _ended(task: int, outcome: Outcome) -> Ended:
    finished = time.time() if outcome.finished_at is None else outcome.finished_at
    started = finished if outcome.started_at is None else outcome.started_at
    duration = max(0.0, finished - started)
    return Ended(task, failure(outcome), outcome.error, finished, duration, random.random())


def _light(outcome: Outcome) -> Done:
    return Done(outcome, None if outcome.value is None else Fragment(outcome.value))


class _Unfit(Exception):
    """The task cannot run, or the slot's tasks cannot."""

    def __init__(self, kind: str, error: str) -> None:
        super().__init__(error)
        self.kind = kind


async def _patiently(request: Callable[[], Awaitable[T]]) -> T:
    """Try again while Blob Storage says that this may help."""
    backoff = Backoff(0.5)
    while True:
        try:
            return await request()
        except StorageError as error:
            if not error.retryable or backoff.tries + 1 >= TRIES:
                raise
            logger.warning("storage_retry", extra={"error": str(error), "tries": backoff.tries + 1})
        await backoff.wait()


def _execution(item: wire.TaskItem, bundle: Bundle, arguments: list[Any]) -> Execution:
    return Execution(
        item.uid,
        item.task_id,
        item.client,
        item.job,
        item.command,
        arguments,
        bundle,
        item.attempt,
        item.timeout,
        item.memory_limit,
        item.stream_output,
    )


def _too_large(outcome: Outcome, size: int, limit: int) -> Outcome:
    error = f"the result has {size} bytes of JSON, the limit is {limit} (setting: result_limit)"
    return replace(outcome, status=Status.FAILED, kind="ResultTooLarge", error=error, value=None)

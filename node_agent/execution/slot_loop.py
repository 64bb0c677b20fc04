"""One slot at work: what its tasks need is fetched, they run, and what they left is uploaded.

The loop is a service: it takes an assignment, works it off, says that its slot is free, and takes the next
one. Nothing that a task does ends it.

What is wrong with the node is no task's outcome. An OSError, a cached file that was changed, and a Blob
Storage that the node does not reach mean that the node could not run the tasks. These are given back as
`Unable`, and the slot is put in order. A failed task counts as one of these when the slot's folder is gone,
because the agent may be on its way out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from anyio import CancelScope

from batchflow.errors import StorageError
from batchflow.protocol import wire
from batchflow.support.task_groups import first_error
from node_agent.bundles.task_inputs import Unfit
from node_agent.child.frames import NODE_UNFIT
from node_agent.execution.outcomes import Execution, FunctionCall, Outcome, failed
from node_agent.execution.resources import TaskResources
from node_agent.execution.results import failure
from node_agent.execution.slot_queue import QueuedTask, SlotGone, SlotProtocol, SlotQueue
from node_agent.scheduling.events import Ended, Feed, Freed, Prepared, Unable
from node_agent.system.task_fields import tasks_fields

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.protocol.bundle import Bundle

logger = logging.getLogger(__name__)

_MOST_DAMAGES: Final = 3
"""Times that the cached files of a bundle are found to be changed, until its tasks fail."""
GIVE_WAY: Final = 2
"""Turns of the event loop in which a result leaves before the slot is seen to, because a client waits for
it."""


_LONGEST_REASON: Final = 300
"""Characters of what is told of the node: it travels with the task."""


@dataclass(slots=True)
class _Assignment:
    """What the slot works on between two times that it is free."""

    queue: SlotQueue
    bundle: Bundle | None = None
    """Known once its tasks are prepared."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    scope: CancelScope | None = None
    """Once it is worked off. The loop's task makes it: a tick makes assignments as well, and outside of
    tasks anyio refuses where sniffio is installed."""
    stopped: bool = False
    functions: dict[str, Path] = field(default_factory=dict)
    """The files of functions by value, by the hashes of their bundles."""
    packages: Path | None = None
    """The folder of the tasks' environment."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The tasks' environment variables."""
    uploads: asyncio.TaskGroup | None = None
    """While its tasks run."""


class SlotLoop:
    """The service of one slot."""

    def __init__(self, index: int, slot: SlotProtocol, resources: TaskResources, *, feed: Feed) -> None:
        self._index = index
        self._slot = slot
        self._resources = resources
        self._feed = feed
        self._assignments: asyncio.Queue[_Assignment] = asyncio.Queue(1)
        self._current: _Assignment | None = None
        self._damaged = False
        """Whether the slot's folder was found gone."""

    def prepare(self, tasks: Mapping[int, wire.TaskItem]) -> None:
        """Bring what they need to the slot, then wait for `start` or `stop`."""
        queued = [QueuedTask(number, item) for number, item in tasks.items()]
        self._current = _Assignment(SlotQueue(self._slot, queued, self._ended))
        self._assignments.put_nowait(self._current)

    def start(self, tasks: Iterable[int], start_by: float) -> None:
        """Run these of the prepared tasks. What has not begun at `start_by`, by the monotonic clock, does not
        begin: the slot becomes free without an `Ended` for it."""
        assert self._current is not None
        self._current.queue.keep(tasks, start_by)
        self._current.go.set()

    def stop(self) -> None:
        """Kill what runs. No-op when the slot is just becoming free."""
        if self._current is not None:
            self._current.stopped = True
            if self._current.scope is not None:
                self._current.scope.cancel()

    def follow(self, tasks: Mapping[int, wire.TaskItem], start_by: float) -> None:
        """Run these after those that run. They are of the same bundle, and carry their arguments.

        `start_by`: see `start`.
        """
        assignment = self._current
        assert assignment is not None
        assert assignment.bundle is not None
        following = []
        for number, item in tasks.items():
            arguments = item.params if isinstance(item.params, list) else item.params.data
            assert arguments is not None
            task = QueuedTask(number, item, start_by)
            task.execution = _execution(item, assignment.bundle, arguments, assignment)
            following.append(task)
        assignment.queue.add(following)
        self._note(assignment.queue)

    def recall(self) -> list[int]:
        """Take back those of the tasks that have not begun; return which they are."""
        if self._current is None:
            return []
        recalled = self._current.queue.recall()
        self._note(self._current.queue)
        return [task.number for task in recalled]

    async def serve(self) -> None:
        """Work off one assignment after another, without end."""
        try:
            while True:
                assignment = await self._assignments.get()
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
        """Work off an assignment. Every task of it has ended when this returns, but for those that were late
        to begin; cancelled, some have not."""
        queue = assignment.queue
        try:
            await self._work_off(assignment)
        except Unfit as unfit:
            self._fail(queue.take_all(), unfit.kind, str(unfit))
        except Exception as error:
            named = tasks_fields([task.item for task in queue.tasks])
            logger.exception("slot_failed", extra={**named, "slot": self._index})
            reason = first_error(error) if isinstance(error, BaseExceptionGroup) else error
            if isinstance(reason, (OSError, StorageError)):
                await self._give_back(queue.take_all(), reason)
            else:
                self._fail(queue.take_all(), "WorkerDied", f"the agent could not run the task: {reason!r}")
        else:
            if self._damaged:
                await self._put_in_order()

    async def _give_back(self, tasks: Sequence[QueuedTask], reason: Exception) -> None:
        """Say that the node could not run these, and put the slot in order for the next ones."""
        ran = int(isinstance(reason, SlotGone))
        self._feed(*(_unable(task, f"{reason}", began=place < ran) for place, task in enumerate(tasks)))
        await self._put_in_order()

    async def _put_in_order(self) -> None:
        self._damaged = False
        try:
            await self._slot.restore()
        except OSError as error:
            logger.warning("slot_not_restored", extra={"slot": self._index, "error": str(error)})

    def _fail(self, tasks: Sequence[QueuedTask], kind: str, error: str) -> None:
        outcome = failed(kind, error, finished_at=time.time())
        self._feed(*(_event(task, outcome) for task in tasks))

    async def _work_off(self, assignment: _Assignment) -> None:
        queue = assignment.queue
        async with AsyncExitStack() as stack:
            bundle_hash = queue.tasks[0].item.bundle
            bundle, files = await self._resources.fetch_bundle(bundle_hash, stack)
            if (environment := queue.tasks[0].item.environment) is not None:
                assignment.packages = await self._resources.fetch_environment(environment, stack)
            if (variables := queue.tasks[0].item.variables) is not None:
                assignment.variables = await self._resources.fetch_variables(variables)
            await self._fetch_arguments(assignment, bundle, stack)
            assignment.bundle = bundle
            self._feed(Prepared(self._index))
            await assignment.go.wait()
            self._note(queue)
            damages = 0
            while queue and not queue.tasks[0].late:
                async with asyncio.TaskGroup() as assignment.uploads:
                    try:
                        await queue.run(bundle, files)
                    except StorageError as error:
                        if (damages := damages + 1) == _MOST_DAMAGES:
                            raise
                        logger.warning("bundle_damaged", extra={"bundle": bundle_hash, "error": str(error)})
                        self._resources.bundles.distrust(bundle_hash)
                        bundle, files = await self._resources.fetch_bundle(bundle_hash, stack)
            if queue:
                late = tasks_fields([task.item for task in queue.tasks])
                logger.warning("tasks_late", extra={**late, "slot": self._index, "tasks": len(queue.tasks)})

    async def _fetch_arguments(self, assignment: _Assignment, bundle: Bundle, stack: AsyncExitStack) -> None:
        """Get what each task runs on. A task whose arguments or function cannot be had ends here."""
        queue, functions = assignment.queue, assignment.functions
        for task in queue.tasks:
            try:
                if (pickle := task.item.pickle) is not None and pickle not in functions:
                    functions[pickle] = await self._resources.fetch_function(pickle, stack)
                arguments = await self._resources.fetch_arguments(task.item)
                taken = self._resources.inputs
                item = await taken.located(task.item)
                inputs = await taken.values(item.inputs)
                files = await taken.files(item.files, bundle)
            except Unfit as unfit:
                queue.take(task)
                self._fail([task], unfit.kind, str(unfit))
            else:
                task.execution = _execution(task.item, bundle, arguments, assignment)
                task.execution.inputs, task.execution.files = inputs, files

    def _ended(self, ended: Sequence[tuple[QueuedTask, Outcome]]) -> None:
        """Report the outcomes; what is large is uploaded first, while other tasks run."""
        assert self._current is not None
        assert self._current.uploads is not None
        events: list[Ended | Unable] = []
        for task, outcome in ended:
            if outcome.kind is not None and (reason := self._damage(outcome)) is not None:
                self._damaged = True
                events.append(_unable(task, reason, began=outcome.kind != NODE_UNFIT))
            elif self._resources.fits(outcome):
                events.append(_event(task, outcome))
            else:
                self._current.uploads.create_task(self._store(task, outcome))
        self._feed(*events)

    def _damage(self, outcome: Outcome) -> str | None:
        """Return what is wrong with the node, where that may be why a task failed."""
        if outcome.kind == NODE_UNFIT:
            return outcome.error
        return None if self._slot.is_intact() else "the slot's folder is gone"

    async def _store(self, task: QueuedTask, outcome: Outcome) -> None:
        event: Ended | Unable
        try:
            event = _event(task, await self._resources.store(task.item, outcome))
        except (OSError, StorageError) as error:
            lost = isinstance(error, OSError)  # else the task has done nothing to the node
            event = _unable(task, f"what the task left could not be stored: {error}", began=lost)
        finally:
            self._slot.clean(outcome)
        self._feed(event)

    def _note(self, queue: SlotQueue) -> None:
        self._resources.running.begin(self._index, [task.item.uid for task in queue.tasks])


def _event(task: QueuedTask, outcome: Outcome) -> Ended:
    finished = time.time() if outcome.finished_at is None else outcome.finished_at
    started = finished if outcome.started_at is None else outcome.started_at
    return Ended(
        task=task.number,
        failure=failure(outcome),
        error=outcome.error,
        at=finished,
        duration=max(0.0, finished - started),
        chance=random.random(),
        outcome=outcome,
    )


def _unable(task: QueuedTask, reason: str, *, began: bool) -> Unable:
    return Unable(task.number, reason[:_LONGEST_REASON], time.time(), began)


def _execution(
    item: wire.TaskItem, bundle: Bundle, arguments: list[Any] | bytes, assignment: _Assignment
) -> Execution:
    function = None
    if item.function:
        pickle = None if item.pickle is None else assignment.functions[item.pickle]
        function = FunctionCall(pickle, item.keywords)
    return Execution(
        uid=item.uid,
        task_id=item.task_id,
        client=item.client,
        job=item.job,
        command=item.command,
        args=arguments,
        bundle=bundle,
        attempt=item.attempt,
        timeout=item.timeout,
        memory_limit=item.memory_limit,
        stream_output=item.stream_output,
        share_processes=item.share_processes,
        function=function,
        pickles=item.pickles,
        environment=item.environment,
        packages=assignment.packages,
        variables_blob=item.variables,
        variables=assignment.variables,
        trace=item.trace,
    )

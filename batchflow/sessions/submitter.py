"""Puts what a program submits into the outbox, as tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import JobClosed, StorageError
from batchflow.files import Files, collect, stored, upload
from batchflow.protocol import wire
from batchflow.protocol.values import arguments
from batchflow.protocol.values.kept import KeptArguments
from batchflow.sessions.records.submission import Submission, TaskInput
from batchflow.sessions.records.tracker import Entry, submit_failed_result
from batchflow.sessions.task_encoder import TaskEncoder
from batchflow.sessions.workflows.dependents import Dependents
from batchflow.sessions.workflows.graph import RunsWith, Waiting
from batchflow.sessions.workflows.inputs import InputOf, TaskMarks, entries_of
from batchflow.sessions.workflows.task_files import FilePasser, shown
from batchflow.sessions.workflows.values import ValueMark, ValuePasser, number_of
from batchflow.support.backoff import Backoff

if TYPE_CHECKING:
    from batchflow.environments.session import SessionEnvironment
    from batchflow.functions.code import CodeStore
    from batchflow.protocol.lanes import Priority
    from batchflow.protocol.values.classes import BundleClasses
    from batchflow.sessions.needs_watch import NeedsWatch
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.expiry import ExpiryWatch
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.task_traces import TaskTrace

_YIELD_EVERY: Final = 64
"""Number of submits after which the event loop gets a turn, so that tasks are sent meanwhile."""

_NONE: Final[Mapping[Any, Any]] = {}


class Submitter:
    """Makes tasks of what is submitted, and waits for room in the outbox, never for readers of results."""

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        wake_sender: Callable[[], None],
        encoder: TaskEncoder,
        classes: BundleClasses,
        code: CodeStore,
        environment: SessionEnvironment,
        *,
        expiries: ExpiryWatch,
        needs: NeedsWatch,
        priority_of: Callable[[Priority | None], Priority | None],
        input_of: InputOf,
        task_of: Callable[[Entry], Any],
        values: ValuePasser,
        files: FilePasser,
    ) -> None:
        """Make it for one session. `values`, `files`: how large values and files go from task to task.

        `input_of`: what a handle among arguments stands for. `task_of`: the handle of a task.
        `classes`: those of the session's files. `priority_of`: which other lane a task goes to, if any.
        """
        self._priority_of = priority_of
        self.classes = classes
        self.expiries = expiries
        self.needs: NeedsWatch = needs
        """The tasks that require something of their nodes."""
        self._encoder = encoder
        self._context = context
        self._outcomes = outcomes
        self._wake_sender = wake_sender
        self._settings = context.settings
        self._code = code
        self._environment = environment
        self._input_of = input_of
        self._task_of = task_of
        self.values: ValuePasser = values
        """How large values go from task to task."""
        self._files = files
        self.dependents: Dependents = Dependents(outcomes, self, values, files)
        """The tasks that wait for others."""
        self.bundle = ""
        """The hash of the files that tasks submitted from now on run with."""
        self._runs_with: RunsWith | None = None
        """What a file's task runs with; None until the first one, and when the files have changed."""
        self._refusal: str | None = None
        """Why no new tasks are taken, although the session lives."""

    async def use(self, files: Files | None) -> None:
        """Let the tasks that are submitted from now on run with these files; None: the pool's default."""
        runtime = self._context.runtime
        await runtime.refresh()  # another client may have repurposed it
        await self._encoder.make_terms()
        if files is None:
            default = runtime.manifest.bundle
            bundle = await (upload([], runtime.ctl) if default is None else stored(default, runtime.ctl))
        else:
            bundle = await upload(await collect(files), runtime.ctl)
        self.bundle = bundle.hash
        self._runs_with = None
        self.classes.add(file.name for file in bundle.files)
        runtime.load.use_bundle(self._context.policy, bundle.hash)

    def refuse(self, reason: str) -> None:
        """Take no new tasks; those that were submitted go on. `reason`: the text of `JobClosed`."""
        self._refusal = reason

    async def enqueue(
        self,
        submission: Submission,
        *,
        index: int | None = None,
        on_done: Callable[[Entry], None] | None = None,
    ) -> Entry:
        """Put a task into the outbox, after a turn for the event loop now and then.

        A cancelled call has made no task, because nothing is awaited after the task is there.
        """
        begin_by = submission.begin_by(asyncio.get_running_loop().time())
        if submission.encoded is None and not arguments.are_plain(submission.arguments):
            self._prepare(submission, index)
        inputs = self._inputs_of(submission)
        if self._context.tracker.next_sequence() % _YIELD_EVERY == _YIELD_EVERY - 1:
            await asyncio.sleep(0)
        self._check_takes()
        if not self._environment.settled:
            await self._environment.wait()
            self._check_takes()
        if submission.function is not None:
            self.classes.add_modules(submission.function.modules)  # those of what it returns or raises
            code = await self._code.bundles(submission.function, self.bundle)
            self._check_takes()
            runs_with = RunsWith(code.files, code.pickle, self._environment.bundle)
        elif (known := self._runs_with) is not None:
            runs_with = known
        else:
            runs_with = self._runs_with = RunsWith(self.bundle, None, self._environment.bundle)
        while not self._has_room_for_more():
            await self._outcomes.next_room()
            self._check_takes()
        entry = self._new_entry(submission, index, on_done, begin_by)
        if (telemetry := self._context.telemetry) is not None:
            entry.trace = telemetry.begin(entry, inputs)
        trace: TaskTrace | None = entry.trace
        try:
            if inputs:
                self._hold(Waiting(entry, submission, inputs, runs_with))
                return entry
            item = self._encoder.inline(submission, entry, runs_with)
            if item is None:
                reference = await self._encoder.store_arguments(submission, self._check_takes)
                entry = self._new_entry(submission, index, on_done, begin_by)
                if trace is not None:
                    entry.trace = trace
                    trace.describe(entry)
                item = self._encoder.by_reference(submission, entry, runs_with, reference)
            self._add(submission, entry, item)
            return entry
        finally:
            if trace is not None:
                trace.submitted()

    def _add(self, submission: Submission, entry: Entry, item: bytes) -> None:
        """Put a task into the outbox that waits for no other."""
        entry.item = item
        self._encoder.keep_arguments(submission, entry)
        self._context.tracker.add(entry)
        self.expiries.add(entry)
        self._label(submission, entry)
        self.needs.add(entry, submission.requires)
        if self._environment.failure is not None:
            self._outcomes.resolve(entry, submit_failed_result(entry, self._environment.failure))
            self._outcomes.change.notify()
        self._wake_sender()

    def prepare(self, submissions: Sequence[Submission]) -> None:
        """Encode the arguments of several tasks. Raises `ArgumentNotSerializable`, which names the input.

        Texts and whole numbers can always be sent, and are encoded with the rest of their task.
        """
        for index, submission in enumerate(submissions):
            if not arguments.are_plain(submission.arguments):
                self._prepare(submission, index)

    def _prepare(self, submission: Submission, index: int | None) -> None:
        submission.prepare(self.classes, index=index, marks=TaskMarks(self._input_of))

    def _inputs_of(self, submission: Submission) -> tuple[Entry, ...]:
        """Return what the task waits for, each once. Raises `InvalidDependency`."""
        if not submission.inputs and not submission.after:
            return ()
        after = entries_of(submission.after, self._input_of) if submission.after else ()
        return tuple(dict.fromkeys([*[each.entry for each in submission.inputs], *after]))

    # ---- tasks that wait for others

    def _hold(self, waiting: Waiting) -> None:
        """Hold a task until what it waits for has ended, with its arguments as they are now."""
        submission = waiting.submission
        if submission.encoded is not None:
            submission.encoded = arguments.in_blob(submission.arguments, submission.encoded)
            submission.arguments = []
            waiting.size = len(submission.encoded)
        self._context.tracker.hold(waiting.entry)
        self.expiries.add(waiting.entry)
        self._label(submission, waiting.entry)
        if self._environment.failure is None:
            self.dependents.hold(waiting)
            self.needs.add(waiting.entry, submission.requires)
            return
        self.keep_unsent(waiting)
        self._outcomes.resolve(waiting.entry, submit_failed_result(waiting.entry, self._environment.failure))
        self._outcomes.change.notify()

    def has_room(self) -> bool:
        """Return whether the outbox takes one more task."""
        return self._context.tracker.has_room(self._settings)

    def _has_room_for_more(self) -> bool:
        """Return whether the session takes one more task. Those that wait count by their bytes alone."""
        size = self._context.tracker.outbox_bytes + self.dependents.graph.held_bytes
        return self.has_room() and size < self._settings.outbox_bytes

    def release(self, waiting: Waiting) -> bool:
        """Put a task that was held into the outbox.

        False when its arguments are too large for a message, or what it takes lies in a blob.
        Raises `ConfigurationError` for one that can never be sent, OSError for a value that cannot be read.
        """
        submission, entry = waiting.submission, waiting.entry
        if self.values.has_to_wait(waiting):
            return False
        self._fill(submission)
        item = self._encoder.inline(submission, entry, waiting.runs_with)
        if item is None:
            return False
        self._release(submission, entry, item, {})
        return True

    async def release_by_reference(self, waiting: Waiting) -> None:
        """Put a task into the outbox, for which `release` was not enough. Raises as that does.

        Also raises `FileMissing`, and `StorageError` when trying again does not help.
        """
        marks = await self.values.marks(waiting)
        paths = await self._files.paths(waiting)
        await self._files.store_places(waiting)
        if waiting.entry.done:
            self.keep_unsent(waiting)
            return
        self._fill(waiting.submission, marks, paths)
        item = self._encoder.inline(waiting.submission, waiting.entry, waiting.runs_with)
        if item is not None:
            self._release(waiting.submission, waiting.entry, item, marks)
            return
        backoff = Backoff()
        while True:
            try:
                reference = await self._encoder.store_arguments(waiting.submission)
            except StorageError as error:
                if not error.retryable:
                    raise
                self._context.notices.warn(f"the arguments of a task are not stored yet: {error}")
                await backoff.wait()
            else:
                break
        entry = waiting.entry
        if entry.done:
            self._context.delete_later(self._context.runtime.ctl, reference.blob, "delete arguments")
            return
        item = self._encoder.by_reference(waiting.submission, entry, waiting.runs_with, reference)
        self._release(waiting.submission, entry, item, marks)

    def keep_unsent(self, waiting: Waiting) -> None:
        """Keep the arguments of a task that is never sent, with the tasks and files that it waited for."""
        submission = waiting.submission
        if not submission.inputs:
            self._encoder.keep_arguments(submission, waiting.entry)
            return
        assert isinstance(submission.encoded, bytes)
        handles = [shown(each, self._task_of(each.entry)) for each in submission.inputs]
        waiting.entry.arguments = KeptArguments(submission.encoded, self.classes, {}, handles.__getitem__)

    def _fill(
        self,
        submission: Submission,
        marks: Mapping[Entry, ValueMark] = _NONE,
        paths: Mapping[TaskInput, Any] = _NONE,
    ) -> None:
        """Put values in the places of tasks, and encode the arguments again. Idempotent.

        `marks`: of values that the agent fetches. `paths`: what takes the places of files.
        """
        if not submission.inputs:
            return
        assert isinstance(submission.encoded, bytes)
        values = [
            paths[each]
            if each.file is not None
            else marks[each.entry]
            if each.entry in marks
            else self._outcomes.passed_value(each.entry)
            for each in submission.inputs
        ]
        submission.arguments = KeptArguments(submission.encoded, self.classes, {}, values.__getitem__).open()
        submission.encoded = None
        submission.inputs = ()
        if marks:
            submission.encoded = arguments.encode(
                submission.arguments, submission.command, self.classes, mark=number_of
            )
        elif not arguments.are_plain(submission.arguments):
            submission.prepare(self.classes)

    def _release(
        self, submission: Submission, entry: Entry, item: bytes, marks: Mapping[Entry, ValueMark]
    ) -> None:
        """Put a task into the outbox. Of values that its agent fetches, the result shows where they lie."""
        if marks:
            data = arguments.in_blob(submission.arguments, submission.encoded)
            shown = {mark.number: self.values.stored(mark) for mark in marks.values()}
            entry.arguments = KeptArguments(data, self.classes, {}, shown.__getitem__)
        else:
            self._encoder.keep_arguments(submission, entry)
        self._context.tracker.release(entry, item)
        self._wake_sender()

    # ---- entries

    def _new_entry(
        self,
        submission: Submission,
        index: int | None,
        on_done: Callable[[Entry], None] | None,
        begin_by: float | None,
    ) -> Entry:
        """Return the next task, to be added."""
        context = self._context
        sequence = context.tracker.next_sequence()
        return Entry(
            sequence=sequence,
            index=sequence if index is None else index,
            uid=wire.make_uid(context.incarnation, sequence),
            task_id=str(sequence) if submission.task_id is None else str(submission.task_id),
            command=submission.command,
            client=context.name,
            job=context.job_name,
            submitted_at=time.time(),
            tag=submission.tag,
            begin_by=begin_by,
            priority=self._priority_of(submission.priority),
            claimed=on_done is not None,
            on_done=on_done,
        )

    def _label(self, submission: Submission, entry: Entry) -> None:
        """Let the task be found by the label that the user gave it."""
        if submission.task_id is not None:
            self._context.tracker.labels[entry.task_id] = entry

    def _check_takes(self) -> None:
        self._context.lifetime.check_open()
        if self._refusal is not None:
            raise JobClosed(self._refusal)

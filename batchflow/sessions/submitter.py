"""Puts what a program submits into the outbox, as tasks."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import ConfigurationError, JobClosed, ProtocolError, StorageError
from batchflow.files import Files, collect, stored, upload
from batchflow.pools.spending.budgets import session_terms
from batchflow.protocol import layout, wire
from batchflow.protocol.budgets import session_ledger
from batchflow.protocol.values import arguments
from batchflow.protocol.values.kept import KeptArguments, keep
from batchflow.protocol.values.misfits import Undecodable
from batchflow.protocol.wire import Reference
from batchflow.sessions.records.submission import INLINE, MOST_BESIDE, Submission, is_duration
from batchflow.sessions.records.tracker import Entry, submit_failed_result
from batchflow.sessions.workflows.dependents import Dependents
from batchflow.sessions.workflows.graph import RunsWith, Waiting
from batchflow.sessions.workflows.inputs import EntryOf, TaskMarks, entries_of
from batchflow.support.backoff import Backoff

if TYPE_CHECKING:
    from batchflow.environments.session import SessionEnvironment
    from batchflow.environments.variables import SessionVariables
    from batchflow.functions.code import CodeStore
    from batchflow.model import Budget
    from batchflow.protocol.values.classes import BundleClasses
    from batchflow.protocol.values.received import ValueReader
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.settings import SessionSettings

_YIELD_EVERY: Final = 64
"""Number of submits after which the event loop gets a turn, so that tasks are sent meanwhile."""


def task_timeout(timeout: float | None, settings: SessionSettings) -> float | None:
    """Return the seconds that a session's tasks may run; None: without a limit. Raises `ConfigurationError`.

    `timeout`: what the session was made with; None stands for the settings'.
    """
    chosen = (settings.timeout or None) if timeout is None else timeout
    if chosen is not None and not is_duration(chosen):
        raise ConfigurationError(f"session: timeout is {timeout!r}; seconds above 0 are needed")
    return chosen


class Submitter:
    """Makes tasks of what is submitted, and waits for room in the outbox, never for readers of results."""

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        wake_sender: Callable[[], None],
        classes: BundleClasses,
        code: CodeStore,
        reader: ValueReader,
        environment: SessionEnvironment,
        variables: SessionVariables,
        *,
        entry_of: EntryOf,
        task_of: Callable[[Entry], Any],
        timeout: float | None,
        share_processes: bool,
        unpickle: bool,
        budget: Budget | None,
    ) -> None:
        """Make it for one session.

        `entry_of`: what a handle among arguments stands for. `task_of`: the handle of a task.
        `classes`: those of the session's files. `reader` opens what is stored. `timeout`: seconds that a task
        may run whose submission does not say; None: without a limit. `share_processes`: see `wire.TaskItem`.
        `unpickle`: whether pickles in results are opened.
        """
        self.classes = classes
        self._reader = reader
        self._unpickle = unpickle
        self._budget = budget
        self._terms: dict[str, Any] | None = None
        """The budget as it travels; None until it is known, and without one."""
        self._context = context
        self._outcomes = outcomes
        self._wake_sender = wake_sender
        self._settings = context.settings
        self._timeout = timeout
        self._share_processes = share_processes
        self._code = code
        self._environment = environment
        self._variables = variables
        self._entry_of = entry_of
        self._task_of = task_of
        self.dependents: Dependents = Dependents(outcomes, self)
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
        if self._budget is not None and self._terms is None:
            await self._make_terms(self._budget)
        if files is None:
            default = runtime.manifest.bundle
            bundle = await (upload([], runtime.ctl) if default is None else stored(default, runtime.ctl))
        else:
            bundle = await upload(await collect(files), runtime.ctl)
        self.bundle = bundle.hash
        self._runs_with = None
        self.classes.add(file.name for file in bundle.files)
        runtime.load.use_bundle(self._context.policy, bundle.hash)

    async def _make_terms(self, budget: Budget) -> None:
        context = self._context
        ledger = session_ledger(context.job_name, context.name, context.incarnation)
        self._terms = (await session_terms(context.runtime, budget, ledger)).fields()

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
        entry = self._new_entry(submission, index, on_done)
        if inputs:
            self._hold(Waiting(entry, submission, inputs, runs_with))
            return entry
        item = self._inline(submission, entry, runs_with)
        if item is None:
            reference = await self._store_arguments(submission, self._check_takes)
            entry = self._new_entry(submission, index, on_done)
            item = self._by_reference(submission, entry, runs_with, reference)
        entry.item = item
        self._keep(submission, entry)
        self._context.tracker.add(entry)
        self._label(submission, entry)
        if self._environment.failure is not None:
            self._outcomes.resolve(entry, submit_failed_result(entry, self._environment.failure))
            self._outcomes.change.notify()
        self._wake_sender()
        return entry

    def prepare(self, submissions: Sequence[Submission]) -> None:
        """Encode the arguments of several tasks. Raises `ArgumentNotSerializable`, which names the input.

        Texts and whole numbers can always be sent, and are encoded with the rest of their task.
        """
        for index, submission in enumerate(submissions):
            if not arguments.are_plain(submission.arguments):
                self._prepare(submission, index)

    def _prepare(self, submission: Submission, index: int | None) -> None:
        submission.prepare(self.classes, index=index, marks=TaskMarks(self._entry_of))

    def _inputs_of(self, submission: Submission) -> tuple[Entry, ...]:
        """Return what the task waits for, each once. Raises `InvalidDependency`."""
        if not submission.inputs and not submission.after:
            return ()
        after = entries_of(submission.after, self._entry_of) if submission.after else ()
        return tuple(dict.fromkeys([*submission.inputs, *after]))

    # ---- tasks that wait for others

    def _hold(self, waiting: Waiting) -> None:
        """Hold a task until what it waits for has ended, with its arguments as they are now."""
        submission = waiting.submission
        if submission.encoded is not None:
            submission.encoded = arguments.in_blob(submission.arguments, submission.encoded)
            submission.arguments = []
            waiting.size = len(submission.encoded)
        self._context.tracker.hold(waiting.entry)
        self._label(submission, waiting.entry)
        if self._environment.failure is None:
            self.dependents.hold(waiting)
            return
        self.keep_unsent(waiting)
        self._outcomes.resolve(waiting.entry, submit_failed_result(waiting.entry, self._environment.failure))
        self._outcomes.change.notify()

    def has_room(self) -> bool:
        """Return whether the outbox takes one more task."""
        settings, tracker = self._settings, self._context.tracker
        return tracker.sending < settings.outbox and tracker.outbox_bytes < settings.outbox_bytes

    def _has_room_for_more(self) -> bool:
        """Return whether the session takes one more task. Those that wait count by their bytes alone."""
        size = self._context.tracker.outbox_bytes + self.dependents.graph.held_bytes
        return self.has_room() and size < self._settings.outbox_bytes

    def release(self, waiting: Waiting) -> bool:
        """Put a task that was held into the outbox. False when its arguments are too large for a message.

        Raises `ConfigurationError` for one that can never be sent, OSError for a value that cannot be read.
        """
        submission, entry = waiting.submission, waiting.entry
        self._fill(submission)
        item = self._inline(submission, entry, waiting.runs_with)
        if item is None:
            return False
        self._release(submission, entry, item)
        return True

    async def release_by_reference(self, waiting: Waiting) -> None:
        """Store the arguments of a task, then put it into the outbox. Raises as `release` does.

        Also raises `StorageError`, when trying again does not help.
        """
        backoff = Backoff()
        while True:
            try:
                reference = await self._store_arguments(waiting.submission)
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
        item = self._by_reference(waiting.submission, entry, waiting.runs_with, reference)
        self._release(waiting.submission, entry, item)

    def keep_unsent(self, waiting: Waiting) -> None:
        """Keep the arguments of a task that is never sent, with the tasks in place of their values."""
        submission = waiting.submission
        if not submission.inputs:
            self._keep(submission, waiting.entry)
            return
        assert isinstance(submission.encoded, bytes)
        handles = [self._task_of(entry) for entry in submission.inputs]
        waiting.entry.arguments = KeptArguments(submission.encoded, self.classes, {}, handles.__getitem__)

    def _fill(self, submission: Submission) -> None:
        """Put values in the places of tasks, and encode the arguments again. Idempotent."""
        if not submission.inputs:
            return
        assert isinstance(submission.encoded, bytes)
        values = [self._outcomes.passed_value(entry) for entry in submission.inputs]
        submission.arguments = KeptArguments(submission.encoded, self.classes, {}, values.__getitem__).open()
        submission.encoded = None
        submission.inputs = ()
        if not arguments.are_plain(submission.arguments):
            submission.prepare(self.classes)

    def _release(self, submission: Submission, entry: Entry, item: bytes) -> None:
        self._keep(submission, entry)
        self._context.tracker.release(entry, item)
        self._wake_sender()

    # ---- what travels

    def _inline(self, submission: Submission, entry: Entry, runs_with: RunsWith) -> bytes | None:
        """Return the task as it travels with its arguments; None when these are too large for a message.

        Raises `ConfigurationError` when it is too large without them.
        """
        if arguments.size(submission.encoded) <= INLINE:
            item = self._encoded(submission, entry, runs_with, None)
            if len(item) <= INLINE:
                return item
        beside = len(self._encoded(submission, entry, runs_with, Reference("", 0)))
        if beside > MOST_BESIDE:
            raise ConfigurationError(
                f"{submission.command}: tag and labels are {beside} bytes, at most {MOST_BESIDE} are "
                "allowed; pass what is large as an argument"
            )
        return None

    def _by_reference(
        self, submission: Submission, entry: Entry, runs_with: RunsWith, reference: Reference
    ) -> bytes:
        entry.arguments_blob = reference.blob
        return self._encoded(submission, entry, runs_with, reference)

    def _encoded(
        self, submission: Submission, entry: Entry, runs_with: RunsWith, reference: Reference | None
    ) -> bytes:
        item: bytes | None = None
        while item is None:
            item = submission.encode(
                client=entry.client,
                job=entry.job,
                task_id=entry.task_id,
                uid=entry.uid,
                bundle=runs_with.bundle,
                now=entry.submitted_at,
                reference=reference,
                pickle=runs_with.pickle,
                environment=runs_with.environment,
                variables=self._variables.blob,
                timeout=self._timeout,
                share_processes=self._share_processes,
                unpickle=self._unpickle,
                budget=self._terms,
            )
            if item is None:
                submission.prepare(self.classes)
        return item

    def _new_entry(
        self, submission: Submission, index: int | None, on_done: Callable[[Entry], None] | None
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
            claimed=on_done is not None,
            on_done=on_done,
        )

    def _label(self, submission: Submission, entry: Entry) -> None:
        """Let the task be found by the label that the user gave it."""
        if submission.task_id is not None:
            self._context.tracker.labels[entry.task_id] = entry

    async def _store_arguments(
        self, submission: Submission, check: Callable[[], None] = lambda: None
    ) -> Reference:
        """Store the arguments of a task. Raises `StorageError`, and what `check` raises afterwards."""
        context = self._context
        data = arguments.in_blob(submission.arguments, submission.encoded)
        name = f"{context.incarnation}-{uuid.uuid4().hex}"
        blob = layout.arguments_blob(context.job_name, context.name, name)
        try:
            await context.runtime.ctl.put(blob, data)
            check()
        except BaseException:
            if not context.lifetime.ended:
                context.delete_later(context.runtime.ctl, blob, "delete arguments")
            raise
        return Reference(blob, len(data))

    def _keep(self, submission: Submission, entry: Entry) -> None:
        """Keep what the result will show of the arguments."""
        blob = entry.arguments_blob
        if submission.encoded is None and blob is None:
            entry.arguments = submission.arguments
            return
        fetch = None if blob is None else partial(self._fetch_argument, blob)
        entry.arguments = keep(submission.arguments, submission.encoded, self.classes, fetch)

    async def _fetch_argument(self, blob: str, place: int) -> Any:
        """Return one of the arguments that lie in a blob. Raises `StorageError`, `ProtocolError`."""
        stored = await self._context.runtime.ctl.get(blob)
        try:
            return self._reader.decode(stored.data)[place]
        except (Undecodable, LookupError, TypeError) as error:
            raise ProtocolError(f"the arguments in {blob} cannot be read here: {error}") from error

    def _check_takes(self) -> None:
        self._context.lifetime.check_open()
        if self._refusal is not None:
            raise JobClosed(self._refusal)

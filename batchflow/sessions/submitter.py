"""Puts what a program submits into the outbox, as tasks."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import ConfigurationError, JobClosed, ProtocolError
from batchflow.files import Files, collect, stored, upload
from batchflow.protocol import layout, wire
from batchflow.protocol.values import arguments
from batchflow.protocol.values.kept import KeptArguments, keep
from batchflow.protocol.values.misfits import Undecodable
from batchflow.protocol.wire import Reference
from batchflow.sessions.records.tracker import Entry, submit_failed_result
from batchflow.sessions.submission import INLINE, MOST_BESIDE, Submission, is_duration

if TYPE_CHECKING:
    from batchflow.environments.session import SessionEnvironment
    from batchflow.functions.code import CodeStore, FunctionBundles
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
        *,
        timeout: float | None,
        share_processes: bool,
        unpickle: bool,
    ) -> None:
        """Make it for one session.

        `classes`: those of the session's files. `reader` opens what is stored. `timeout`: seconds that a task
        may run whose submission does not say; None: without a limit. `share_processes`: see `wire.TaskItem`.
        `unpickle`: whether pickles in results are opened.
        """
        self.classes = classes
        self._reader = reader
        self._unpickle = unpickle
        self._context = context
        self._outcomes = outcomes
        self._wake_sender = wake_sender
        self._settings = context.settings
        self._timeout = timeout
        self._share_processes = share_processes
        self._code = code
        self._environment = environment
        self.bundle = ""
        """The hash of the files that tasks submitted from now on run with."""
        self._refusal: str | None = None
        """Why no new tasks are taken, although the session lives."""

    async def use(self, files: Files | None) -> None:
        """Let the tasks that are submitted from now on run with these files; None: the pool's default."""
        runtime = self._context.runtime
        if files is None:
            await runtime.refresh()  # another client may have repurposed it
            default = runtime.manifest.bundle
            bundle = await (upload([], runtime.ctl) if default is None else stored(default, runtime.ctl))
        else:
            bundle = await upload(await collect(files), runtime.ctl)
        self.bundle = bundle.hash
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
        if submission.encoded is None and not arguments.are_plain(submission.arguments):
            submission.prepare(self.classes, index=index)
        if self._context.tracker.next_sequence() % _YIELD_EVERY == _YIELD_EVERY - 1:
            await asyncio.sleep(0)
        self._check_takes()
        if not self._environment.settled:
            await self._environment.wait()
            self._check_takes()
        code = None
        if submission.function is not None:
            code = await self._code.bundles(submission.function, self.bundle)
            self._check_takes()
        while not self._has_room():
            await self._outcomes.next_room()
            self._check_takes()
        entry = None
        if arguments.size(submission.encoded) <= INLINE:
            entry = self._entry(submission, None, index, on_done, code)
        if entry is None or entry.item is None or len(entry.item) > INLINE:
            self._check_beside(submission)
            reference = await self._store_arguments(
                arguments.in_blob(submission.arguments, submission.encoded)
            )
            entry = self._entry(submission, reference, index, on_done, code)
        if submission.encoded is None and entry.arguments_blob is None:
            entry.arguments = submission.arguments
        else:
            entry.arguments = self._kept(submission, entry.arguments_blob)
        self._context.tracker.add(entry)
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
                submission.prepare(self.classes, index=index)

    def _check_beside(self, submission: Submission) -> None:
        """Raises `ConfigurationError` for a task that is too large without its arguments."""
        size = len(self._entry(submission, Reference("", 0), None, None, None).item or b"")
        if size > MOST_BESIDE:
            raise ConfigurationError(
                f"{submission.command}: tag and labels are {size} bytes, at most {MOST_BESIDE} are "
                "allowed; pass what is large as an argument"
            )

    def _has_room(self) -> bool:
        settings, tracker = self._settings, self._context.tracker
        return tracker.sending < settings.outbox and tracker.outbox_bytes < settings.outbox_bytes

    def _entry(
        self,
        submission: Submission,
        reference: Reference | None,
        index: int | None,
        on_done: Callable[[Entry], None] | None,
        code: FunctionBundles | None,
    ) -> Entry:
        """Return the next task, ready to be added. `code`: of a task that calls a function."""
        context = self._context
        sequence = context.tracker.next_sequence()
        uid = wire.make_uid(context.incarnation, sequence)
        task_id = str(sequence) if submission.task_id is None else str(submission.task_id)
        now = time.time()
        item: bytes | None = None
        while item is None:
            item = submission.encode(
                client=context.name,
                job=context.job_name,
                task_id=task_id,
                uid=uid,
                bundle=self.bundle if code is None else code.files,
                now=now,
                reference=reference,
                pickle=None if code is None else code.pickle,
                environment=self._environment.bundle,
                timeout=self._timeout,
                share_processes=self._share_processes,
                unpickle=self._unpickle,
            )
            if item is None:
                submission.prepare(self.classes, index=index)
        return Entry(
            sequence=sequence,
            index=sequence if index is None else index,
            uid=uid,
            task_id=task_id,
            command=submission.command,
            client=context.name,
            job=context.job_name,
            submitted_at=now,
            tag=submission.tag,
            item=item,
            claimed=on_done is not None,
            arguments_blob=None if reference is None else reference.blob,
            on_done=on_done,
        )

    async def _store_arguments(self, data: bytes) -> Reference:
        context = self._context
        name = f"{context.incarnation}-{uuid.uuid4().hex}"
        blob = layout.arguments_blob(context.job_name, context.name, name)
        try:
            await context.runtime.ctl.put(blob, data)
            self._check_takes()
        except BaseException:
            if not context.lifetime.ended:
                context.delete_later(context.runtime.ctl, blob, "delete arguments")
            raise
        return Reference(blob, len(data))

    def _kept(self, submission: Submission, blob: str | None) -> list[Any] | KeptArguments:
        """Return what the result will show of the arguments."""
        fetch = None if blob is None else partial(self._fetch_argument, blob)
        return keep(submission.arguments, submission.encoded, self.classes, fetch)

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

"""Makes of a submission what travels, and what its result shows of the arguments."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.pools.spending.budgets import session_terms
from batchflow.protocol import layout
from batchflow.protocol.budgets import session_ledger
from batchflow.protocol.values import arguments
from batchflow.protocol.values.kept import keep
from batchflow.protocol.values.misfits import Undecodable
from batchflow.protocol.wire import Reference
from batchflow.sessions.records.submission import INLINE, MOST_BESIDE, is_duration

if TYPE_CHECKING:
    from batchflow.environments.variables import SessionVariables
    from batchflow.protocol.values.classes import BundleClasses
    from batchflow.protocol.values.received import ValueReader
    from batchflow.sessions.options import SessionOptions
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.submission import Submission
    from batchflow.sessions.records.tracker import Entry
    from batchflow.sessions.workflows.graph import RunsWith
    from batchflow.settings import SessionSettings


def task_timeout(timeout: float | None, settings: SessionSettings) -> float | None:
    """Return the seconds that a session's tasks may run; None: without a limit. Raises `ConfigurationError`.

    `timeout`: what the session was made with; None stands for the settings'.
    """
    chosen = (settings.timeout or None) if timeout is None else timeout
    if chosen is not None and not is_duration(chosen):
        raise ConfigurationError(f"session: timeout is {timeout!r}; seconds above 0 are needed")
    return chosen


class TaskEncoder:
    """Encodes the tasks of one session, and stores arguments that are too large for a message."""

    def __init__(
        self,
        context: SessionContext,
        options: SessionOptions,
        classes: BundleClasses,
        reader: ValueReader,
        variables: SessionVariables,
    ) -> None:
        """`classes`: those of the session's files. `reader` opens what is stored.

        Raises `ConfigurationError` for a timeout that is none.
        """
        self._context = context
        self._options = options
        self._classes = classes
        self._reader = reader
        self._variables = variables
        self._timeout = task_timeout(options.timeout, context.settings)
        shared = options.share_processes
        self._share_processes: bool = context.runtime.manifest.share_processes if shared is None else shared
        self._terms: dict[str, Any] | None = None
        """The budget as it travels; None until it is known, and without one."""

    async def make_terms(self) -> None:
        """Work out what the session's budget allows, once. Raises `ConfigurationError`, `PoolError`."""
        context, budget = self._context, self._options.budget
        if budget is not None and self._terms is None:
            ledger = session_ledger(context.job_name, context.name, context.incarnation)
            self._terms = (await session_terms(context.runtime, budget, ledger)).fields()

    def inline(self, submission: Submission, entry: Entry, runs_with: RunsWith) -> bytes | None:
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

    def by_reference(
        self, submission: Submission, entry: Entry, runs_with: RunsWith, reference: Reference
    ) -> bytes:
        """Return the task as it travels when its arguments are in a blob."""
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
                unpickle=self._options.unpickle,
                budget=self._terms,
                trace=None if entry.trace is None else entry.trace.traceparent,
            )
            if item is None:
                submission.prepare(self._classes)
        return item

    async def store_arguments(
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

    def keep_arguments(self, submission: Submission, entry: Entry) -> None:
        """Keep what the result will show of the arguments, and the options."""
        entry.options = submission.options()
        blob = entry.arguments_blob
        if submission.encoded is None and blob is None:
            entry.arguments = submission.arguments
            return
        fetch = None if blob is None else partial(self._fetch_argument, blob)
        entry.arguments = keep(submission.arguments, submission.encoded, self._classes, fetch)

    async def _fetch_argument(self, blob: str, place: int) -> Any:
        """Return one of the arguments that lie in a blob. Raises `StorageError`, `ProtocolError`."""
        stored = await self._context.runtime.ctl.get(blob)
        try:
            return self._reader.decode(stored.data)[place]
        except (Undecodable, LookupError, TypeError) as error:
            raise ProtocolError(f"the arguments in {blob} cannot be read here: {error}") from error

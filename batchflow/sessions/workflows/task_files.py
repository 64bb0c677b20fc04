"""Passes files that tasks left to the tasks that take them, without moving them through the client.

A task leaves its files in blobs. The task that takes one gets a signature for that one blob, and its agent
brings the file into the working directory. A client that cannot sign copies the file to where agents read.

The files of tasks stay until their job is deleted, so nothing has to keep them for those that wait. Copies
are deleted when the task that takes them has succeeded. Those of a failed task may be needed to run it again:
a sweep removes them.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from batchflow.errors import ConfigurationError, StorageError
from batchflow.model import Status
from batchflow.protocol import layout
from batchflow.protocol.passed import VALID, PassedFile, path_of, places_document
from batchflow.support.backoff import Backoff

if TYPE_CHECKING:
    from batchflow.model import Result
    from batchflow.protocol.wire import ResultItem
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.submission import TaskInput
    from batchflow.sessions.records.tracker import Entry
    from batchflow.sessions.workflows.graph import Waiting

PLACES: Final = 16 * 1024
"""Bytes of the places of values and files that travel with a task. More are stored in a blob."""
_MOST_NAMES: Final = 20
"""Files of a task that an error names."""

T = TypeVar("T")


class FileMissing(Exception):
    """A task did not leave a file that another one takes."""


class FilePasser:
    """Has the files in their places that a task takes from other tasks."""

    def __init__(
        self, context: SessionContext, outcomes: Outcomes, agents_refuse: Callable[[], bool]
    ) -> None:
        """`agents_refuse`: whether an agent lives that brings no files."""
        self._context = context
        self._outcomes = outcomes
        self._agents_refuse = agents_refuse
        self._may_sign = not context.runtime.connections.restricted
        self._blobs: dict[str, list[str]] = {}
        """The blobs that were stored for tasks, by the uids of these tasks."""

    async def paths(self, waiting: Waiting) -> dict[TaskInput, str | Result]:
        """Return what takes the places of files: the paths at which the task finds them.

        With `on_failure="pass"` a file that is missing is a failed `Result`. Where the files lie becomes part
        of the submission. Raises `FileMissing`, `ConfigurationError`, `StorageError`.
        """
        submission = waiting.submission
        places: list[PassedFile] = []
        found: dict[TaskInput, str | Result] = {}
        for each in submission.inputs:
            if each.file is None:
                continue
            entry, name = each.entry, each.file
            if entry.status is not Status.SUCCEEDED:
                await self._outcomes.until_here(entry)
                found[each] = self._outcomes.passed_value(entry)
            elif name not in (item := entry.read()).files:
                found[each] = self._missing(entry, item, name, passes=waiting.passes_failures)
            else:
                if self._agents_refuse():
                    raise ConfigurationError(
                        f"it takes file {name!r} of task {entry.task_id}, and agents of an earlier batchflow "
                        "bring no files: start them again with pool.stop() and pool.start()"
                    )
                found[each] = path_of(len(places), name)
                places.append(await self._place(waiting.entry, entry, item, name))
        submission.files = places
        return found

    async def store_places(self, waiting: Waiting) -> None:
        """Store where values and files lie if that is too much for a message. Raises `StorageError`."""
        submission = waiting.submission
        submission.places = None
        if not (submission.passed or submission.files) or self._agents_refuse():
            return
        document = places_document(submission.passed, submission.files)
        if len(document) > PLACES:
            blob = self._new_blob(waiting.entry)
            await self._patiently(lambda: self._context.runtime.ctl.put(blob, document))
            submission.places = blob
            self._drop_if_done(waiting.entry)

    def ended(self, entry: Entry) -> None:
        """Note that a task has its outcome: it takes no file any more."""
        for blob in self._blobs.pop(entry.uid, ()):
            if entry.status is not Status.FAILED:
                self._context.delete_later(self._context.runtime.ctl, blob, "delete what a task took")

    def _missing(self, entry: Entry, item: ResultItem, name: str, *, passes: bool) -> Result:
        left = ", ".join(item.files[:_MOST_NAMES]) or "none"
        if (more := len(item.files) - _MOST_NAMES) > 0:
            left += f" and {more} more"
        text = f"task {entry.task_id} ({entry.command}) left no file {name!r} in outputs/; it left: {left}"
        if not passes:
            raise FileMissing(f"it waited for a file that is missing: {text}")
        failed = replace(item, status=Status.FAILED, value=None, error=text, kind="DependencyFailed")
        return replace(entry.result(failed), args=None, tag=None, download=None)

    async def _place(self, taker: Entry, entry: Entry, item: ResultItem, name: str) -> PassedFile:
        """Return how an agent reads a file of a task that has succeeded."""
        runtime = self._context.runtime
        blob = layout.outputs_prefix(entry.job, entry.client, entry.uid, item.folder) + name
        if self._may_sign:
            try:
                signature = await self._patiently(
                    lambda: runtime.connections.storage.blob_signature(runtime.out.name, blob, VALID)
                )
            except StorageError as error:
                self._may_sign = False
                self._context.notices.warn(f"files travel through this client: {error}")
            else:
                return PassedFile(name, blob, signature)
        return PassedFile(name, await self._copy(taker, blob), None)

    async def _copy(self, taker: Entry, blob: str) -> str:
        """Copy a file to where agents read; return its blob."""
        runtime = self._context.runtime
        copy = self._new_blob(taker)
        with tempfile.TemporaryDirectory(prefix="batchflow-") as folder:
            path = Path(folder) / "file"
            await self._patiently(lambda: runtime.out.download(blob, path))
            await self._patiently(lambda: runtime.ctl.upload(copy, path))
        self._drop_if_done(taker)
        return copy

    def _new_blob(self, taker: Entry) -> str:
        """Return the name of a blob that stays until a task has ended."""
        context = self._context
        name = f"{context.incarnation}-{uuid.uuid4().hex}"
        blob = layout.arguments_blob(context.job_name, context.name, name)
        self._blobs.setdefault(taker.uid, []).append(blob)
        return blob

    def _drop_if_done(self, taker: Entry) -> None:
        """Delete what was stored for a task that was cancelled meanwhile."""
        if taker.done:
            self.ended(taker)

    async def _patiently(self, request: Callable[[], Awaitable[T]]) -> T:
        """Try again while storage is away. Raises `StorageError` when that does not help."""
        backoff = Backoff()
        while True:
            try:
                return await request()
            except StorageError as error:
                if not error.retryable:
                    raise
                self._context.notices.warn(f"a file cannot be passed on yet: {error}")
                await backoff.wait()


def shown(found: TaskInput, handle: Any) -> Any:
    """Return the handle that stood in the arguments. `handle`: of the task."""
    return handle if found.file is None else handle.file(found.file)

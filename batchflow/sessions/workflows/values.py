"""Passes large values from task to task, without moving them through the client.

A result above the limit of a message lies in a blob. Where tasks wait for it, the session does not fetch it:
the task that takes the value gets a signature for that one blob, and its agent fetches it. The client
fetches it when a call asks for the value. Where that cannot be done (the client may not sign, an agent is of
an earlier version, a program takes the value as words), the client copies the value as it does small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from batchflow.errors import StorageError
from batchflow.model import Status, StoredArgument
from batchflow.protocol.passed import VALID, PassedValue
from batchflow.sessions.records.blob_uses import BlobUses
from batchflow.support.backoff import Backoff
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry
    from batchflow.sessions.workflows.graph import Waiting


@frozen
class ValueMark:
    """Stands among arguments for a value that the agent fetches."""

    number: int
    entry: Entry


def number_of(value: Any) -> int | None:
    """Return the number of a value that the agent fetches; None for anything else."""
    return value.number if isinstance(value, ValueMark) else None


class ValuePasser:
    """Decides for each input of a task whether its value goes by reference, and signs for it."""

    def __init__(
        self, context: SessionContext, outcomes: Outcomes, uses: BlobUses, agents_take: Callable[[], bool]
    ) -> None:
        """`agents_take`: whether all agents that live fetch such values."""
        self._context = context
        self._outcomes = outcomes
        self._uses = uses
        self._agents_take = agents_take
        self._may_sign = not context.runtime.connections.restricted

    # ---- until when blobs stay

    def needed(self, entry: Entry, waiting: Iterable[Waiting]) -> None:
        """Keep the value of a task that has ended for those that take it."""
        if entry.reference is None or entry.is_here:
            return
        for each in waiting:
            if any(needed.entry is entry and needed.file is None for needed in each.submission.inputs):
                self._uses.need(entry.reference.blob, each.entry.uid)

    def ended(self, entry: Entry) -> None:
        """Note that a task has its outcome: it takes no value any more."""
        self._uses.free(entry.uid)

    # ---- what takes the places of values

    def has_to_wait(self, waiting: Waiting) -> bool:
        """Return whether what a task takes is in a blob, so that it cannot be sent at once."""
        return any(
            each.file is not None or self._lies(each.entry, waiting) for each in waiting.submission.inputs
        )

    def _lies(self, entry: Entry, waiting: Waiting) -> bool:
        reference = entry.reference
        return reference is not None and (
            not entry.is_here or self._uses.needs(reference.blob, waiting.entry.uid)
        )

    async def marks(self, waiting: Waiting) -> dict[Entry, ValueMark]:
        """Sign for the values that a task takes from where they lie, and fetch all others that do.

        The signatures become those of the submission. Raises `StorageError`, `SessionClosed`.
        """
        submission = waiting.submission
        marks: dict[Entry, ValueMark] = {}
        passed: list[PassedValue] = []
        for each in submission.inputs:
            entry = each.entry
            if each.file is not None or not self._lies(entry, waiting):
                continue
            if (place := await self._signed(entry, waiting)) is not None:
                marks[entry] = ValueMark(len(passed), entry)
                passed.append(place)
            elif not entry.is_here:
                await self._outcomes.until_here(entry)
        submission.passed = passed
        return marks

    async def _signed(self, entry: Entry, waiting: Waiting) -> PassedValue | None:
        """Return how an agent reads a value; None when it has to travel with the task."""
        submission, reference, runtime = waiting.submission, entry.reference, self._context.runtime
        is_python = submission.function is not None or submission.command.endswith(".py")
        if (
            reference is None
            or entry.status is not Status.SUCCEEDED
            or not (is_python and self._may_sign and self._agents_take())
        ):
            return None
        backoff = Backoff()
        while True:
            try:
                signature = await runtime.connections.storage.blob_signature(
                    runtime.out.name, reference.blob, VALID
                )
            except StorageError as error:
                if not error.retryable:
                    self._may_sign = False
                    self._context.notices.warn(f"values travel through this client: {error}")
                    return None
                self._context.notices.warn(f"a value cannot be passed on yet: {error}")
                await backoff.wait()
            else:
                return PassedValue(reference.blob, reference.size, signature)

    def stored(self, mark: ValueMark) -> StoredArgument:
        """Return what a result shows of an argument that was passed so."""
        reference = mark.entry.reference
        assert reference is not None
        what = f"the value of task {mark.entry.task_id}"
        return StoredArgument(what, reference.size, partial(self._fetch, mark.entry))

    async def _fetch(self, entry: Entry) -> Any:
        """Return a value that was passed. Raises the failure of one that is gone."""
        await self._outcomes.until_here(entry)
        return entry.result(entry.read()).unwrap()

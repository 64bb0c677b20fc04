"""Fetches the values of results that lie in blobs, and deletes these blobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio
import orjson

from batchflow.errors import BlobNotFound, StorageError
from batchflow.protocol.values.encoding import is_container
from batchflow.protocol.values.received import unreadable
from batchflow.sessions.records.blob_uses import BlobUses
from batchflow.support.backoff import Backoff
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.protocol.values.received import ValueReader
    from batchflow.protocol.wire import Reference, ResultItem
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry

_MOST_FETCHES: Final = 8
"""Results by reference that are fetched at once."""


@frozen
class _Unfetched:
    """Needs the blob of an outcome until its value was fetched."""

    uid: str


class ResultValues:
    """The values of one session's results that lie in blobs."""

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        reader: ValueReader,
        *,
        is_ours: Callable[[], bool],
    ) -> None:
        """Fetch the values that `outcomes` ask for.

        `reader` opens values. `is_ours`: whether no other session can hold the mailbox.
        """
        self._context = context
        self._outcomes = outcomes
        self._reader = reader
        self._is_ours = is_ours
        self._fetches = anyio.CapacityLimiter(_MOST_FETCHES)
        self._health = context.problems.watch("storage", "results could not be fetched from storage")
        self.uses: BlobUses = BlobUses(
            lambda blob: context.delete_later(context.runtime.out, blob, "delete a result's blob")
        )
        """Until when the blobs are kept."""
        outcomes.bring = self._bring_later

    def keep(self, entry: Entry) -> None:
        """Keep the blob of an outcome until its value was fetched."""
        if entry.reference is not None and not entry.is_here:
            self.uses.need(entry.reference.blob, _Unfetched(entry.uid))

    def _bring_later(self, entry: Entry) -> None:
        self._context.background.start(self._bring(entry), f"fetch the result of {entry.task_id}")

    async def _bring(self, entry: Entry) -> None:
        item, reference = entry.read(), entry.reference
        assert reference is not None
        try:
            whole = await self.fetch(item, reference)
        except BlobNotFound as error:
            whole = unreadable(item, f"its result cannot be fetched: {error}")
        self._context.tracker.fetched(entry, whole)
        self.uses.free(_Unfetched(entry.uid))
        self._outcomes.brought(entry)

    def let_go(self) -> None:
        """Delete the blobs that nothing needs any more, because the session ends."""
        self.uses.free_each(_Unfetched)

    async def fetch(self, item: ResultItem, reference: Reference) -> ResultItem:
        """Return a result with its value. Raises `BlobNotFound` while no other holder can have deleted it."""
        async with self._fetches:
            return await self._fetch(item, reference)

    async def _fetch(self, item: ResultItem, reference: Reference) -> ResultItem:
        backoff = Backoff()
        while True:
            try:
                blob = await self._context.runtime.out.get(reference.blob)
                self._health.worked()
                if is_container(blob.data):
                    return self._reader.opened(item, blob.data)
                return replace(item, value=orjson.loads(blob.data))
            except BlobNotFound:
                if self._is_ours():
                    raise
                # Until it is known which client holds the mailbox, because another one may have deleted it.
                await backoff.wait()
            except StorageError as error:
                if not error.retryable:
                    return unreadable(item, f"its result cannot be fetched: {error}")
                self._health.failed(error)
                await backoff.wait()
            except orjson.JSONDecodeError as error:
                return unreadable(item, f"its result is not JSON: {error}")

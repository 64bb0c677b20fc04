"""A session's way in: what a program submits becomes a task in the outbox."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from batchflow.errors import ConfigurationError, JobClosed
from batchflow.protocol import layout, wire
from batchflow.protocol.wire import Reference
from batchflow.sessions.submission import INLINE, Submission, is_duration
from batchflow.sessions.tracker import Entry, Tracker

if TYPE_CHECKING:
    from batchflow.session import Session

_YIELD_EVERY: Final = 64
"""Submits after which the event loop gets a turn, so that what was submitted leaves meanwhile."""


class Submitter:
    """Makes tasks of what is submitted, and waits for room in the outbox, never for readers of results."""

    def __init__(self, session: Session, timeout: float | None) -> None:
        """`timeout`: seconds that a task may run whose submission does not say; None: the settings'."""
        settings = session.pool.runtime.settings.session
        self._session = session
        self._settings = settings
        self._timeout = (settings.timeout or None) if timeout is None else timeout
        if self._timeout is not None and not is_duration(self._timeout):
            raise ConfigurationError(f"session: timeout is {timeout!r}; seconds above 0 are needed")
        self.bundle = ""
        """The hash of the files that tasks submitted from now on run with."""
        self.refusal: str | None = None
        """Why no new tasks are taken, although the session lives."""
        self.burst_is_over = False
        """Whether what was submitted last was the end of a list, or of whatever else a map was made of."""

    async def submit(self, wish: Submission) -> Entry:
        """`enqueue`, and a turn for the event loop now and then. Cancelled, there may be a task or none."""
        entry = await self.enqueue(wish)
        if self.is_out_of_breath(entry):
            await asyncio.sleep(0)
        return entry

    def is_out_of_breath(self, entry: Entry) -> bool:
        """Whether the event loop shall have a turn after this one, so that what was submitted leaves."""
        return entry.sequence % _YIELD_EVERY == _YIELD_EVERY - 1

    async def enqueue(
        self, wish: Submission, *, index: int | None = None, on_done: Callable[[Entry], None] | None = None
    ) -> Entry:
        """Into the outbox. Once it is there nothing is awaited any more: cancelled, there is no task."""
        session = self._session
        self._check_takes()
        while not self._has_room(session._tracker):
            await session._next_room()
            self._check_takes()
        entry = self._entry(wish, None, index, on_done)
        assert entry.item is not None
        if len(entry.item) > INLINE:
            reference = await self._store_arguments(wish.encode_arguments(len(entry.item)))
            entry = self._entry(wish, reference, index, on_done)
        session._tracker.add(entry)
        session._outbox.wake()
        self.burst_is_over = False
        return entry

    def _has_room(self, tracker: Tracker) -> bool:
        settings = self._settings
        return tracker.sending < settings.outbox and tracker.outbox_bytes < settings.outbox_bytes

    def _entry(
        self,
        wish: Submission,
        reference: Reference | None,
        index: int | None,
        on_done: Callable[[Entry], None] | None,
    ) -> Entry:
        """The next task, ready to be added."""
        session = self._session
        sequence = session._tracker.next_sequence()
        item = wish.item(
            client=session.name,
            job=session.job_name,
            sequence=sequence,
            uid=wire.make_uid(session.incarnation, sequence),
            bundle=self.bundle,
            now=time.time(),
            reference=reference,
            timeout=self._timeout,
        )
        return Entry(
            sequence=sequence,
            index=sequence if index is None else index,
            uid=item.uid,
            task_id=item.task_id,
            command=item.command,
            client=item.client,
            job=item.job,
            submitted_at=item.submitted_at,
            tag=item.tag,
            item=wish.encode(item),
            claimed=on_done is not None,
            arguments_blob=None if reference is None else reference.blob,
            on_done=on_done,
        )

    async def _store_arguments(self, data: bytes) -> Reference:
        session = self._session
        name = f"{session.incarnation}-{uuid.uuid4().hex}"
        blob = layout.arguments_blob(session.job_name, session.name, name)
        try:
            await session.pool.runtime.ctl.put(blob, data)
            self._check_takes()
        except BaseException:
            if not session._ended:
                session._drop_later(session.pool.runtime.ctl, blob, "delete arguments")
            raise
        return Reference(blob, len(data))

    def _check_takes(self) -> None:
        self._session._check_open()
        if self.refusal is not None:
            raise JobClosed(self.refusal)

"""What the parts of one session share: made first, it knows none of them. And how far the session is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchflow.errors import SessionClosed
from batchflow.protocol import wire
from batchflow.protocol.packing import PackingPolicy
from batchflow.sessions.records.health import Problems
from batchflow.sessions.records.notices import Notices
from batchflow.sessions.records.stats import LinkCounter
from batchflow.sessions.records.stored_arguments import StoredArguments, delete_blob
from batchflow.sessions.records.task_traces import SessionTelemetry
from batchflow.sessions.records.tracker import Tracker
from batchflow.support.affinity import LoopAffinity
from batchflow.support.background import Background

if TYPE_CHECKING:
    from batchflow.model import Event
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.storage import Container
    from batchflow.settings import SessionSettings


class Lifetime:
    """The part of a session's state that decides whether a call on it still makes sense."""

    def __init__(
        self, *, affinity: LoopAffinity, is_opened: Callable[[], bool], is_closed: Callable[[], bool]
    ) -> None:
        """`is_opened`: stays true after the closing. `is_closed`: true as soon as the closing has begun."""
        self.affinity = affinity
        """The event loop that opened the session, in which everything of it lives."""
        self._is_opened = is_opened
        self._is_closed = is_closed
        self.reason = "closed"
        """Why the session closes: the text of `SessionClosed`."""
        self.ended = False
        """Whether no outcome comes any more."""
        self.job_deleted = False
        """Whether another client deleted the job: nothing of it is to remain."""

    @property
    def closed(self) -> bool:
        """Whether the session is closing, or closed."""
        return self._is_closed()

    def check_open(self) -> None:
        """Raise `SessionClosed`, or `WrongEventLoop` outside of the session's event loop."""
        self.affinity.check()
        if not self._is_opened():
            raise SessionClosed("it was not opened: use `async with` or `await`")
        if self.closed:
            raise SessionClosed(self.reason)

    def check_not_ended(self) -> None:
        """Raise `SessionClosed` when no outcome comes any more, or `WrongEventLoop`."""
        self.affinity.check()
        if self.ended:
            raise SessionClosed(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionContext:
    """A session's identity, its pool's runtime, and the records that several of its parts work on."""

    name: str
    job_name: str
    incarnation: str
    """New with each opening: it tells the tasks of this session from those of an earlier holder's."""
    runtime: PoolRuntime
    lifetime: Lifetime
    notices: Notices
    problems: Problems
    tracker: Tracker
    policy: PackingPolicy
    counter: LinkCounter
    background: Background
    arguments: StoredArguments
    telemetry: SessionTelemetry | None = None
    """What traces and counts tasks; None where the program has not set up OpenTelemetry."""

    @classmethod
    def create(
        cls,
        runtime: PoolRuntime,
        *,
        name: str,
        job: str,
        affinity: LoopAffinity | None = None,
        is_opened: Callable[[], bool] = lambda: True,
        is_closed: Callable[[], bool] = lambda: False,
    ) -> SessionContext:
        """Make the records of a new session. `affinity`, `is_opened` and `is_closed`: see `Lifetime`."""
        affinity = affinity or LoopAffinity(f"session {job}/{name}")
        notices = Notices(f"session {job}/{name}")
        tracker = Tracker()
        background = Background(notices.warn)
        return cls(
            name=name,
            job_name=job,
            incarnation=uuid.uuid4().hex[:12],
            runtime=runtime,
            lifetime=Lifetime(affinity=affinity, is_opened=is_opened, is_closed=is_closed),
            notices=notices,
            problems=Problems(notices, runtime.settings.session.patience),
            tracker=tracker,
            policy=PackingPolicy(),
            counter=LinkCounter(),
            background=background,
            arguments=StoredArguments(runtime.ctl, runtime.settings.session.retention, background),
            telemetry=SessionTelemetry.of(runtime, job, name),
        )

    @property
    def mailbox_id(self) -> str:
        """The name of the session's mailbox: a Service Bus session of a results queue."""
        return wire.mailbox_id(self.job_name, self.name)

    @property
    def settings(self) -> SessionSettings:
        return self.runtime.settings.session

    def tell(self, event: Event) -> None:
        """Tell readers of events, and the log, what a task reports."""
        if self.telemetry is not None:
            self.telemetry.log(self.tracker, event)
        self.notices.tell(event)

    def delete_later(self, container: Container, blob: str, name: str) -> None:
        """Delete a blob in the background. `name`: of the background job. The session's end waits for it."""
        self.background.start(delete_blob(container, blob), name, last=True)

    async def delete_blob(self, container: Container, blob: str) -> None:
        """Delete a blob; a failure is logged, because a sweep deletes it later."""
        await delete_blob(container, blob)

"""What the parts of one session share. It is made first, and knows none of them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchflow.errors import StorageError
from batchflow.protocol import wire
from batchflow.protocol.packing import PackingPolicy
from batchflow.sessions.health import Problems
from batchflow.sessions.lifetime import Lifetime
from batchflow.sessions.notices import Notices
from batchflow.sessions.stats import LinkCounter
from batchflow.sessions.tracker import Tracker
from batchflow.support.background import Background

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.storage import Container
    from batchflow.settings import SessionSettings

logger = logging.getLogger(__name__)


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

    @classmethod
    def create(
        cls,
        runtime: PoolRuntime,
        *,
        name: str,
        job: str,
        is_opened: Callable[[], bool] = lambda: True,
        is_closed: Callable[[], bool] = lambda: False,
    ) -> SessionContext:
        """Make the records of a new session. `is_opened` and `is_closed`: see `Lifetime`."""
        notices = Notices(f"session {job}/{name}")
        tracker = Tracker()
        return cls(
            name=name,
            job_name=job,
            incarnation=uuid.uuid4().hex[:12],
            runtime=runtime,
            lifetime=Lifetime(is_opened=is_opened, is_closed=is_closed),
            notices=notices,
            problems=Problems(notices, runtime.settings.session.patience),
            tracker=tracker,
            policy=PackingPolicy(),
            counter=LinkCounter(),
            background=Background(notices.warn),
        )

    @property
    def mailbox_id(self) -> str:
        """The name of the session's mailbox: a Service Bus session of a results queue."""
        return wire.mailbox_id(self.job_name, self.name)

    @property
    def settings(self) -> SessionSettings:
        return self.runtime.settings.session

    def delete_later(self, container: Container, blob: str, name: str) -> None:
        """Delete a blob in the background. `name`: of the background job. The session's end waits for it."""
        self.background.start(self.delete_blob(container, blob), name, last=True)

    async def delete_blob(self, container: Container, blob: str) -> None:
        """Delete a blob; a failure is logged, because a sweep deletes it later."""
        try:
            await container.delete(blob)
        except StorageError as error:
            logger.warning("blob_not_deleted", extra={"blob": blob, "error": str(error)})

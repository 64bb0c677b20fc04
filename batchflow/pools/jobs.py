"""The jobs of a pool: their documents in the control container, and what lies there by their names."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from batchflow.environments.variables import store_variables
from batchflow.errors import (
    BlobConflict,
    BlobNotFound,
    JobClosed,
    JobExists,
    JobNotFound,
    MailboxInUse,
    ProtocolError,
    StorageError,
)
from batchflow.model import JobCounts, Status
from batchflow.pools.open_sessions import close_sessions
from batchflow.protocol import layout, wire
from batchflow.protocol.documents import Cancellation, JobDocument, Presence, gone_after
from batchflow.protocol.failed_tasks import failed_prefix
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence

    from batchflow.model import Counts
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import DefaultPackages, Heartbeat
    from batchflow.protocol.variables import TaskVariables

logger = event_logger(__name__)

_MAIL_WAIT: Final[float] = 0.5
"""Seconds without a message after which a mailbox counts as empty."""


@frozen
class _Closed:
    """A session that was closed, and how its tasks had ended, as `layout.ENDED` has them."""

    client: str
    incarnation: str
    at: float
    ended: Sequence[int]
    unread: Sequence[int]
    """Those of them that a later session of the name counts, because it is shown them."""


def _ended(closed: Sequence[_Closed], open_clients: Collection[str]) -> Counter[str]:
    """Add up how the tasks of closed sessions ended, each task once."""
    total: Counter[str] = Counter()
    counted_again = {*open_clients}
    for each in sorted(closed, key=lambda each: each.at, reverse=True):
        total.update(dict(zip(layout.ENDED, each.ended, strict=True)))
        if each.client in counted_again:
            total.subtract(dict(zip(layout.ENDED, each.unread, strict=True)))
        counted_again.add(each.client)
    return total


async def note_closed(
    ctl: Container, session: tuple[str, str, str], counts: Counts, unread: Mapping[Status, int]
) -> None:
    """Keep how the tasks of a session ended; a failure is logged. `session`: job, client, incarnation.

    `unread`: outcomes that no call has claimed, by status.
    """
    ended = [getattr(counts, state) for state in layout.ENDED]
    to_read = [unread.get(Status(state), 0) for state in layout.ENDED]
    blob = layout.ended_blob(*session, ended=ended, unread=to_read)
    try:
        await ctl.put(blob, b"")
    except StorageError as error:
        logger.warning("counts_not_written", extra={"blob": blob, "error": str(error)})


async def read_jobs(ctl: Container) -> AsyncIterator[JobDocument]:
    """Read the documents of all jobs of a pool, closed ones included.

    An unreadable one is logged and left out.
    """
    async for info in ctl.list("jobs/"):
        try:
            document = JobDocument.decode((await ctl.get(info.name)).data)
        except BlobNotFound:
            continue
        except ProtocolError as error:
            logger.warning("job_not_read", extra={"blob": info.name, "error": str(error)})
            continue
        if document.state != "deleted":
            yield document


class PoolJobs:
    """Creates, reads, closes and deletes the jobs of one pool."""

    def __init__(self, runtime: PoolRuntime) -> None:
        self._runtime = runtime
        self._known_open: dict[str, JobDocument] = {}
        """Jobs that this object made, and that need not be read again."""

    async def create(
        self, name: str, variables: TaskVariables | None = None, packages: DefaultPackages | None = None
    ) -> JobDocument:
        """Write the document of a new job. `variables`, `packages`: of its tasks. Raises `JobExists`."""
        layout.check_name("job name", name)
        ctl, stored = self._runtime.ctl, None
        if variables:
            stored = await store_variables(ctl, layout.job_variables_prefix(name), variables)
        document = JobDocument(name, time.time(), variables=stored, packages=packages)
        try:
            await ctl.put(layout.job_blob(name), document.encode(), create=True)
        except BlobConflict as error:
            if stored is not None:
                await ctl.delete(stored)
            raise JobExists(f"pool {self._runtime.pool_id!r} has a job {name!r} already") from error
        self._known_open[name] = document
        return document

    async def read(self, name: str) -> JobDocument:
        """Read a job's document. Raises `JobNotFound`."""
        layout.check_name("job name", name)
        try:
            document = JobDocument.decode((await self._runtime.ctl.get(layout.job_blob(name))).data)
        except BlobNotFound as error:
            raise JobNotFound(f"pool {self._runtime.pool_id!r} has no job {name!r}") from error
        if document.state == "deleted":
            raise JobNotFound(f"job {name!r} of pool {self._runtime.pool_id!r} was deleted")
        return document

    def read_all(self) -> AsyncIterator[JobDocument]:
        """Read the documents of all jobs, closed ones included; an unreadable one is logged and left out."""
        return read_jobs(self._runtime.ctl)

    async def ensure(self, name: str) -> JobDocument:
        """Create the job if there is none of that name; return its document. Raises `JobClosed`."""
        if (known := self._known_open.get(name)) is not None:
            return known
        try:
            return await self.create(name)
        except JobExists:
            document = await self.read(name)
        if document.state != "open":
            raise JobClosed(
                f"job {name!r} of pool {self._runtime.pool_id!r} is closed: it takes no new tasks"
            )
        return document

    async def close(self, name: str) -> JobDocument:
        """Mark the job as closed, and refuse new tasks of its sessions here. Raises `JobNotFound`."""
        document = replace(await self.read(name), state="closed")
        await self._runtime.ctl.put(layout.job_blob(name), document.encode())
        self._known_open.pop(name, None)
        for session in self._runtime.sessions.of_job(self._runtime.pool_id, name):
            session.refuse(f"job {name!r} is closed: it takes no new tasks")
        return document

    async def delete(self, name: str) -> None:
        """Cancel the job's tasks, end its sessions, and remove its messages and files. Idempotent.

        Sessions of other clients learn of it from their cancellation document.
        """
        layout.check_name("job name", name)
        runtime = self._runtime
        sessions = runtime.sessions.of_job(runtime.pool_id, name)
        clients = {session.name for session in sessions} | await self._clients(name)
        # The sessions here first: they would end with `JobNotFound` when they read the document.
        await close_sessions(sessions, f"job {name!r} was deleted")
        everything = Cancellation(everything=True).encode()
        for client in clients:
            await runtime.ctl.put(layout.cancellation_blob(name, client), everything)
        for client in clients:
            await self._drop_messages(wire.mailbox_id(name, client))
        for container, prefix in (
            (runtime.ctl, f"sessions/{name}/"),
            (runtime.ctl, layout.ended_prefix(name)),
            (runtime.ctl, f"args/{name}/"),
            (runtime.ctl, layout.job_variables_prefix(name)),
            (runtime.ctl, layout.session_variables_prefix(f"sessions/{name}/")),
            (runtime.out, f"results/{name}/"),
            (runtime.out, f"outputs/{name}/"),
            (runtime.out, failed_prefix(name)),
            (runtime.ctl, failed_prefix(name)),
        ):
            async for info in container.list(prefix):
                await container.delete(info.name)
        await runtime.ctl.delete(layout.job_blob(name))
        self._known_open.pop(name, None)

    async def _clients(self, name: str) -> set[str]:
        """Return the clients that have documents in the job."""
        found = set()
        for prefix in (f"sessions/{name}/", f"cancel/{name}/"):
            async for info in self._runtime.ctl.list(prefix):
                found.add(info.name.rpartition("/")[2].removesuffix(".json"))
        return found

    async def _drop_messages(self, mailbox_id: str) -> None:
        """Complete the messages in a mailbox, unless another client holds it."""
        queue = layout.queue_for(self._runtime.manifest.results_queues, mailbox_id)
        try:
            mailbox = await self._runtime.connections.broker.mailbox(queue, mailbox_id)
        except MailboxInUse:
            logger.info("mail_not_dropped", extra={"mailbox": mailbox_id})
            return
        async with mailbox:
            while (delivery := await mailbox.receive(_MAIL_WAIT)) is not None:
                await mailbox.complete(delivery)

    async def counts(self, name: str, beats: Iterable[Heartbeat]) -> JobCounts:
        """Count the job's tasks by their state, from its sessions and the agents' heartbeats."""
        here = {
            session.name: asdict(session.counts())
            for session in self._runtime.sessions.of_job(self._runtime.pool_id, name)
        }
        reported: list[Mapping[str, int]] = list(here.values())
        closed = await self._closed(name)
        open_clients = {*here}
        async for client, presence, lives in self._presences(name):
            if client in here or any(presence.nonce == each.incarnation for each in closed):
                continue
            if lives:
                reported.append(presence.counts)
                open_clients.add(client)
            else:  # what it told last
                told = [presence.counts.get(state, 0) for state in layout.ENDED]
                closed.append(_Closed(client, presence.nonce, presence.beat_at, told, [0] * len(told)))
        running = sum(task.job == name for beat in beats for task in beat.running)
        total: Counter[str] = sum(map(Counter, reported), Counter())
        total.update(_ended(closed, open_clients))
        return JobCounts(
            sessions=len(reported),
            waiting=max(0, sum(total[state] for state in layout.UNDER_WAY) - running),
            running=running,
            succeeded=total["succeeded"],
            failed=total["failed"],
            cancelled=total["cancelled"],
        )

    async def _closed(self, name: str) -> list[_Closed]:
        """Return what the job's closed sessions have left of their counts."""
        found = []
        async for info in self._runtime.ctl.list(layout.ended_prefix(name)):
            with suppress(ValueError):  # written by a later version
                client, incarnation, ended, unread = layout.read_ended(name, info.name)
                found.append(_Closed(client, incarnation, info.modified_at, ended, unread))
        return found

    async def _presences(self, name: str) -> AsyncIterator[tuple[str, Presence, bool]]:
        """Return the presence documents of the job's sessions by client, and whether each is fresh."""
        prefix, ctl = f"sessions/{name}/", self._runtime.ctl
        async for info in ctl.list(prefix):
            try:
                presence = Presence.decode((await ctl.get(info.name)).data)
            except (BlobNotFound, ProtocolError):
                continue
            client = info.name.removeprefix(prefix).removesuffix(".json")
            yield client, presence, info.age < gone_after(presence.interval)

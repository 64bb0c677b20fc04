"""The machines, their agents and their two queues."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.diagnosis.pool import cannot_become_ready, explain_pool
from batchflow.errors import (
    BatchflowError,
    BlobConflict,
    BlobNotFound,
    ConfigurationError,
    JobClosed,
    JobExists,
    JobNotFound,
    MailboxInUse,
    PoolError,
    PoolNotFound,
    ProtocolError,
)
from batchflow.files import BundleSource, Files, collect, upload
from batchflow.job import Job
from batchflow.model import BROKEN, Explanation, Node, Origin
from batchflow.pools import access, agent_job, agent_launch, heartbeats
from batchflow.pools.reboot import change_start_task, reboot_all
from batchflow.pools.resize import shrink
from batchflow.pools.runtime import PoolRuntime
from batchflow.protocol import layout, wire
from batchflow.protocol.documents import Cancellation, DrainOrder, Heartbeat, JobDocument, PoolManifest
from batchflow.session import Session
from batchflow.support.progress_report import Reporter, counted
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from batchflow.client import Client
    from batchflow.model import PoolSpec
    from batchflow.ports.compute import BatchTaskInfo, PoolInfo
    from batchflow.settings import Settings
    from batchflow.support.progress_report import Progress

logger = logging.getLogger(__name__)

_POLL: float = 0.25
"""Seconds between two looks at what is awaited."""
_LOOKS: Final = 20
"""After so many of them whoever waits for agents starts again those that are missing."""
_DRAIN_SLACK = 10.0
"""Seconds, beyond the grace, for handing back and for the last results."""
_AWAY: Final = {*BROKEN, "rebooting", "reimaging", "leavingpool"}
"""The states of a node whose agent is gone, although its last heartbeat may be fresh."""
_MAIL_WAIT: float = 0.5
"""Seconds without mail after which a mailbox counts as empty."""


class Pool:
    """Made by `client.ensure_pool`, `client.create_pool` or `client.pool`."""

    def __init__(
        self,
        client: Client,
        manifest: PoolManifest,
        origin: Origin | None = None,
        sources: Sequence[BundleSource] = (),
    ) -> None:
        """`sources`: files that are here, of which those of the default bundle need not be fetched."""
        self.client = client
        self.origin: Origin = origin or Origin("attached", "it was there")
        """Which of create, reuse, repurpose and attach it was, and why."""
        self.runtime = PoolRuntime(lambda: client.connections, client.settings, manifest)
        """What the parts of the pool share."""
        self._known_jobs: set[str] = set()
        self._launch: agent_launch.LaunchCommand | None = None
        self._sources = sources
        """Until agents are started, or found alive."""
        self._starting = anyio.Lock()

    @property
    def id(self) -> str:
        return self.runtime.manifest.pool

    def __repr__(self) -> str:
        return f"<Pool {self.id!r}>"

    def _repr_html_(self) -> str:
        from batchflow.display.cards import pool_view

        return pool_view(self)

    @property
    def _sessions(self) -> list[Session]:
        """Those that are open here."""
        return [session for session in self.client._sessions if session.pool.id == self.id]

    # ---- sessions and jobs

    def session(
        self,
        name: str | None = None,
        *,
        job: str | Job | None = None,
        files: Files | None = None,
        journal: str | PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> Session:
        """A client's mailbox; open it with `async with` or `await`.

        Without a name it is one of its own; with a name it is found again by it. `files`: what its tasks run
        with, instead of the pool's default bundle. The job is made if there is none of that name.
        `journal`: a file on this host that remembers what was shown, so that a session which is opened again
        by its name after a crash shows nothing twice here; costs a write to disk for each result.
        `timeout`: seconds that its tasks may run, where `submit` does not say.
        """
        job_name = job.name if isinstance(job, Job) else job
        return Session(self, name, job_name or layout.DEFAULT_JOB, files, journal, timeout)

    async def create_job(self, name: str) -> Job:
        """Raises `JobExists`."""
        layout.check_name("job name", name)
        document = JobDocument(name, time.time())
        try:
            await self.runtime.ctl.put(layout.job_blob(name), document.encode(), create=True)
        except BlobConflict as error:
            raise JobExists(f"pool {self.id!r} has a job {name!r} already") from error
        self._known_jobs.add(name)
        return Job(self, document)

    async def job(self, name: str) -> Job:
        """Raises `JobNotFound`."""
        return Job(self, await self._job_document(name))

    async def jobs(self) -> AsyncIterator[Job]:
        """All of them, closed ones too."""
        async for info in self.runtime.ctl.list("jobs/"):
            try:
                document = JobDocument.decode((await self.runtime.ctl.get(info.name)).data)
            except BlobNotFound:
                continue
            except ProtocolError as error:
                logger.warning("job_not_read", extra={"blob": info.name, "error": str(error)})
                continue
            if document.state != "deleted":
                yield Job(self, document)

    async def delete_job(self, name: str) -> None:
        """Cancel its tasks, drop its mail and files, end its sessions: those elsewhere hear of it within
        `session.presence_interval` seconds. Idempotent."""
        layout.check_name("job name", name)
        sessions = [session for session in self._sessions if session.job_name == name]
        clients = {session.name for session in sessions}
        for prefix in (f"sessions/{name}/", f"cancel/{name}/"):
            async for info in self.runtime.ctl.list(prefix):
                clients.add(info.name.rpartition("/")[2].removesuffix(".json"))
        everything = Cancellation(everything=True).encode()
        for client in clients:
            await self.runtime.ctl.put(layout.cancellation_blob(name, client), everything)
        await _close(sessions, f"job {name!r} was deleted")
        for client in clients:
            await self._drop_mail(wire.mailbox_id(name, client))
        for container, prefix in (
            (self.runtime.ctl, f"sessions/{name}/"),
            (self.runtime.ctl, f"args/{name}/"),
            (self.runtime.out, f"results/{name}/"),
            (self.runtime.out, f"outputs/{name}/"),
        ):
            async for info in container.list(prefix):
                await container.delete(info.name)
        await self.runtime.ctl.delete(layout.job_blob(name))
        self._known_jobs.discard(name)

    async def _drop_mail(self, mailbox_id: str) -> None:
        """Complete what lies in a mailbox, unless somebody holds it."""
        queue = layout.queue_for(self.runtime.manifest.results_queues, mailbox_id)
        try:
            mailbox = await self.runtime.connections.broker.mailbox(queue, mailbox_id)
        except MailboxInUse:
            logger.info("mail_not_dropped", extra={"mailbox": mailbox_id})
            return
        async with mailbox:
            while (delivery := await mailbox.receive(_MAIL_WAIT)) is not None:
                await mailbox.complete(delivery)

    async def delete_all_jobs(self) -> None:
        """`delete_job` for each."""
        async for job in self.jobs():
            await self.delete_job(job.name)

    async def _job_document(self, name: str) -> JobDocument:
        layout.check_name("job name", name)
        try:
            document = JobDocument.decode((await self.runtime.ctl.get(layout.job_blob(name))).data)
        except BlobNotFound as error:
            raise JobNotFound(f"pool {self.id!r} has no job {name!r}") from error
        if document.state == "deleted":
            raise JobNotFound(f"job {name!r} of pool {self.id!r} was deleted")
        return document

    async def _ensure_job(self, name: str) -> None:
        """What a session does at its opening. Raises `JobClosed`."""
        if name in self._known_jobs:
            return
        try:
            await self.create_job(name)
        except JobExists:
            if (await self._job_document(name)).state != "open":
                raise JobClosed(
                    f"job {name!r} of pool {self.id!r} is closed: it takes no new tasks"
                ) from None

    async def _close_job(self, name: str) -> JobDocument:
        document = replace(await self._job_document(name), state="closed")
        await self.runtime.ctl.put(layout.job_blob(name), document.encode())
        self._known_jobs.discard(name)
        for session in [session for session in self._sessions if session.job_name == name]:
            session._submitter.refusal = f"job {name!r} is closed: it takes no new tasks"
        return document

    # ---- agents and nodes

    async def start(self, *, progress: Progress | None = None) -> None:
        """Start the agents that do not live: one for each node. Idempotent; does not wait for them.

        Two clients that start at once start one set. `progress` is told, in a line, what it is about: the
        first time for a Python and platform the agents' packages are fetched.
        """
        report = Reporter(progress)
        async with self._starting:
            for last in (False, False, True):
                try:
                    await self._start_agents(report)
                    return
                except PoolNotFound:
                    raise
                except PoolError:
                    if last:
                        raise  # else the agents' job ended at this moment: it is begun anew

    async def _start_agents(self, report: Reporter) -> None:
        compute = self.runtime.connections.compute
        info, tasks = await self._survey()
        sources, self._sources = self._sources, ()
        alive = sum(task.state != "completed" for task in tasks)
        missing = info.wanted + info.spot_wanted - alive
        if missing <= 0:
            return
        if self._launch is None or not self._launch.lasting:
            ground = agent_launch.LaunchContext(
                self.runtime.manifest,
                self.runtime.ctl,
                self.runtime.out,
                self.origin.choice == "created",
                sources,
            )
            self._launch = await agent_launch.prepare(
                self.runtime.connections, self.runtime.settings, ground, report
            )
        if tasks and not alive:
            # Whoever started them may have died before it said so.
            await compute.end_job_when_idle(self.runtime.manifest.agents_job)
            tasks = await self._begin_generation(self.runtime.manifest.agents_job)
            if tasks:
                return  # somebody else has started them
        job, container = self.runtime.manifest.agents_job, self.runtime.manifest.container
        report(f"starting {counted(missing, 'agent')}")
        await compute.create_job(job, self.id)
        first = agent_job.next_number(tasks)
        more = agent_job.agent_tasks(self._launch, first, missing, info.task_slots, container)
        await compute.add_tasks(job, more)
        await compute.end_job_when_idle(job)
        logger.info("agents_started", extra={"pool": self.id, "job": job, "count": len(more)})

    async def _survey(self) -> tuple[PoolInfo, list[BatchTaskInfo]]:
        """The machines, and the tasks of the agents' job as the manifest has it now."""
        compute, job = self.runtime.connections.compute, self.runtime.manifest.agents_job
        tasks: list[BatchTaskInfo] = []

        async def list_tasks() -> None:
            tasks.extend(await compute.tasks(job))

        async with task_group() as group:
            group.start_soon(self.runtime.refresh)
            group.start_soon(list_tasks)
            info = await compute.pool(self.id)
        if self.runtime.manifest.agents_job != job:
            tasks = await compute.tasks(self.runtime.manifest.agents_job)
        return info, tasks

    async def _begin_generation(self, ended: str) -> list[BatchTaskInfo]:
        """Give the agents a new job, unless somebody else did so: then its tasks are returned."""

        def change(manifest: PoolManifest) -> PoolManifest:
            return agent_job.next_generation(manifest) if manifest.agents_job == ended else manifest

        await self.runtime.change(change)
        return await self.runtime.connections.compute.tasks(self.runtime.manifest.agents_job)

    async def stop(self, *, drain: bool = True, progress: Progress | None = None) -> None:
        """End the agents; the queued tasks stay for the next ones. Idempotent.

        With `drain` they finish what they run, for at most `agent.drain_grace` seconds, and hand back the
        rest; without, what runs is killed, and runs again elsewhere when its lock has run out. `progress` is
        told, in a line, what is still there whenever that changes.
        """
        compute, report = self.runtime.connections.compute, Reporter(progress)
        await self.runtime.refresh()
        if drain:
            await self._drain(report)
        tasks = await compute.tasks(self.runtime.manifest.agents_job)
        alive = [task for task in tasks if task.state != "completed"]
        if alive:
            report(f"ending {counted(len(alive), 'agent')}")
        for task in alive:
            await compute.delete_task(self.runtime.manifest.agents_job, task.id)
        await compute.delete_job(self.runtime.manifest.agents_job)
        await self._begin_generation(self.runtime.manifest.agents_job)

    async def _drain(self, report: Reporter) -> None:
        """Tell the agents to drain, and return when they have, or are out of time."""
        settings = self.runtime.settings.agent
        order = DrainOrder(self.runtime.manifest.agents_job, settings.drain_grace)
        await self.runtime.ctl.put(layout.DRAIN_BLOB, order.encode())
        with anyio.move_on_after(settings.drain_grace + settings.heartbeat_interval + _DRAIN_SLACK):
            while beats := await self.heartbeats():
                running = sum(len(beat.running) for beat in beats)
                report(f"{counted(len(beats), 'agent')} still there, {counted(running, 'task')} running")
                await anyio.sleep(_POLL)

    async def repurpose(
        self,
        files: Files,
        *,
        reset: bool = False,
        spec: PoolSpec | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Make these files the default bundle of sessions opened from now on; no node is touched.

        With `reset` each node is booted anew, one after the other, and runs its start task again: that of
        `spec`, if one is given; returns when all of them work. Raises `StartTaskFailed` when one does not.
        `progress` is told, in a line, which node is in which state whenever that changes.
        """
        if spec is not None and not reset:
            raise ConfigurationError("repurpose: a spec changes the start task: it needs reset=True")
        bundle = await upload(await collect(files), self.runtime.ctl)
        if spec is not None:
            await change_start_task(self, spec)
        await self.runtime.change(lambda manifest: replace(manifest, bundle=bundle.hash))
        if reset:
            await reboot_all(self, Reporter(progress))
            if self._sessions:
                await self.start(progress=progress)

    async def resize(self, nodes: int, *, spot: int = 0, progress: Progress | None = None) -> None:
        """Ask Batch for so many nodes; returns when it has taken the wish.

        Where there are agents or sessions new nodes get their agent.
        A pool that shrinks loses its idlest nodes, after their agents have finished or handed back what they
        ran (`agent.drain_grace`): `progress` is told, in a line, what is still to leave when that changes.
        """
        if nodes < 0 or spot < 0:
            raise ConfigurationError(f"resize: {nodes} nodes and {spot} spot nodes; neither can be negative")
        compute = self.runtime.connections.compute
        async with self._starting:
            if not await shrink(self, await compute.pool(self.id), (nodes, spot), Reporter(progress)):
                await compute.resize_pool(self.id, nodes, spot)
        if self._sessions or await self._has_agents():
            await self.start(progress=progress)

    async def _has_agents(self) -> bool:
        """Whether some are wanted at this moment, whoever started them."""
        await self.runtime.refresh()
        tasks = await self.runtime.connections.compute.tasks(self.runtime.manifest.agents_job)
        return any(task.state != "completed" for task in tasks)

    async def heartbeats(self) -> list[Heartbeat]:
        """What the living agents last said of themselves."""
        return await heartbeats.read_heartbeats(self.runtime.out)

    async def nodes(self) -> list[Node]:
        """The machines, as Batch and their agents tell of them. Raises `PoolNotFound`."""
        beats = {beat.node: beat for beat in await self.heartbeats()}
        nodes = await self.runtime.connections.compute.nodes(self.id)
        return [_node(info.id, info.state, info.dedicated, beats.get(info.id)) for info in nodes]

    async def wait_ready(
        self,
        nodes: int | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Return when so many nodes (all that are wanted) have a living agent; starts the agents.

        `progress` is told, in a line, how far it is whenever that changes. Raises a `PoolError` at once when
        it can no longer succeed, TimeoutError when `timeout` seconds have passed; the text of both is the
        pool's explanation. Safe to cancel.
        """
        report = Reporter(progress)
        await self.start(progress=report)
        try:
            with anyio.fail_after(timeout):
                for look in itertools.count(1):
                    ready, text = await self._readiness(nodes)
                    report(text)
                    if ready:
                        return
                    if (kind := await cannot_become_ready(self, nodes)) is not None:
                        raise kind(f"pool {self.id!r} cannot become ready. {await self.explain()}")
                    await anyio.sleep(_POLL)
                    if look % _LOOKS == 0:
                        await self.start(progress=report)  # some may have gone since: idle, drained
        except TimeoutError:
            raise TimeoutError(f"pool {self.id!r} is not ready. {await self.explain()}") from None

    async def _readiness(self, nodes: int | None) -> tuple[bool, str]:
        compute = self.runtime.connections.compute
        info = await compute.pool(self.id)
        wanted = info.wanted + info.spot_wanted if nodes is None else nodes
        away = {node.id for node in await compute.nodes(self.id) if node.state in _AWAY}
        ready = sum(beat.state == "ready" and beat.node not in away for beat in await self.heartbeats())
        text = f"{info.nodes + info.spot} of {info.wanted + info.spot_wanted} nodes, {ready} agents ready"
        return ready >= wanted, f"{text} of {wanted}"

    async def explain(self) -> Explanation:
        """Why nothing happens, if nothing does, and what to do about it."""
        return await explain_pool(self)

    async def client_settings(self) -> Settings:
        """What a program needs that may use this pool and do nothing else: no key of an account is in it.

        `to_toml()` of them is its configuration file, a secret. With them `Client.from_config` and
        `client.pool` open sessions; making, resizing and removing anything is refused. The rights end with
        the pool. Of a client that has no key of the Storage account itself they end after a week.
        """
        await self.runtime.change(lambda manifest: replace(manifest, shared=True))
        storage, services = self.runtime.connections.storage, self.runtime.connections
        await storage.create_container(self.runtime.manifest.ctl, access.ctl_policies())
        await storage.create_container(self.runtime.manifest.out, access.out_policies())
        return await access.client_settings(services, self.runtime.settings, self.runtime.manifest)

    async def delete(self, *, wait: bool = False, progress: Progress | None = None) -> None:
        """Remove its agents, queues, documents and files, and the machines if batchflow made them.

        Its sessions here are closed; what is queued or unread is gone. Idempotent. The machines go after it
        has returned, on Azure within minutes; with `wait` before. `progress` is told, in a line, how far it
        is whenever that changes.
        """
        sessions, report = self._sessions, Reporter(progress)
        if sessions:
            report(f"closing {counted(len(sessions), 'session')}")
        await _close(sessions, f"pool {self.id!r} was deleted")
        report("removing its agents, queues and files")
        await self.client.provisioner.remove(self.runtime.manifest)
        if wait:
            await self._until_gone(report)

    async def _until_gone(self, report: Reporter) -> None:
        """Return when Batch has no pool of that name that is on its way out."""
        compute = self.runtime.connections.compute
        try:
            while (await compute.pool(self.id)).state == "deleting":
                left = len(await compute.nodes(self.id))
                report(f"Batch removes the machines: {counted(left, 'node')} left")
                await anyio.sleep(_POLL)
        except PoolNotFound:
            return


def _node(node_id: str, state: str, dedicated: bool, beat: Heartbeat | None) -> Node:
    if beat is None:
        return Node(node_id, state, dedicated=dedicated)
    return Node(
        node_id,
        state,
        host=beat.host,
        dedicated=dedicated,
        slots=beat.slots,
        running=len(beat.running),
        agent=beat.state,
    )


async def _close(sessions: list[Session], reason: str) -> None:
    """End sessions whose ground is taken away; what they could not do any more does not matter."""

    async def close(session: Session) -> None:
        session._reason = reason
        try:
            await session.aclose()
        except BatchflowError as error:
            logger.info("session_closed", extra={"session": session.name, "error": str(error)})

    async with task_group() as group:
        for session in sessions:
            group.start_soon(close, session)

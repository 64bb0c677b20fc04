"""The machines, their agents and their two queues."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from batchflow.diagnosis.figures import look
from batchflow.diagnosis.live_view import LiveView
from batchflow.diagnosis.pool import explain_pool
from batchflow.diagnosis.readiness import until_ready
from batchflow.errors import ConfigurationError
from batchflow.files import BundleSource, Files, collect, upload
from batchflow.functions.calls import as_command
from batchflow.job import Job
from batchflow.model import UNSET, Explanation, Node, Origin, PoolSpec
from batchflow.pools import access, pool_spec
from batchflow.pools.agents import PoolAgents
from batchflow.pools.elastic.scaler import PoolScaler
from batchflow.pools.jobs import PoolJobs
from batchflow.pools.open_sessions import close_sessions
from batchflow.pools.provisioning import PoolProvisioner
from batchflow.pools.reboot import change_start_task, reboot_all
from batchflow.pools.reports.figures import node_of
from batchflow.pools.spending.cost import measure_cost
from batchflow.protocol import layout
from batchflow.protocol.documents import Heartbeat, JobDocument, PoolManifest
from batchflow.protocol.variables import task_variables
from batchflow.session import Session
from batchflow.sessions.broadcast import check_timeout, run_on_each, standings_of
from batchflow.sessions.options import SessionOptions
from batchflow.support.progress_report import Reporter, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from batchflow.costs.cost import Cost
    from batchflow.environments.requirements import Requirements
    from batchflow.model import Budget, Result
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.lanes import Priority
    from batchflow.settings import Settings
    from batchflow.support.progress_report import Progress


BROADCAST_TIMEOUT: Final = 600.0
"""Seconds for which `Pool.broadcast` waits for the results of all nodes."""


class Pool(LiveView):
    """A pool; made by `client.ensure_pool`, `client.create_pool` or `client.pool`."""

    def __init__(
        self, runtime: PoolRuntime, origin: Origin | None = None, sources: Sequence[BundleSource] = ()
    ) -> None:
        """`sources`: local files; those of the default bundle need not be fetched from Blob Storage."""
        self.runtime = runtime
        """The connections, containers and manifest that the parts of the pool share."""
        self.origin: Origin = origin or Origin("attached", "it was there")
        """How this object came to its pool (create, reuse, repurpose, attach), and why."""
        self._agents = PoolAgents(runtime, made_here=self.origin.choice == "created", sources=sources)
        self._jobs = PoolJobs(runtime)
        self.scaler: PoolScaler = PoolScaler(runtime, partial(self._agents.start, Reporter(None)))
        """This client's part in the size of an elastic pool."""

    @property
    def id(self) -> str:
        return self.runtime.manifest.pool

    def __repr__(self) -> str:
        return f"<Pool {self.id!r}>"

    def _repr_html_(self) -> str:
        from batchflow.display.html import card, fact_table, session_table

        sessions = [session.summary() for session in self.runtime.open_sessions]
        seen, cost = self.runtime.sessions.figures.get(self.id), self.runtime.cost
        facts: list[tuple[str, object]] = [("came here as", str(self.origin))]
        facts += [("cost", None if cost is None else cost.short)] if seen is None else seen.facts()
        return card("Pool", self.id, fact_table(facts), session_table(sessions))

    async def _ask(self) -> None:
        await look(self.runtime, self.cost)

    # ---- sessions and jobs

    def session(
        self,
        name: str | None = None,
        *,
        job: str | Job | None = None,
        files: Files | None = None,
        journal: str | PathLike[str] | None = None,
        timeout: float | None = None,
        share_processes: bool | None = None,
        unpickle: bool = False,
        requirements: Requirements | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        budget: Budget | None = None,
        priority: Priority | None = None,
    ) -> Session:
        """Make a session; open it with `async with` or `await`.

        With a name, a later session of that name finds its results again; without one, it gets a new name.
        `files`: the files that its tasks run with, instead of the pool's default bundle. The job is created
        if there is none of that name. `journal`: a file on this host that records which results were shown.
        So a session that is opened again by its name after a crash shows no result twice; each result costs
        a write to disk. `timeout`: seconds that its tasks may run, where `submit` does not say.
        `share_processes`: whether its tasks may run in one Python process with those of other sessions that
        say so; None: as the pool's spec says, where the default is that they never do. `unpickle`: whether
        tasks may return any object, as a pickle. Opening one executes code that the task chose, so results
        execute nothing without it. `requirements`: the Python packages of its tasks: a list, a requirements
        file, a pyproject.toml, or "current" for what is installed here; None: the pool's. They are locked and
        built once, and reboot nothing. `env`, `secrets`: environment variables of its tasks, over those of
        the job and the pool; the values of secrets stay out of logs, errors and every `repr`.
        `budget`: what its tasks may cost, by the time of their slots. When it is spent nothing new of it
        begins, and those tasks end as `BudgetExceeded`. `priority`: "interactive", "normal" or "bulk": what
        goes first in a pool with `sharing="fair"`. Raises `ConfigurationError` for what no session can have.
        """
        job_name = job.name if isinstance(job, Job) else job
        return Session(
            self,
            name=name,
            job=layout.DEFAULT_JOB if job_name is None else job_name,
            files=files,
            options=SessionOptions(
                journal=journal,
                timeout=timeout,
                share_processes=share_processes,
                unpickle=unpickle,
                requirements=requirements,
                budget=budget,
                priority=priority,
                variables=task_variables(env, secrets, "session"),
            ),
            ensure_job=self._jobs.ensure,
        )

    async def broadcast(
        self,
        command: str | Callable[..., Any],
        *params: Any,
        args: Any = UNSET,
        files: Files | None = None,
        timeout: float = BROADCAST_TIMEOUT,
    ) -> dict[str, Result]:
        """Run a task once on every node, beside what the nodes run; return its results by the nodes' ids.

        `command`, `params`, `args`, `files`: as of `Session.submit` and `session`. `timeout`: in seconds.
        Nodes are those that are there at the call; one that joins later is not asked. A node that gives no
        result has one that says why, and never holds up the call: of `kind` "NodeUnreached" (it has no agent,
        or that left) or "TaskTimeout". Each agent sees the order within `agent.heartbeat_interval` seconds,
        and begins the task at most once. Raises `ConfigurationError`, `ServiceError`. Cancelled, it kills
        what runs.
        """
        check_timeout(timeout)
        called = as_command(command)
        options = SessionOptions(broadcast=timeout)
        session = Session(
            self,
            name=None,
            job=layout.DEFAULT_JOB,
            files=files,
            options=options,
            ensure_job=self._jobs.ensure,
        )
        standings = await standings_of(self.runtime)
        async with session:
            return await run_on_each(
                self.runtime,
                standings,
                lambda node: session.submit(command, *params, args=args, task_id=node, timeout=timeout),
                command=called if isinstance(called, str) else called.label,
                timeout=timeout,
            )

    async def create_job(
        self,
        name: str,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        requirements: Requirements | None = None,
    ) -> Job:
        """Create a job. Raises `JobExists`.

        `requirements`: the Python packages of its tasks, where the session does not say; None: the pool's. A
        file is locked here: this raises `EnvironmentFailed` in the resolver's words.

        `env`, `secrets`: environment variables of its tasks, over those of the pool; the values of secrets
        stay out of logs, errors and every `repr`. Raises `ConfigurationError` for what cannot be a variable.
        """
        variables = task_variables(env, secrets, f"job {name!r}")
        packages = None if requirements is None else await self.runtime.environments.defaults(requirements)
        return self._job(await self._jobs.create(name, variables, packages))

    async def job(self, name: str) -> Job:
        """Find a job. Raises `JobNotFound`."""
        return self._job(await self._jobs.read(name))

    async def jobs(self) -> AsyncIterator[Job]:
        """Iterate over all jobs, closed ones included."""
        async for document in self._jobs.read_all():
            yield self._job(document)

    def _job(self, document: JobDocument) -> Job:
        return Job(document, self._jobs, self.runtime, self.session)

    async def delete_job(self, name: str) -> None:
        """Cancel the job's tasks, end its sessions, and delete its messages and files. Idempotent.

        Sessions in other programs end within `session.presence_interval` seconds, those without tasks within
        12 times that.
        """
        await self._jobs.delete(name)

    async def delete_all_jobs(self) -> None:
        """Call `delete_job` for each job."""
        async for document in self._jobs.read_all():
            await self._jobs.delete(document.name)

    # ---- agents and nodes

    async def start(self, *, progress: Progress | None = None) -> None:
        """Start the agents that are missing: one for each node. Idempotent; does not wait for them.

        An elastic pool gets those of its least size; its work brings the others. Two clients that start
        agents at the same moment start one set. `progress` is called with a line that says what is done: for
        a new Python and platform, the agents' packages are fetched first.
        """
        await self._agents.start(Reporter(progress))

    async def stop(self, *, drain: bool = True, progress: Progress | None = None) -> None:
        """Stop the agents; the queued tasks stay for the next ones. Idempotent.

        With `drain` agents finish their running tasks, for at most `agent.drain_grace` seconds, and hand back
        the rest. Without it running tasks are killed, and run again elsewhere when their locks expire.
        `progress` is called with a line whenever the number of agents or running tasks changes.
        """
        await self._agents.stop(Reporter(progress), drain=drain)

    async def repurpose(
        self,
        files: Files,
        *,
        requirements: Requirements | None = None,
        reset: bool = False,
        spec: PoolSpec | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Make these files the default bundle of sessions opened from now on; nodes stay as they are.

        `requirements`: the default Python packages of their tasks; None: these stay. A file is locked here,
        so that other clients do not need it: this raises `EnvironmentFailed` in the resolver's words.

        With `reset` each node is rebooted, one after the other, and runs its start task again: that of
        `spec`, if one is given. This returns when all nodes work, and raises `StartTaskFailed` when one does
        not. `progress` is called with a line whenever the state of a node changes.
        """
        if spec is not None and not reset:
            raise ConfigurationError("repurpose: a spec changes the start task: it needs reset=True")
        packages = None if requirements is None else await self.runtime.environments.defaults(requirements)
        bundle = await upload(await collect(files), self.runtime.ctl)
        if spec is not None:
            await change_start_task(self.runtime, spec)

        def change(manifest: PoolManifest) -> PoolManifest:
            manifest = replace(manifest, bundle=bundle.hash)
            return manifest if packages is None else manifest.requiring(packages)

        await self.runtime.change(change)
        if reset:
            await reboot_all(self.runtime, Reporter(progress), self.explain)
            if self.runtime.open_sessions:
                await self.start(progress=progress)

    async def resize(
        self,
        nodes: int | None = None,
        *,
        spot: int | tuple[int, int] = 0,
        min_nodes: int | None = None,
        max_nodes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Ask Batch for so many nodes, or make the pool elastic; return when Batch has accepted the request.

        With `max_nodes` the pool grows from `min_nodes` (0) up to it with its work, and shrinks without it;
        `spot` is then the most of its spot nodes, or the least and the most. With `nodes` the pool has a
        fixed size. Where there are agents or sessions, new nodes get their agent. A pool that shrinks so
        loses its idlest nodes, after their agents have finished or handed back their tasks
        (`agent.drain_grace`). `progress` is called with a line whenever the number of agents that are still
        to leave changes. Raises `PoolError` for a pool with a formula that batchflow did not write.
        """
        size = PoolSpec(self.id, nodes=nodes, min_nodes=min_nodes, max_nodes=max_nodes, spot=spot)
        pool_spec.check(size)
        if (limits := pool_spec.limits_of(size)) is not None:
            pool_spec.check_idle_exit(size, self.runtime.settings.agent.idle_exit)
            await self._agents.make_elastic(limits, Reporter(progress))
            return
        if nodes is None or isinstance(spot, tuple):
            raise ConfigurationError(f"pool {self.id!r}: resize takes nodes, or max_nodes of an elastic pool")
        await self._agents.resize(nodes, spot, Reporter(progress))
        if self.runtime.open_sessions or await self._agents.exist():
            await self.start(progress=progress)

    async def heartbeats(self) -> list[Heartbeat]:
        """Read the last heartbeats of the living agents."""
        return await self._agents.heartbeats()

    async def nodes(self) -> list[Node]:
        """List the machines, as Batch and the agents report them. Raises `PoolNotFound`."""
        beats = {beat.node: beat for beat in await self.heartbeats()}
        nodes = await self.runtime.connections.compute.nodes(self.id)
        return [node_of(info, beats.get(info.id)) for info in nodes]

    async def wait_ready(
        self,
        nodes: int | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Start the agents, and return when so many nodes (default: all that are wanted) have a ready one.

        `progress` is called with a line whenever the number of nodes or ready agents changes. Raises a
        `PoolError` as soon as it can no longer succeed, TimeoutError after `timeout` seconds. The text of
        both holds the pool's explanation. Safe to cancel.
        """
        report = Reporter(progress)
        await until_ready(self.runtime, nodes, timeout, report, partial(self._start, nodes, report))

    async def _start(self, nodes: int | None, report: Reporter) -> None:
        """Start so many agents, nodes included where the pool is elastic."""
        await self.start(progress=report)
        if nodes is not None and self.runtime.manifest.elastic is not None:
            await self.scaler.want(nodes)

    async def explain(self) -> Explanation:
        """Say why nothing happens, if nothing does, and what to do about it."""
        return await explain_pool(self.runtime)

    async def cost(self) -> Cost:
        """Add up what the pool has cost: node-seconds so far, and money where the prices are known.

        Its agents count their own seconds, and record them with their heartbeats. Raises
        `ConfigurationError` for a price file that is none, `StorageError`. Safe to cancel.
        """
        self.runtime.cost = await measure_cost(self.runtime)
        return self.runtime.cost

    async def client_settings(self) -> Settings:
        """Make the settings for a program that may use this pool and do nothing else.

        They hold no key of an account. `to_toml()` of them is the program's configuration file, a secret.
        With it `Client.from_config` and `client.pool` open sessions; to create, resize and remove is refused.
        The rights end with the pool, or after a week if this client has no key of the Storage account.
        """
        await self.runtime.change(lambda manifest: replace(manifest, shared=True))
        storage, services = self.runtime.connections.storage, self.runtime.connections
        await storage.create_container(self.runtime.manifest.ctl, access.ctl_policies())
        await storage.create_container(self.runtime.manifest.out, access.out_policies())
        return await access.client_settings(services, self.runtime.settings, self.runtime.manifest)

    async def delete(self, *, wait: bool = False, progress: Progress | None = None) -> None:
        """Remove the agents, queues, documents and files, and the machines if batchflow created them.

        The pool's sessions in this program are closed; queued tasks and unread results are lost. Idempotent.
        The machines are removed after the return, on Azure within minutes; with `wait`, before it.
        `progress` is called with a line at each step.
        """
        sessions, report = self.runtime.open_sessions, Reporter(progress)
        if sessions:
            report(f"closing {counted(len(sessions), 'session')}")
        await close_sessions(sessions, f"pool {self.id!r} was deleted")
        report("removing its agents, queues and files")
        settings = self.runtime.settings
        provisioner = PoolProvisioner(self.runtime.connections, settings.pool, agent=settings.agent)
        await provisioner.remove(self.runtime.manifest)
        if wait:
            await provisioner.until_gone(self.id, report)

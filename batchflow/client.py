"""An open connection to one deployment: Batch account, Storage account, Service Bus namespace."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Unpack

from batchflow.config.loader import load_settings
from batchflow.diagnosis.figures import look_at_all
from batchflow.diagnosis.live_view import LiveView
from batchflow.environments.variables import change_pool_variables
from batchflow.errors import (
    ConfigurationError,
    PoolNotFound,
    SessionClosed,
)
from batchflow.files import BundleSource, Files, collect, upload
from batchflow.model import Origin, PoolSpec
from batchflow.pools import node_logs, pool_spec
from batchflow.pools.connections import connect, preload
from batchflow.pools.monitoring.shipper import shipping
from batchflow.pools.open_sessions import OpenSessions
from batchflow.pools.runtime import PoolRuntime
from batchflow.pools.sweep import DAY, Swept, sweep, sweep_when_due
from batchflow.protocol import layout
from batchflow.protocol.documents import DefaultPackages
from batchflow.settings import PoolSettings, Settings
from batchflow.support.event_log import event_logger
from batchflow.support.progress_report import Reporter
from batchflow.support.supervised import Supervised
from batchflow.support.task_groups import task_group
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.dashboard.server import ClientPages, PageOptions
    from batchflow.pool import Pool
    from batchflow.pools.connections import Connections
    from batchflow.pools.node_logs import NodeLog
    from batchflow.pools.provisioning import PoolProvisioner
    from batchflow.protocol.documents import PoolManifest
    from batchflow.support.progress_report import Progress

logger = event_logger(__name__)

_NOT_OPEN = "the client is not open: use `async with` or `await`, and not after aclose()"


class Client(LiveView, Supervised):
    """A connection to one deployment: creates, finds and deletes pools.

    Opened by `async with` or `await`; closed by leaving it or by `aclose`, also from another asyncio task.

    ``async with Client.local() as client`` or ``client = await Client.from_config()``.

    It works in the event loop that opened it, as all that comes from it does. In another thread, another
    `asyncio.run()` or a forked child its methods raise `WrongEventLoop`. Only `settings` and `repr` may be
    used in any thread.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__("batchflow client")
        self.close_timeout += settings.session.close_timeout  # that of its sessions, which are closed first
        self._settings = settings
        self._local_options: dict[str, float] = {}
        self._connected: Connections | None = None
        self._sessions = OpenSessions()
        """The sessions that are open, in all pools."""
        self._pages: ClientPages | None = None

    @classmethod
    def local(
        cls,
        *,
        nodes: int = 2,
        slots: int = 1,
        latency: float = 0.0,
        boot_time: float = 0.0,
        autoscale_interval: float = 300.0,
    ) -> Client:
        """Make a client of a local cloud of its own, which starts and ends with the client.

        `nodes`: the number for pools that do not say otherwise. `slots`: tasks at once on a node; 0: one for
        each core of this machine. `latency`: seconds by which the cloud delays each answer. For elastic
        pools, `boot_time`: seconds that a node takes to boot; `autoscale_interval`: seconds between two
        evaluations of their formula, as on Azure by default.
        """
        if min(nodes, slots, latency, boot_time) < 0 or autoscale_interval < 1:
            text = "nodes, slots, latency and boot_time are not negative, autoscale_interval is 1 or more"
            raise ConfigurationError(f"Client.local: {text}")
        pool = PoolSettings(nodes=nodes, slots=slots, autoscale_interval=autoscale_interval)
        client = cls(Settings(target="local", pool=pool))
        client._local_options = {"latency": latency, "boot_time": boot_time}
        return client

    @classmethod
    def from_config(cls, path: str | PathLike[str] | None = None, *, profile: str | None = None) -> Client:
        """Make a client from a configuration file, its profile and the environment: see `batchflow.settings`.

        Raises `ConfigurationError` at once when a setting is wrong or missing.
        """
        settings = load_settings(path, profile=profile)
        if settings.target == "azure":
            settings.check()
        return cls(settings)

    @property
    def settings(self) -> Settings:
        """The settings by which another program can connect. They hold secrets.

        `to_toml()` of them is a configuration file.
        """
        return self._settings

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not open" if self._supervisor is None else "open"
        return f"<Client on {self._settings.target}, {state}>"

    def _repr_html_(self) -> str:
        from batchflow.display.html import client_card

        sessions = sorted(self._sessions, key=lambda session: (session.pool_id, session.name))
        shown = [each.summary() for each in sessions]
        return client_card(self._settings, self.closed, self._sessions.figures, shown)

    async def _ask(self) -> None:
        await look_at_all(self._sessions.figures, [(pool.runtime, pool.cost) async for pool in self.pools()])

    async def create_pool(self, spec: PoolSpec) -> Pool:
        """Create machines, queues and documents. Does not wait for nodes. Raises `PoolExists`."""
        self._check_spec(spec)
        sources = await collect(spec.files)
        manifest = await self._provisioner(await self._packages(spec)).create(spec, sources)
        return await self._created(manifest, "it was asked for", sources)

    async def _created(self, manifest: PoolManifest, why: str, sources: Sequence[BundleSource]) -> Pool:
        """Return a pool that was just made; its origin says where the account's quota ends before it."""
        pool = self._known(manifest, Origin("created", why), sources)
        if manifest.elastic is not None:
            from batchflow.pools.elastic.quota import known_quota

            if (note := await known_quota(pool.runtime)) is not None:
                pool.origin = Origin("created", f"{why}; {note}")
        return pool

    def _check_spec(self, spec: PoolSpec) -> None:
        pool_spec.check(spec)
        pool_spec.check_idle_exit(spec, self._settings.agent.idle_exit)

    async def pool(self, pool_id: str, *, progress: Progress | None = None) -> Pool:
        """Attach to a pool without changing its machines and what runs there. Raises `PoolNotFound`.

        A Batch pool that batchflow does not know yet gets queues and documents beside it. If another client
        creates the pool at this moment, this waits for it and tells `progress`.
        """
        layout.check_pool_id(pool_id)
        manifest = await self.provisioner.attach(pool_id, Reporter(progress))
        return self._known(manifest, Origin("attached", "it was asked for"))

    async def ensure_pool(
        self,
        pool_id: str,
        *,
        files: Files = (),
        nodes: int | None = None,
        spec: PoolSpec | None = None,
        progress: Progress | None = None,
    ) -> Pool:
        """Create the pool, or reuse it, or repurpose it for these files: `pool.origin` says which and why.

        Does not wait for nodes, but waits until a pool of that name that is being deleted is gone. An
        existing pool keeps its VM size, image and start task; `nodes` resizes it unless it is elastic, and
        sessions that are opened from now on have the spec's `env`, `secrets` and requirements; nothing is
        rebooted. A file of requirements is locked here: this raises `EnvironmentFailed` in the resolver's
        words. `progress` is called with a line that says what is waited for.
        """
        report = Reporter(progress)
        spec = replace(spec or PoolSpec(pool_id), id=pool_id)
        spec = replace(spec, nodes=spec.nodes if nodes is None else nodes)
        self._check_spec(spec)
        sources = await collect(files or spec.files)
        packages = await self._packages(spec)
        found = await self._provisioner(packages).ensure(spec, sources, report)
        if found.created:
            return await self._created(found.manifest, "there was none of that name", sources)
        pool = self._known(found.manifest, Origin("reused", found.why_reused(spec)), sources)
        if sources:
            bundle = await upload(sources, pool.runtime.ctl)
            if bundle.hash != found.manifest.bundle:
                await pool.runtime.change(lambda current: replace(current, bundle=bundle.hash))
                pool.origin = Origin("repurposed", f"other files than before; {pool.origin.why}")
        if spec.env is not None or spec.secrets is not None:
            await change_pool_variables(pool.runtime, partial(pool_spec.variables_of, spec))
        if packages is not None and packages != found.manifest.packages:
            await pool.runtime.change(lambda current: current.requiring(packages))
            pool.origin = Origin("repurposed", f"other requirements than before; {pool.origin.why}")
        info = found.info
        fixed = info is not None and info.allocation == "steady" and not info.autoscale
        if nodes is not None and info is not None and fixed and info.wanted != nodes:
            await pool.resize(nodes, spot=info.spot_wanted, progress=report)
        logger.info("pool_found", extra={"pool": pool_id, "origin": str(pool.origin)})
        return pool

    async def pools(self) -> AsyncIterator[Pool]:
        """Iterate over the pools of this account that batchflow knows."""
        async for manifest in self.connections.manifests.read_all():
            yield self._known(manifest)

    async def find_pool(self) -> Pool:
        """Find a pool that can take work: the one with the most nodes. Raises `PoolNotFound`."""
        found: list[tuple[int, Pool]] = []
        async for pool in self.pools():
            try:
                info = await self.connections.compute.pool(pool.id)
            except PoolNotFound:
                continue
            if info.state == "active" and (info.target or pool.runtime.manifest.elastic):
                found.append((info.size, pool))
        if not found:
            raise PoolNotFound("no pool of batchflow has nodes: make one with client.ensure_pool()")
        pool = max(found, key=lambda each: each[0])[1]
        pool.origin = Origin("attached", "of those that have nodes it has most")
        return pool

    async def sweep(self, *, bundle_age: float = 30 * DAY, retention: float | None = None) -> Swept:
        """Remove what dead clients and deleted pools left, and return what it was: see `pools.sweep`.

        `bundle_age`: seconds after which a bundle that no session uses is removed. `retention`: seconds for
        which arguments of tasks of ended sessions are kept, by default `session.retention`. A client sweeps
        by itself a minute after its opening, if the last sweep of the account is a day old.
        """
        kept = self.settings.session.retention if retention is None else retention
        return await sweep(self.connections, bundle_age=bundle_age, retention=kept)

    async def delete_pool(
        self, pool_id: str, *, wait: bool = False, progress: Progress | None = None
    ) -> None:
        """Remove what batchflow created for the pool, as `Pool.delete` does.

        A pool whose creator died before it was complete is removed as well, without waiting. Raises
        `PoolNotFound` when there is nothing of that name.
        """
        layout.check_pool_id(pool_id)
        manifest = await self.connections.manifests.read(pool_id)
        if manifest is not None:
            await self._known(manifest).delete(wait=wait, progress=progress)
        elif not await self.provisioner.remove_unfinished(pool_id):
            raise PoolNotFound(f"batchflow has no pool {pool_id!r} in this account")

    async def delete_all_pools(self) -> None:
        """Delete all pools that batchflow knows or began to create, and no others."""
        pools = [pool.id async for pool in self.pools()] + await self.provisioner.unfinished()
        async with task_group() as group:
            for pool_id in pools:
                group.start_soon(self._delete_if_there, pool_id)

    async def _delete_if_there(self, pool_id: str) -> None:
        with contextlib.suppress(PoolNotFound):  # another client was quicker
            await self.delete_pool(pool_id)

    async def logs(self, pool_id: str | None = None) -> AsyncIterator[NodeLog]:
        """Iterate over the logs of a pool's agents, the oldest first; None: of all deleted pools.

        The logs of a deleted pool are kept for 30 days. A client of one pool sees the logs of that pool until
        it is deleted.
        """
        manifests = self.connections.manifests
        manifest = None if pool_id is None else await manifests.read(layout.check_pool_id(pool_id))
        out = None if manifest is None else self.connections.storage.container(manifest.out)
        async for log in node_logs.find(out, manifests.index, pool_id):
            yield log

    async def dashboard(self, **options: Unpack[PageOptions]) -> str:
        """Serve the live page of the pools until the client closes; return its address, a secret.

        Options: `dashboard.server.PageOptions`. Raises `ConfigurationError` if it cannot have the address.
        """
        from batchflow.dashboard.server import ClientPages

        self._pages = self._pages or ClientPages(self)
        return await self._pages.open(options)

    @property
    def connections(self) -> Connections:
        """The open connections to the three services.

        Raises `SessionClosed` when the client is not open, `WrongEventLoop` outside of its event loop.
        """
        self._affinity.check()
        if self.closed:
            raise SessionClosed(_NOT_OPEN)
        return self._services()

    def _services(self) -> Connections:
        """The connections for sessions, which are closed before these, and work until then."""
        self._affinity.check()
        if self._connected is None:
            raise SessionClosed(_NOT_OPEN)
        return self._connected

    @property
    def provisioner(self) -> PoolProvisioner:
        """The part that creates, finds and removes pools."""
        return self._provisioner(None)

    def _provisioner(self, packages: DefaultPackages | None) -> PoolProvisioner:
        from batchflow.pools.provisioning import PoolProvisioner

        return PoolProvisioner(self.connections, self._settings.pool, packages, agent=self._settings.agent)

    async def _packages(self, spec: PoolSpec) -> DefaultPackages | None:
        """Return what a spec requires; None: it does not say. A file is read and locked here."""
        if (required := pool_spec.required(spec)) is None:
            return None
        if isinstance(required, tuple):
            return DefaultPackages(required)
        from batchflow.environments.session import environments_for

        python, carried = await self.provisioner.python_of(spec)
        return await environments_for(self._settings.agent, python, carried=carried).defaults(required)

    def _known(
        self, manifest: PoolManifest, origin: Origin | None = None, sources: Sequence[BundleSource] = ()
    ) -> Pool:
        """Make the pool of a manifest. Imports `Pool` this late so that `preload` imports it in a thread."""
        from batchflow.pool import Pool

        runtime = PoolRuntime(self._services, self._settings, manifest, self._sessions)
        return Pool(runtime, origin, sources)

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            if self._settings.target == "local" and not self._settings.connected:
                await self._start_local(stack)
            connected = self._connected = await connect(self._settings, _load_pool)
            stack.push_async_callback(self._disconnect, connected)
            await stack.enter_async_context(shipping(self._settings, self._sessions))
            self._ready()
            sweeping = asyncio.create_task(sweep_when_due(connected, self._settings), name="batchflow sweep")
            try:
                await self._closing.wait()
                if self._pages is not None:
                    await self._pages.aclose()
                await self._sessions.close_all()
            finally:
                sweeping.cancel()
                await asyncio.wait([sweeping])

    async def _start_local(self, stack: AsyncExitStack) -> None:
        from batchflow.local.launch import CLOSE_TIMEOUT, LocalCloudProcess

        pool = self._settings.pool
        slots = pool.slots or os.cpu_count() or 1  # a local node has all of this machine's cores
        cloud = LocalCloudProcess(
            nodes=pool.nodes,
            slots=slots,
            autoscale_interval=pool.autoscale_interval,
            **self._local_options,
        )
        stack.push_async_callback(cloud.aclose)
        self.close_timeout: float = self.close_timeout + CLOSE_TIMEOUT
        async with task_group() as group:
            group.start_soon(in_thread, preload, _load_pool)
            config = await cloud.start()
        settings = load_settings(config, environment={})
        config.unlink(missing_ok=True)  # nothing else needs the keys in it, and tasks could read them
        self._settings = replace(
            self._settings,
            batch=settings.batch,
            storage=settings.storage,
            servicebus=settings.servicebus,
            agent=replace(self._settings.agent, python=self._settings.agent.python or settings.agent.python),
        )

    async def _disconnect(self, connected: Connections) -> None:
        self._connected = None
        await connected.aclose()


def _load_pool() -> None:
    """Import what pools are made with."""
    import batchflow.pool
    import batchflow.pools.provisioning  # noqa: F401

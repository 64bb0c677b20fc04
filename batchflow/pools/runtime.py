"""What all parts of one pool work with: connections, containers, settings and the manifest."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from batchflow.pools.open_sessions import OpenSession, OpenSessions
from batchflow.pools.reports.heartbeats import sample_heartbeats
from batchflow.pools.reports.usage import UsageReader
from batchflow.support.shared_call import SharedCalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.costs.cost import Cost
    from batchflow.environments.session import PoolEnvironments
    from batchflow.pools.connections import Connections
    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.pools.shared_load import PoolLoad
    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import PoolManifest
    from batchflow.settings import Settings


class PoolRuntime:
    """One pool's connections, containers, settings and manifest. Knows no `Pool` and no `Session`."""

    def __init__(
        self,
        connections: Callable[[], Connections],
        settings: Settings,
        manifest: PoolManifest,
        sessions: OpenSessions | None = None,
    ) -> None:
        """`connections`: the open connections; raises `SessionClosed` when their client was closed."""
        self._connections = connections
        self.settings = settings
        self.manifest: PoolManifest = manifest
        """The manifest as it was read last."""
        self.sessions: OpenSessions = OpenSessions() if sessions is None else sessions
        """The sessions that the client has open, in this pool and others."""
        self._ctl = connections().storage.container(manifest.ctl)
        self._out = connections().storage.container(manifest.out)
        self.usage: UsageReader = UsageReader(self._out)
        """What its agents have used of their nodes."""
        self.cost: Cost | None = None
        """What the pool had cost when that was asked for last, for views that cannot ask."""
        self.at_rest = False
        """Whether the pool, an elastic one, had no agents and this client no tasks in it, when that was seen
        last. Then its sessions ask and tell seldom."""
        self.etags: SharedCalls[str, dict[str, str]] = SharedCalls(self._etags)
        """The ETags of the blobs below a prefix of the control container, by name."""
        self._samples: SharedCalls[str, Sample] = SharedCalls(lambda _: sample_heartbeats(self._out))

    async def _etags(self, prefix: str) -> dict[str, str]:
        return {info.name: info.etag async for info in self.ctl.list(prefix)}

    async def sample(self) -> Sample:
        """Read the heartbeats of some agents. Sessions that do so at the same time share the requests.

        Raises `StorageError`.
        """
        found = await self._samples.get(self.pool_id)
        return await sample_heartbeats(self._out) if found is None else found

    @property
    def pool_id(self) -> str:
        return self.manifest.pool

    @property
    def connections(self) -> Connections:
        """The open connections of the client, also while it closes its sessions.

        Raises `SessionClosed` after that, `WrongEventLoop` outside of its event loop.
        """
        return self._connections()

    @cached_property
    def environments(self) -> PoolEnvironments:
        """The environments of the pool's tasks."""
        from batchflow.environments.session import environments_for

        return environments_for(
            self.settings.agent,
            self.manifest.python,
            self._agents_take_wheels,
            carried=self.manifest.interpreter is not None,
        )

    @property
    def expected_pythons(self) -> frozenset[str]:
        """The minor versions of Python on the pool's nodes, as far as settings and manifest tell."""
        from batchflow.environments.session import known_python

        carried = self.manifest.interpreter is not None
        known = known_python(self.settings.agent, self.manifest.python, carried=carried)
        return frozenset(() if known is None else (known,))

    async def _agents_take_wheels(self) -> bool | None:
        """Tell whether all living agents install environments from wheels; None when no agent lives."""
        beats = (await sample_heartbeats(self.out)).beats
        return all(beat.takes_wheels for beat in beats) if beats else None

    @property
    def load(self) -> PoolLoad:
        """What the client's sessions have learned of the pool, and have under way there."""
        return self.sessions.load_of(self.pool_id)

    @property
    def ctl(self) -> Container:
        """The control container: clients write, agents read. Raises as `connections` does."""
        self._connections()
        return self._ctl

    @property
    def out(self) -> Container:
        """The output container: agents write, clients read. Raises as `connections` does."""
        self._connections()
        return self._out

    @property
    def open_sessions(self) -> list[OpenSession]:
        """The sessions that the client has open in this pool."""
        return self.sessions.of_pool(self.pool_id)

    async def refresh(self) -> None:
        """Read the manifest again. Raises `PoolNotFound` when the pool was deleted."""
        self.manifest, _ = await self.connections.manifests.refresh(self.manifest)

    async def change(self, change: Callable[[PoolManifest], PoolManifest]) -> None:
        """Change the manifest, again when another client changed it meanwhile. Raises `PoolNotFound`."""
        self.connections.check_unrestricted(f"pool {self.pool_id!r} cannot be changed")
        self.manifest = await self.connections.manifests.change(self.manifest, self.ctl, change)

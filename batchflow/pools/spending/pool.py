"""What the costs and budgets of a pool are worked out from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from batchflow.pools.reports.usage import UsageReader
    from batchflow.ports.compute import Compute
    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import PoolManifest
    from batchflow.settings import Settings


class SpendingConnections(Protocol):
    """The client's connections, as far as costs matter."""

    @property
    def restricted(self) -> bool:
        """Whether the client may not ask Batch."""

    @property
    def compute(self) -> Compute: ...


class SpendingPool(Protocol):
    """A pool, as far as costs matter."""

    settings: Settings
    manifest: PoolManifest
    usage: UsageReader

    @property
    def pool_id(self) -> str: ...

    @property
    def connections(self) -> SpendingConnections: ...

    @property
    def ctl(self) -> Container: ...

    @property
    def out(self) -> Container: ...

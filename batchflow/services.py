"""The three services that a client uses, behind their ports, made from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from batchflow.concurrency import task_group

if TYPE_CHECKING:
    from batchflow.broker import Broker, BrokerAdmin
    from batchflow.compute import Compute
    from batchflow.settings import Settings
    from batchflow.storage import Storage


@dataclass(frozen=True, slots=True)
class Services:
    """Open connections; each makes its links when it is first asked."""

    broker: Broker
    admin: BrokerAdmin
    storage: Storage
    compute: Compute

    async def aclose(self) -> None:
        """Idempotent."""
        async with task_group() as group:
            for service in (self.broker, self.admin, self.storage, self.compute):
                group.start_soon(service.aclose)


def preload() -> None:
    """Import the SDKs: slow, so done in a thread beside whatever else an opening waits for."""
    import batchflow.azure.batch
    import batchflow.azure.blob
    import batchflow.azure.servicebus  # noqa: F401


async def connect(settings: Settings) -> Services:
    """Make the connections. Raises `ConfigurationError` for settings that are missing or cannot be right."""
    settings.check()
    await anyio.to_thread.run_sync(preload)
    from batchflow.azure.batch import BatchCompute
    from batchflow.azure.blob import BlobStorage
    from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker

    batch, storage, bus = settings.batch, settings.storage, settings.servicebus
    namespace = bus.connection_string or ""
    return Services(
        broker=ServiceBusBroker(namespace, ca_file=bus.ca_file, websockets=bus.websockets),
        admin=ServiceBusAdmin(namespace, ca_file=bus.ca_file),
        storage=BlobStorage(storage.connection_string or ""),
        compute=BatchCompute(batch.account or "", None if batch.entra else batch.key or "", batch.url or ""),
    )

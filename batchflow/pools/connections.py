"""The three services that a client uses, behind their ports, made from the settings."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from batchflow.errors import BrokerError, ConfigurationError, PoolError
from batchflow.pools.manifest_store import ManifestStore
from batchflow.protocol.layout import INDEX_CONTAINER
from batchflow.support.frozen import frozen
from batchflow.support.process_tuning import collector_paused
from batchflow.support.task_groups import task_group
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from batchflow.ports.broker import Broker, BrokerAdmin, QueueFigures, QueueRef
    from batchflow.ports.compute import Compute
    from batchflow.ports.storage import Storage
    from batchflow.settings import Settings

_RESTRICTED: Final = (
    "this client has the rights of one pool's clients alone (settings access.*); let a client that has the "
    "accounts' keys, or a role in Entra ID, do this"
)


@frozen
class Connections:
    """Open connections; each makes its links when it is first asked.

    A client of one pool alone has neither an administration of queues nor machines: asking for these raises
    `BrokerError` and `PoolError`, which say so.
    """

    broker: Broker
    queues_admin: BrokerAdmin | None
    storage: Storage
    machines: Compute | None
    identity: AbstractAsyncContextManager[object] | None = None
    """The credential of Entra ID where there is one: closed after those that use it."""
    more_admins: tuple[BrokerAdmin, ...] = ()
    """The administrations of the namespaces after the first."""
    keyless: bool = False
    """Whether Entra ID opens Storage or Service Bus: then there may be no keys for agents."""

    @property
    def manifests(self) -> ManifestStore:
        """The manifests of the account's pools; of one pool, for a client of one pool alone."""
        return ManifestStore(self.storage.container(INDEX_CONTAINER))

    @property
    def restricted(self) -> bool:
        """Whether this is a client of one pool alone."""
        return self.machines is None

    def check_unrestricted(self, doing: str) -> None:
        """Raise `PoolError` if this is a client of one pool alone, which must not do this."""
        if self.restricted:
            raise PoolError(f"{doing}: {_RESTRICTED}")

    @property
    def admin(self) -> BrokerAdmin:
        if self.queues_admin is None:
            raise BrokerError(f"queues cannot be administered: {_RESTRICTED}")
        return self.queues_admin

    @property
    def admins(self) -> tuple[BrokerAdmin, ...]:
        """The administrations of all namespaces."""
        return (self.admin, *self.more_admins)

    def admin_of(self, queue: QueueRef) -> BrokerAdmin:
        """Return the administration of the queue's namespace. Raises `ConfigurationError` when unknown."""
        for admin in self.admins:
            if admin.namespace == queue.namespace:
                return admin
        known = ", ".join(admin.namespace for admin in self.admins)
        raise ConfigurationError(
            f"queue {queue.entity} is in {queue.namespace}; servicebus.connection_string (or .namespace) is "
            f"for {known}: add that namespace to it"
        )

    async def figures(self, queues: Sequence[QueueRef]) -> list[QueueFigures]:
        """Return the numbers of messages in each queue, asked for at once. Raises `BrokerError`."""
        found: dict[QueueRef, QueueFigures] = {}

        async def ask(queue: QueueRef) -> None:
            found[queue] = await self.admin_of(queue).figures(queue.entity)

        async with task_group() as group:
            for queue in queues:
                group.start_soon(ask, queue)
        return [found[queue] for queue in queues]

    @property
    def compute(self) -> Compute:
        if self.machines is None:
            raise PoolError(f"the Batch account is out of reach: {_RESTRICTED}")
        return self.machines

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        async with task_group() as group:
            parts = (self.broker, self.queues_admin, *self.more_admins, self.storage, self.machines)
            for service in parts:
                if service is not None:
                    group.start_soon(service.aclose)
        if self.identity is not None:
            await self.identity.__aexit__(None, None, None)


def preload(load_more: Callable[[], object] | None = None) -> None:
    """Import the SDKs, then call `load_more`, which imports what else a client needs.

    Imports take long, so this runs in a thread beside other waits.
    """
    beside = threading.Thread(target=_load_http, name="batchflow load http", daemon=True)
    with collector_paused():
        beside.start()
        import batchflow.azure.batch
        import batchflow.azure.servicebus

        if load_more is not None:
            load_more()
        beside.join()
        import batchflow.azure.blob  # noqa: F401


def _load_http() -> None:
    """Import aiohttp in a thread of its own: half of the time it reads certificates, without the GIL."""
    import aiohttp  # noqa: F401


async def connect(settings: Settings, load_more: Callable[[], object] | None = None) -> Connections:
    """Make the connections. Raises `ConfigurationError` for missing or wrong settings.

    `load_more`: imports what else the client needs, in the thread that imports the SDKs.
    """
    settings.check()
    await in_thread(preload, load_more)
    return _to_one_pool(settings) if settings.access.pool else _to_accounts(settings)


def _to_accounts(settings: Settings) -> Connections:
    from batchflow.azure.batch import BatchCompute
    from batchflow.azure.blob import BlobStorage
    from batchflow.azure.identity import logged_in
    from batchflow.azure.namespaces import each_of
    from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker

    batch, storage, bus = settings.batch, settings.storage, settings.servicebus
    by_identity = {
        "batch.entra": batch.entra,
        "storage.account_url": storage.account_url is not None,
        "servicebus.namespace": bus.namespace is not None,
    }
    wanting = [name for name, wanted in by_identity.items() if wanted]
    identity = logged_in(wanting[0]) if wanting else None
    account = storage.account_url or storage.connection_string or ""
    namespaces = bus.namespace or bus.connection_string or ""
    of_storage = identity if storage.account_url else None
    of_bus = identity if bus.namespace else None
    key = identity if batch.entra and identity is not None else batch.key or ""
    admin, *more = (ServiceBusAdmin(each, of_bus, ca_file=bus.ca_file) for each in each_of(namespaces))
    return Connections(
        ServiceBusBroker(namespaces, of_bus, ca_file=bus.ca_file, websockets=bus.websockets),
        admin,
        BlobStorage(account, of_storage, ca_file=storage.ca_file),
        BatchCompute(batch.account or "", key, batch.url or "", ca_file=batch.ca_file),
        identity,
        tuple(more),
        keyless=of_storage is not None or of_bus is not None,
    )


def _to_one_pool(settings: Settings) -> Connections:
    from batchflow.azure.blob import SignedContainer
    from batchflow.azure.servicebus import ServiceBusBroker
    from batchflow.pools.restricted import PoolStorage, queues_of

    access, bus, ca_file = settings.access, settings.servicebus, settings.storage.ca_file
    ctl, out = (
        SignedContainer(*(url or "").partition("?")[::2], ca_file=ca_file, setting=f"access.{name}")
        for name, url in (("ctl", access.ctl), ("out", access.out))
    )
    return Connections(
        ServiceBusBroker(
            None,
            by_queue=queues_of(access),
            ca_file=bus.ca_file,
            websockets=bus.websockets,
            setting="access.task_queues or access.results_queues",
        ),
        None,
        PoolStorage(access.pool or "", ctl, out),
        None,
    )

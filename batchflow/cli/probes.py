"""Tries the three accounts: what answers, what does not, what is missing, and how to get it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from batchflow.cli import terminal
from batchflow.errors import BatchflowError, ConfigurationError, QueueNotFound
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from batchflow.pools.connections import Connections
    from batchflow.settings import Settings

_PATIENCE: Final = 20.0
"""Seconds that an account has to answer."""
_PROBE_QUEUE: Final = "batchflow-doctor"
"""A queue that is not there: a namespace that says so can be reached."""

_GET: Final = {
    "batch.account": "az batch account create --name NAME --resource-group GROUP --location REGION",
    "batch.key": "az batch account keys list --name NAME --resource-group GROUP --query primary -o tsv",
    "batch.url": "az batch account show --name NAME --resource-group GROUP --query accountEndpoint -o tsv, "
    "with https:// before it",
    "storage.connection_string": "az storage account show-connection-string --name NAME "
    "--resource-group GROUP --query connectionString -o tsv",
    "servicebus.connection_string": "az servicebus namespace authorization-rule keys list "
    "--name RootManageSharedAccessKey --namespace-name NAME --resource-group GROUP "
    "--query primaryConnectionString -o tsv; the namespace has to be of the Standard or Premium tier",
}
"""How to get what is missing, with the az CLI."""


@frozen
class Check:
    """One thing that was checked, and what to do when it is wrong."""

    what: str
    ok: bool
    finding: str
    remedy: str = ""

    def show(self) -> None:
        terminal.write(f"{'ok  ' if self.ok else 'FAIL'}  {self.what}: {self.finding}")
        if self.remedy:
            terminal.write(f"      what to do: {self.remedy}")

    def document(self) -> dict[str, Any]:
        return {"what": self.what, "ok": self.ok, "told": self.finding, "remedy": self.remedy}


async def try_accounts(settings: Settings) -> list[Check]:
    """Check the accounts whose settings are complete; name what is missing of the others."""
    if settings.access.pool:
        return [
            Check("accounts", True, f"not asked: this client has the rights of pool {settings.access.pool}")
        ]
    missing = [Check(name, False, "is not set", _GET.get(name, "")) for name in settings.missing]
    lacking = {check.what.partition(".")[0] for check in missing}
    try:
        services = await _connect(settings, lacking)
    except ConfigurationError as error:
        return [*missing, Check("settings", False, str(error), "correct that setting")]
    probes = [probe for probe in (_BATCH, _STORAGE, _BUS, _MESSAGES) if probe.group not in lacking]
    try:
        return [*missing, *await asyncio.gather(*(probe.ask(services) for probe in probes))]
    finally:
        await services.aclose()


async def _connect(settings: Settings, lacking: set[str]) -> Connections:
    """Connect. Missing settings get placeholders of the right form, because that service is not asked."""
    from batchflow.pools.connections import connect
    from batchflow.settings import BatchSettings, ServiceBusSettings, StorageSettings

    key = "bm9uZQ=="
    stand_ins = {
        "batch": BatchSettings("none", key, "https://none.invalid"),
        "storage": StorageSettings(f"DefaultEndpointsProtocol=https;AccountName=none;AccountKey={key}"),
        "servicebus": ServiceBusSettings(
            f"Endpoint=sb://none.invalid/;SharedAccessKeyName=none;SharedAccessKey={key}"
        ),
    }
    changes: dict[str, Any] = {group: stand_ins[group] for group in lacking}
    return await connect(replace(settings, **changes))


@frozen
class _Probe:
    what: str
    group: str
    question: Callable[[Connections], Awaitable[str]]
    remedy: str

    async def ask(self, services: Connections) -> Check:
        try:
            async with asyncio.timeout(_PATIENCE):
                return Check(self.what, True, await self.question(services))
        except TimeoutError:
            return Check(self.what, False, f"no answer within {_PATIENCE:.0f} s", self.remedy)
        except BatchflowError as error:
            return Check(self.what, False, str(error), self.remedy)


async def _ask_batch(services: Connections) -> str:
    pools = [pool.id async for pool in services.compute.pools()]
    images = counted(len(await services.compute.images()), "image")
    return f"{counted(len(pools), 'pool')}, {images} to make nodes of"


async def _ask_storage(services: Connections) -> str:
    return counted(len(await services.storage.containers()), "container")


async def _ask_bus(services: Connections) -> str:
    queues = counted(len(await services.admin.queues()), "queue")
    return f"{queues} in {services.admin.namespace}; it may be administered"


async def _ask_messages(services: Connections) -> str:
    from batchflow.ports.broker import QueueRef

    try:
        sender = await services.broker.sender(QueueRef(services.admin.namespace, _PROBE_QUEUE))
    except QueueNotFound:
        return "reached"
    await sender.aclose()
    return "reached"


_BATCH = _Probe("Batch account", "batch", _ask_batch, "check batch.url, batch.account and batch.key")
_STORAGE = _Probe("Storage account", "storage", _ask_storage, "check storage.connection_string")
_BUS = _Probe("Service Bus", "servicebus", _ask_bus, "check servicebus.connection_string: it needs Manage")
_MESSAGES = _Probe(
    "Service Bus messages",
    "servicebus",
    _ask_messages,
    "if a firewall keeps port 5671 closed: servicebus.websockets = true",
)

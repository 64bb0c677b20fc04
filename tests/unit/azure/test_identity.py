"""Entra ID in place of keys, as far as it can be seen without any service."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from azure.core.credentials import AccessToken

from batchflow.azure.batch import BatchCompute
from batchflow.azure.blob import BlobStorage
from batchflow.azure.identity import logged_in, of_the_node
from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker
from batchflow.errors import BrokerError, ConfigurationError, PoolError, StorageError
from batchflow.pools.connections import connect
from batchflow.ports.broker import QueueRef
from batchflow.settings import BatchSettings, ServiceBusSettings, Settings, StorageSettings

KEYLESS = Settings(
    batch=BatchSettings(account="a", url="https://a.region.batch.azure.com", entra=True),
    storage=StorageSettings(account_url="https://a.blob.core.windows.net"),
    servicebus=ServiceBusSettings(namespace="a.servicebus.windows.net"),
)
NOWHERE = "https://127.0.0.1:9"


class Login:
    """A credential that notes for what a token was asked, and gives none that opens anything."""

    def __init__(self) -> None:
        self.scopes: list[str] = []
        self.closed = False

    async def get_token(self, *scopes: str, **_: object) -> AccessToken:
        self.scopes += scopes
        return AccessToken("nothing", 2**31)

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Login:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def test_no_key_is_needed() -> None:
    """With Entra ID for each service nothing is missing; each can be had by itself."""
    assert KEYLESS.connected
    assert not replace(KEYLESS, batch=replace(KEYLESS.batch, entra=False)).connected
    assert not replace(KEYLESS, storage=StorageSettings()).connected
    assert not replace(KEYLESS, servicebus=ServiceBusSettings()).connected


async def test_a_token_is_asked_for_batch() -> None:
    """A request asks the credential for a token for Batch; closing leaves it to its owner."""
    login = Login()
    async with BatchCompute("account", login, NOWHERE) as compute:
        with pytest.raises(PoolError):
            await compute.pool("any")
    assert login.scopes == ["https://batch.core.windows.net//.default"]
    assert not login.closed


async def test_a_token_is_asked_for_storage() -> None:
    """The same for Storage."""
    login = Login()
    async with BlobStorage(f"{NOWHERE}/account", login) as storage:
        with pytest.raises(StorageError) as caught:
            await storage.container("any").get("blob")
    assert login.scopes == ["https://storage.azure.com/.default"]
    assert caught.value.setting in (None, "storage.account_url")


async def test_a_token_is_asked_for_service_bus() -> None:
    """The same for the administration of Service Bus."""
    login = Login()
    async with ServiceBusAdmin("127.0.0.1:9", login) as admin:
        with pytest.raises(BrokerError):
            await admin.queues()
    assert login.scopes == ["https://servicebus.azure.net//.default"]


async def test_a_token_goes_to_no_other_namespace() -> None:
    """A queue of a namespace that is not the configured one is not asked for."""
    async with ServiceBusBroker("mine.servicebus.windows.net", Login()) as broker:
        with pytest.raises(ConfigurationError, match=r"servicebus\.namespace is for mine"):
            await broker.sender(QueueRef("other.servicebus.windows.net", "queue"))


def test_a_token_goes_over_https_only() -> None:
    """Where a token could be read by others it is refused, before anybody is asked to log in."""
    with pytest.raises(ConfigurationError, match=r"batch\.entra needs https.*http://127\.0\.0\.1"):
        BatchCompute("local", Login(), "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"storage\.account_url needs https"):
        BlobStorage("http://127.0.0.1:1/local", Login())


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without azure-identity the error says what to install, here and on a node."""
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    with pytest.raises(ConfigurationError, match=r"batch\.entra .*pip install azure-identity"):
        logged_in("batch.entra")
    with pytest.raises(ConfigurationError, match=r"on its nodes.*pip install azure-identity"):
        of_the_node("client-id")


async def test_the_real_credential_is_made_without_a_request() -> None:
    """azure-identity's own credential serves all three services, and is closed with them."""
    services = await connect(KEYLESS)
    assert services.keyless
    await services.aclose()


async def test_entra_id_for_batch_alone_leaves_the_agents_their_keys() -> None:
    """A pool's identity takes the place of keys only where there are none."""
    key = "AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIIIJJJJKKK="
    services = await connect(
        replace(
            KEYLESS,
            storage=StorageSettings(f"AccountName=a;AccountKey={key};EndpointSuffix=core.windows.net"),
            servicebus=ServiceBusSettings(
                f"Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=r;SharedAccessKey={key}"
            ),
        )
    )
    assert services.identity is not None
    assert not services.keyless
    await services.aclose()

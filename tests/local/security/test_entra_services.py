"""Tokens and roles at the local services, over sockets, with azure-identity's own credentials."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.identity.aio import ManagedIdentityCredential

from batchflow.azure.blob import BlobStorage, SignedContainer
from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker
from batchflow.errors import BrokerError, StorageError
from batchflow.local.security.entra import (
    BATCH,
    BLOB_CONTRIBUTOR,
    BLOB_DELEGATOR,
    BLOB_READER,
    BUS_OWNER,
    BUS_RECEIVER,
    BUS_SENDER,
    STORAGE,
    Assignment,
)
from batchflow.local.server import LocalCloud
from batchflow.ports.broker import QueueRef, QueueSpec
from batchflow.ports.storage import AccessPolicy
from batchflow.settings import Settings

ROLES = {
    "owner": (Assignment(BUS_OWNER), Assignment(BLOB_CONTRIBUTOR)),
    "reader": (Assignment(BLOB_READER, "seen"), Assignment(BUS_RECEIVER, "seen")),
    "sender": (Assignment(BUS_SENDER, "seen"),),
    "lender": (Assignment(BLOB_READER), Assignment(BLOB_DELEGATOR)),
}


@pytest.fixture
async def cloud() -> AsyncIterator[LocalCloud]:
    cloud = LocalCloud(roles=ROLES)
    yield cloud
    await cloud.aclose()


@pytest.fixture(autouse=True)
async def keyed(cloud: LocalCloud) -> Settings:
    """The cloud's settings by its keys, once it is up."""
    return await cloud.start()


@contextmanager
def logged_in(cloud: LocalCloud, name: str) -> Iterator[ManagedIdentityCredential]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in cloud.identity_environment(name).items():
            patch.setenv(variable, value)
        yield ManagedIdentityCredential()


def storage_of(cloud: LocalCloud, identity: ManagedIdentityCredential) -> BlobStorage:
    storage = cloud.keyless_settings.storage
    return BlobStorage(storage.account_url or "", identity, ca_file=storage.ca_file)


@pytest.fixture
async def seen(cloud: LocalCloud) -> str:
    """A container and a queue of that name, and one of each that is hidden."""
    bus = cloud.keyless_settings.servicebus
    with logged_in(cloud, "owner") as identity:
        async with (
            identity,
            storage_of(cloud, identity) as storage,
            ServiceBusAdmin(bus.namespace or "", identity, ca_file=bus.ca_file) as admin,
        ):
            for name in ("seen", "hidden"):
                await storage.create_container(name)
                await storage.container(name).put("blob", b"data")
                await admin.create_queue(QueueSpec(name))
    return "seen"


@pytest.mark.usefixtures("seen")
async def test_a_reader_of_one_container(cloud: LocalCloud) -> None:
    """A role at a container reads and lists there, writes nothing, and opens no other one."""
    with logged_in(cloud, "reader") as identity:
        async with identity, storage_of(cloud, identity) as storage:
            container = storage.container("seen")
            assert (await container.get("blob")).data == b"data"
            assert [info.name async for info in container.list()] == ["blob"]
            for attempt in (
                container.put("other", b""),
                container.delete("blob"),
                storage.container("hidden").get("blob"),
                storage.containers(),
                storage.create_container("new"),
                storage.delete_container("seen"),
                storage.signature("seen", AccessPolicy("any", "r", time.time() + 60)),
            ):
                with pytest.raises(StorageError, match="AuthorizationPermissionMismatch"):
                    await attempt


@pytest.mark.usefixtures("seen")
async def test_delegated_signature_is_limited_by_its_lenders_roles(cloud: LocalCloud) -> None:
    """What the signature says and the lender's roles do not allow is refused; it ends by its time."""
    ca_file = cloud.keyless_settings.storage.ca_file
    with logged_in(cloud, "lender") as identity:
        async with identity, storage_of(cloud, identity) as storage:
            url = storage.container("seen").url
            wide = await storage.signature("seen", AccessPolicy("any", "racwdl", time.time() + 60))
            late = await storage.signature("seen", AccessPolicy("any", "r", time.time() - 1))
            now = datetime.now(UTC)
            with pytest.raises(HttpResponseError, match="seven days"):
                await storage._client.get_user_delegation_key(now, now + timedelta(days=8))
    async with (
        SignedContainer(url, wide, ca_file=ca_file) as container,
        SignedContainer(url, late, ca_file=ca_file) as ended,
        SignedContainer(url, wide.replace("sp=racwdl", "sp=racwdlx"), ca_file=ca_file) as forged,
    ):
        assert (await container.get("blob")).data == b"data"
        for attempt in (container.put("b", b""), ended.get("blob"), forged.get("blob")):
            with pytest.raises(StorageError):
                await attempt


async def test_token_is_refused_without_tls(cloud: LocalCloud, keyed: Settings) -> None:
    """A token that somebody sent in the clear is refused, by Storage and by Batch."""
    blob = (keyed.storage.connection_string or "").partition("BlobEndpoint=")[2].rstrip(";")
    settings = {
        STORAGE: f"{blob}?comp=list",
        f"{BATCH}/": f"{keyed.batch.url}/pools?api-version=2025-06-01",
    }
    with logged_in(cloud, "owner") as identity:
        async with identity, aiohttp.ClientSession() as http:
            headers = {"x-ms-version": "2026-10-06"}
            for scope, url in settings.items():
                token = await identity.get_token(f"{scope}/.default")
                headers["Authorization"] = f"Bearer {token.token}"
                async with http.get(url, headers=headers) as answer:
                    assert answer.status in (401, 403), url


@pytest.mark.usefixtures("seen")
async def test_roles_at_one_queue(cloud: LocalCloud) -> None:
    """A sender sends, a receiver receives, at their queue; neither administers anything."""
    bus = cloud.keyless_settings.servicebus
    namespace = bus.namespace or ""
    queue, hidden = QueueRef(namespace, "seen"), QueueRef(namespace, "hidden")
    for name, may, may_not in (("sender", "sender", "receiver"), ("reader", "receiver", "sender")):
        with logged_in(cloud, name) as identity:
            async with (
                identity,
                ServiceBusBroker(namespace, identity, ca_file=bus.ca_file) as broker,
                ServiceBusAdmin(namespace, identity, ca_file=bus.ca_file) as admin,
            ):
                async with await getattr(broker, may)(queue):
                    pass
                attempts = (getattr(broker, may_not)(queue), getattr(broker, may)(hidden), admin.queues())
                for attempt in attempts:
                    with pytest.raises(BrokerError):
                        await attempt


async def test_endpoint_refuses_an_unknown_secret(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's client id, another resource and a wrong word get none."""
    for variable, value in cloud.identity_environment("owner").items():
        monkeypatch.setenv(variable, value)
    wrong = "00000000-0000-0000-0000-000000000000"
    async with ManagedIdentityCredential() as mine, ManagedIdentityCredential(client_id=wrong) as other:
        assert (await mine.get_token("https://storage.azure.com/.default")).expires_on > time.time() + 3000
        with pytest.raises(ClientAuthenticationError, match="client id"):
            await other.get_token("https://storage.azure.com/.default")
        with pytest.raises(ClientAuthenticationError, match="must be one of"):
            await mine.get_token("https://management.azure.com/.default")
    monkeypatch.setenv("IDENTITY_HEADER", "guessed")
    async with ManagedIdentityCredential() as nobody:
        with pytest.raises(ClientAuthenticationError, match="X-IDENTITY-HEADER"):
            await nobody.get_token("https://storage.azure.com/.default")

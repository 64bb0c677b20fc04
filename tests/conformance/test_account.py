"""What only a real account can confirm, from one end to the other; the local cloud shows that the tests run.

Each test names the settings that it misses. On Azure nodes boot for it: minutes, and cents.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
import pytest_asyncio

from batchflow import Client, Image, Pool, PoolSpec, Settings
from batchflow.azure.blob import BlobStorage, SignedContainer
from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker
from batchflow.errors import BlobNotFound, BrokerError, ConfigurationError, StartTaskFailed, StorageError
from batchflow.local.security.entra import (
    BATCH_CONTRIBUTOR,
    BLOB_CONTRIBUTOR,
    BUS_OWNER,
    BUS_RECEIVER,
    BUS_SENDER,
    Assignment,
)
from batchflow.local.server import LocalCloud
from batchflow.pools.connections import Connections, connect
from batchflow.ports.broker import AccessRule, OutgoingMessage, QueueRef, QueueSpec
from batchflow.ports.compute import PoolDocument
from batchflow.ports.storage import AccessPolicy
from batchflow.protocol.documents import AgentConfig
from batchflow.settings import BatchSettings, ServiceBusSettings, StorageSettings
from tests.conformance.conftest import REAL, new_key, setting
from tests.support.waiting import eventually

ROLES = {
    "me": (Assignment(BATCH_CONTRIBUTOR), Assignment(BUS_OWNER), Assignment(BLOB_CONTRIBUTOR)),
    "nodes": (Assignment(BUS_SENDER), Assignment(BUS_RECEIVER), Assignment(BLOB_CONTRIBUTOR)),
}
LOCAL_IDENTITY_POOL = "with-identity"
BOOT = 900.0
"""Seconds in which a real node boots and its agent is there."""
REVOKED = 120.0
"""Seconds after which a policy that was removed opens nothing, on Azure half a minute."""
TASKS = {
    "where.py": (
        b"import sys, platform\n"
        b"def do_action(engine, args):\n"
        b"    return [list(sys.version_info[:2]), platform.machine()]\n"
    ),
    "nap.py": b"import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n    return args[0]\n",
}

pytestmark = pytest.mark.timeout(2400)


@dataclass(frozen=True)
class Account:
    """An account, by its keys and by roles; a setting that is missing skips when it is asked for."""

    keys: Callable[[], Settings]
    roles: Callable[[], Settings]
    identity_pool: Callable[[], str]
    ca_file: str | None = None


@pytest_asyncio.fixture(params=["local", REAL])
async def account(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Account]:
    if request.param == "azure":
        yield Account(real_keys, real_roles, lambda: setting("BATCHFLOW_TEST_IDENTITY_POOL"))
        return
    cloud = LocalCloud(nodes=1, roles=ROLES, identities={LOCAL_IDENTITY_POOL: "nodes"})
    settings = await cloud.start()
    for name, value in cloud.identity_environment("me").items():
        monkeypatch.setenv(name, value)
    keyless = cloud.keyless_settings
    yield Account(lambda: settings, lambda: keyless, lambda: LOCAL_IDENTITY_POOL, keyless.storage.ca_file)
    await cloud.aclose()


def real_keys() -> Settings:
    account, key, url = (setting(f"BATCHFLOW_TEST_BATCH_{name}") for name in ("ACCOUNT", "KEY", "URL"))
    return Settings(
        batch=BatchSettings(account, key, url),
        storage=StorageSettings(setting("BATCHFLOW_TEST_STORAGE")),
        servicebus=ServiceBusSettings(setting("BATCHFLOW_TEST_SERVICEBUS")),
    )


def real_roles() -> Settings:
    account, url = setting("BATCHFLOW_TEST_BATCH_ACCOUNT"), setting("BATCHFLOW_TEST_BATCH_URL")
    return Settings(
        batch=BatchSettings(account, url=url, entra=True),
        storage=StorageSettings(account_url=setting("BATCHFLOW_TEST_STORAGE_URL")),
        servicebus=ServiceBusSettings(namespace=setting("BATCHFLOW_TEST_SERVICEBUS_NAMESPACE")),
    )


@pytest.fixture
def keys(account: Account) -> Settings:
    return account.keys()


@pytest.fixture
def roles(account: Account) -> Settings:
    return account.roles()


@asynccontextmanager
async def made(settings: Settings, spec: PoolSpec) -> AsyncIterator[Pool]:
    """A pool that goes after the test, whatever happened."""
    async with Client(settings) as client:
        pool = await client.create_pool(spec)
        try:
            yield pool
        finally:
            await pool.delete()


# ---- nodes and agents


async def test_agent_reaches_a_fresh_node(keys: Settings, name: str) -> None:
    """The default image boots, its Python is this one (or the settings'), and a task answers."""
    async with made(keys, PoolSpec(name, nodes=1, files=(TASKS,))) as pool:
        await pool.wait_ready(timeout=BOOT)
        async with pool.session() as session:
            version, _machine = await session.run("where.py")
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    expected = here if keys.target == "local" else keys.agent.node_python or here
    assert ".".join(map(str, version)) == expected


async def test_start_task_installs_packages(keys: Settings, name: str) -> None:
    """The start task waits for the machine's own upgrades, then brings packages, Java and requirements."""
    if keys.target == "local":
        pytest.skip("the local cloud's nodes are this machine: nothing is installed on it")
    spec = PoolSpec(name, nodes=1, apt=("jq",), pip=("six",), java=17, files=(TASKS,))
    async with made(keys, spec) as pool:
        await pool.wait_ready(timeout=BOOT)
        async with pool.session() as session:
            assert await session.run("nap.py", args=0.1) == 0.1


async def test_failed_start_task_is_reported(keys: Settings, name: str) -> None:
    """The error has the end of its output, as soon as Batch knows."""
    spec = PoolSpec(name, nodes=1, start_command="/bin/sh -c 'echo no luck >&2; exit 7'")
    async with made(keys, spec) as pool:
        with pytest.raises(StartTaskFailed, match="no luck"):
            await pool.wait_ready(timeout=BOOT)


async def test_node_that_leaves_gives_its_tasks_back(keys: Settings, name: str) -> None:
    """Shrinking drains the agent of the node that goes; no task is lost."""
    agent = replace(keys.agent, drain_grace=2.0, heartbeat_interval=1.0)
    async with made(replace(keys, agent=agent), PoolSpec(name, nodes=2, slots=1, files=(TASKS,))) as pool:
        await pool.wait_ready(timeout=BOOT)
        async with pool.session() as session:
            tasks = await session.submit_many("nap.py", [4.0, 4.0])
            await eventually(lambda: at_work(pool, 2), BOOT, pause=0.2)
            await pool.resize(1)
            assert [await task for task in tasks] == [4.0, 4.0]


async def at_work(pool: Pool, count: int) -> bool:
    return sum(node.running for node in await pool.nodes()) >= count


async def test_pool_of_spot_nodes_gets_an_agent(keys: Settings, name: str) -> None:
    """When Azure takes a spot node away cannot be chosen."""
    async with made(keys, PoolSpec(name, nodes=0, spot=1, files=(TASKS,))) as pool:
        await pool.wait_ready(timeout=BOOT)
        async with pool.session() as session:
            assert await session.run("nap.py", args=0.1) == 0.1


async def test_idle_agents_end_their_job(keys: Settings, name: str) -> None:
    """When the last agent has gone Batch ends the job by itself; the next session starts agents anew."""
    agent = replace(keys.agent, idle_exit=1.0)
    async with made(replace(keys, agent=agent), PoolSpec(name, nodes=1, files=(TASKS,))) as pool:
        async with pool.session() as session:  # not wait_ready: an agent without work is gone in a second
            assert await session.run("nap.py", args=0.1) == 0.1
        compute, job = pool.runtime.connections.compute, pool.runtime.manifest.agents_job

        async def ended() -> bool:
            return await compute._job_state(job) == "completed"  # type: ignore[attr-defined, no-any-return]

        await eventually(ended, BOOT, pause=0.2)
        async with pool.session() as session:
            assert await session.run("nap.py", args=0.1) == 0.1


async def test_agent_runs_in_a_container(keys: Settings, name: str) -> None:
    """The chosen image of the nodes runs containers, and the agent in one reaches its services."""
    if keys.target == "local":
        pytest.skip("the local cloud runs no containers")
    spec = PoolSpec(name, nodes=1, container=setting("BATCHFLOW_TEST_CONTAINER"), files=(TASKS,))
    async with made(keys, spec) as pool:
        await pool.wait_ready(timeout=BOOT)
        async with pool.session() as session:
            assert await session.run("nap.py", args=0.1) == 0.1


async def test_unknown_vm_size_is_refused_by_its_name(keys: Settings, name: str) -> None:
    """The error has the words of Batch."""
    async with Client(keys) as client:
        with pytest.raises(ConfigurationError, match="standard_nonsense"):
            await client.create_pool(PoolSpec(name, vm_size="standard_nonsense"))


# ---- rights


async def test_guest_keys_open_the_pool_until_it_is_gone(keys: Settings, name: str) -> None:
    """They open its queues and containers, and nothing after the pool is deleted."""
    async with made(keys, PoolSpec(name, nodes=1, files=(TASKS,))) as pool:
        await pool.wait_ready(timeout=BOOT)
        async with (
            Client(await pool.client_settings()) as guest,
            (await guest.pool(name)).session() as session,
        ):
            assert await session.run("nap.py", args=0.1) == 0.1


async def test_removing_a_policy_ends_its_signatures(keys: Settings, name: str) -> None:
    """A signature under it soon opens nothing any more."""
    async with BlobStorage(keys.storage.connection_string or "") as storage:
        policy = AccessPolicy("reading", "r", time.time() + 600)
        await storage.create_container(name, (policy,))
        try:
            await storage.container(name).put("a", b"1")
            async with SignedContainer(
                storage.container(name).url, await storage.signature(name, policy)
            ) as reader:
                await eventually(lambda: opens(reader), REVOKED, pause=0.2)
                await storage.create_container(name, ())

                async def closed() -> bool:
                    return not await opens(reader)

                await eventually(closed, REVOKED, pause=0.2)
        finally:
            await storage.delete_container(name)


async def opens(container: SignedContainer) -> bool:
    try:
        return (await container.get("a")).data == b"1"
    except BlobNotFound:
        raise
    except StorageError:
        return False


async def test_renewing_the_keys_of_a_rule_ends_the_old_ones(keys: Settings, name: str) -> None:
    """The old keys soon open the queue no more, and the new ones do."""
    bus, rule = keys.servicebus, AccessRule("sender", frozenset({"Send"}))
    async with ServiceBusAdmin(bus.connection_string or "", ca_file=bus.ca_file) as admin:
        await admin.create_queue(QueueSpec(name, rules=(rule,)))
        try:
            queue, old = QueueRef(admin.namespace, name), await admin.connection_string(name, "sender")
            await eventually(lambda: sends(queue, old), REVOKED, pause=0.2)
            properties = await (await admin._client()).get_queue(name)
            (found,) = properties.authorization_rules or []
            found.primary_key, found.secondary_key = new_key(), new_key()
            await (await admin._client()).update_queue(properties)

            async def closed() -> bool:
                return not await sends(queue, old)

            await eventually(closed, REVOKED, pause=0.2)
            new = await admin.connection_string(name, "sender")
            await eventually(lambda: sends(queue, new), REVOKED, pause=0.2)
        finally:
            await admin.delete_queue(name)


async def sends(queue: QueueRef, key: str) -> bool:
    async with ServiceBusBroker(None, by_queue={queue: key}) as broker:
        try:
            async with await broker.sender(queue) as sender:
                await sender.send(OutgoingMessage(b"mail", secrets.token_hex(8)))
        except BrokerError:
            return False
    return True


async def test_queue_keeps_its_time_until_it_removes_itself(keys: Settings, name: str) -> None:
    """Service Bus takes the time of no use after which a queue goes, and tells it."""
    bus = keys.servicebus
    async with ServiceBusAdmin(bus.connection_string or "", ca_file=bus.ca_file) as admin:
        await admin.create_queue(QueueSpec(name, idle=300.0))
        try:
            queue = await (await admin._client()).get_queue(name)
            assert queue.auto_delete_on_idle == timedelta(minutes=5)
        finally:
            await admin.delete_queue(name)


# ---- Entra ID


@pytest_asyncio.fixture
async def by_role(roles: Settings) -> AsyncIterator[Connections]:
    services = await connect(roles)
    yield services
    await services.aclose()


async def test_roles_open_the_services_without_any_key(by_role: Connections, name: str) -> None:
    """A container, a queue with its rules and their keys, and the list of pools are read."""
    assert by_role.keyless
    await by_role.storage.create_container(name)
    container = by_role.storage.container(name)
    await container.put("a", b"1")
    assert (await container.get("a")).data == b"1"
    await by_role.admin.create_queue(QueueSpec(name, rules=(AccessRule("sender", frozenset({"Send"})),)))
    queue = QueueRef(by_role.admin.namespace, name)
    async with await by_role.broker.sender(queue) as sender, await by_role.broker.receiver(queue) as receiver:
        await sender.send(OutgoingMessage(b"mail", "m"))
        delivery = await receiver.receive(20)
        assert delivery is not None
        await receiver.complete(delivery)
    assert "sender" in await by_role.admin.connection_string(name, "sender")
    assert name not in [pool.id async for pool in by_role.compute.pools()]
    await by_role.admin.delete_queue(name)
    await by_role.storage.delete_container(name)


async def test_lent_signature_opens_what_it_says_and_no_more(
    by_role: Connections, account: Account, name: str
) -> None:
    """It is made with a key of Entra ID's."""
    await by_role.storage.create_container(name)
    container = by_role.storage.container(name)
    await container.put("a", b"1")
    policy = AccessPolicy("reading", "r", time.time() + 600)
    signature = await by_role.storage.signature(name, policy)
    async with SignedContainer(container.url, signature, ca_file=account.ca_file) as reader:
        await eventually(lambda: opens(reader), REVOKED, pause=0.2)
        with pytest.raises(StorageError):
            await reader.put("b", b"2")
    await by_role.storage.delete_container(name)


async def test_agents_work_by_the_identity_of_their_nodes(account: Account) -> None:
    """Azure's management made the pool with an identity, and its agents were told no key."""
    pool_id, settings = account.identity_pool(), account.roles()
    async with Client(settings) as client:
        if settings.target == "local":
            await client.connections.compute.create_pool(PoolDocument(pool_id, "standard_d2s_v3", Image(), 1))
        pool = await client.pool(pool_id)
        try:
            assert pool.runtime.manifest.identity is not None
            await pool.wait_ready(1, timeout=BOOT)
            async with pool.session(files=TASKS) as session:
                assert await session.run("nap.py", args=0.1) == 0.1
            ctl = pool.runtime.ctl
            configs = [info.name async for info in ctl.list("agent/") if info.name.endswith(".json")]
            config = AgentConfig.decode((await ctl.get(configs[0])).data)
            assert config.ctl.signature is None
            assert config.task_queues[0].connection_string is None
        finally:
            await pool.delete()

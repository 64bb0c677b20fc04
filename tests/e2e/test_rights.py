"""The table of rights, each right over real sockets: what it opens, and what it does not."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchflow import Client, Pool, PoolSpec
from batchflow.azure.blob import SignedContainer
from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker
from batchflow.config.loader import load_settings
from batchflow.errors import BrokerError, ConfigurationError, NoAgents, PoolError, ServiceError, StorageError
from batchflow.pools import access as rights
from batchflow.pools.agent_launch import CONFIG_FILE
from batchflow.pools.restricted import queues_of
from batchflow.ports.broker import Broker, QueueRef, QueueSpec
from batchflow.protocol.documents import AgentConfig
from batchflow.settings import Settings
from tests.support.waiting import within

ECHO = {
    "echo.py": b"def do_action(engine, args):\n    return args\n",
    "leaves.sh": b"#!/bin/sh\necho $1 > outputs/$1.txt\n",
    "reads.sh": b"#!/bin/sh\ncat $1\n",
}
SHOUT = {"echo.py": b"def do_action(engine, args):\n    return 'shouted'\n"}
BIG = "x" * 300_000


@pytest.fixture
async def mine(client: Client) -> AsyncIterator[Pool]:
    pool = await client.ensure_pool(f"rights-{uuid.uuid4().hex[:8]}", files=ECHO, nodes=1)
    yield pool
    await pool.delete()


@dataclass(frozen=True)
class Holder:
    """Somebody with a pool's restricted keys."""

    broker: Broker
    tasks: QueueRef
    results: QueueRef
    ctl: SignedContainer
    out: SignedContainer
    keys: dict[QueueRef, str]


@pytest.fixture
async def agent(mine: Pool) -> AsyncIterator[Holder]:
    """What an agent of the pool holds, by the file that it starts from."""
    await mine.start()
    (name,) = [info.name async for info in mine.runtime.ctl.list("agent/") if info.name.endswith(".json")]
    config = AgentConfig.decode((await mine.runtime.ctl.get(name)).data)
    keys = {
        each.queue: each.connection_string or "" for each in (*config.task_queues, *config.results_queues)
    }
    ctl = SignedContainer(config.ctl.url, config.ctl.signature or "")
    out = SignedContainer(config.out.url, config.out.signature or "")
    async with ServiceBusBroker(None, by_queue=keys) as broker, ctl, out:
        yield Holder(broker, config.task_queues[0].queue, config.results_queues[0].queue, ctl, out, keys)


@pytest.fixture
async def shared(mine: Pool, tmp_path: Path) -> Settings:
    """A client's settings that open this one pool, by way of their file."""
    path = tmp_path / "client.toml"
    path.write_text((await mine.client_settings()).to_toml())
    return load_settings(path, environment={})


@pytest.fixture
async def guest(mine: Pool, shared: Settings) -> AsyncIterator[Holder]:
    """What such a client holds."""
    access, manifest = shared.access, mine.runtime.manifest
    keys = queues_of(access)
    ctl, out = (SignedContainer(*(url or "").split("?")) for url in (access.ctl, access.out))
    async with ServiceBusBroker(None, by_queue=keys) as broker, ctl, out:
        yield Holder(broker, manifest.task_queues[0], manifest.results_queues[0], ctl, out, keys)


async def refused(kind: type[ServiceError], *attempts: object) -> None:
    for attempt in attempts:
        with pytest.raises(kind):
            await attempt  # type: ignore[misc]


async def test_agent_may_use_its_queues_and_no_more(agent: Holder, mine: Pool) -> None:
    """It receives and sends tasks and sends results; it reads no result and manages no queue."""
    async with await agent.broker.sender(agent.tasks), await agent.broker.sender(agent.results):
        pass
    async with await agent.broker.receiver(agent.tasks):
        pass
    await refused(BrokerError, agent.broker.mailbox(agent.results, "default/any"))
    for key in agent.keys.values():
        async with ServiceBusAdmin(key, ca_file=mine.runtime.settings.servicebus.ca_file) as admin:
            await refused(
                BrokerError,
                admin.delete_queue(agent.tasks.entity),
                admin.delete_queue(agent.results.entity),
                admin.create_queue(QueueSpec("mine")),
                admin.connection_string(agent.tasks.entity, rights.CLIENT_RULE),
                admin.queues(),
            )


async def test_agent_may_use_its_containers_and_no_more(agent: Holder) -> None:
    """It reads files by name and writes its output; it lists, deletes and reads back nothing."""
    await agent.out.put("results/mine", b"1")
    await agent.out.append("logs/mine.log", b"1")
    names = "agent/drain.json"
    await refused(
        StorageError,
        agent.ctl.put("jobs/forged.json", b"{}"),
        agent.ctl.delete(names),
        anext(agent.ctl.list()),
        agent.out.get("results/mine"),
        agent.out.delete("results/mine"),
        anext(agent.out.list()),
    )


async def test_guest_may_use_its_queues_and_no_more(guest: Holder, mine: Pool) -> None:
    """A client of one pool sends tasks and opens mailboxes; it takes no task, forges no result."""
    async with (
        await guest.broker.sender(guest.tasks),
        await guest.broker.mailbox(guest.results, "default/me"),
    ):
        pass
    await refused(
        BrokerError,
        guest.broker.receiver(guest.tasks),
        guest.broker.receiver(guest.tasks, dead_letters=True),
        guest.broker.sender(guest.results),
    )
    for key in guest.keys.values():
        async with ServiceBusAdmin(key, ca_file=mine.runtime.settings.servicebus.ca_file) as admin:
            await refused(BrokerError, admin.delete_queue(guest.tasks.entity), admin.queues())


async def test_guest_may_use_its_containers_and_no_more(guest: Holder) -> None:
    """It reads and deletes the agents' output, and writes nothing there: no heartbeat, no result."""
    await guest.ctl.put("args/default/me/1.json", b"1")
    assert await guest.ctl.delete("args/default/me/1.json")
    assert [info.name async for info in guest.out.list("nothing/")] == []
    await refused(StorageError, guest.out.put("agents/forged.json", b"{}"), guest.out.append("logs/x", b"1"))


async def test_guest_submits_tasks_and_gets_results(mine: Pool, shared: Settings) -> None:
    """The settings of a guest hold no key of an account; results are small and large, and
    files of tasks go to others."""
    accounts = [mine.runtime.settings.batch.key, mine.runtime.settings.storage.connection_string]
    assert not [secret for secret in accounts if secret and secret in shared.to_toml()]
    assert shared.servicebus.connection_string is None
    assert "sig=" not in repr(shared)
    await mine.wait_ready(timeout=60)
    async with Client(shared) as guest:
        assert [pool.id async for pool in guest.pools()] == [mine.id]
        pool = await guest.pool(mine.id)
        async with pool.session("guest") as session:
            assert await session.run("echo.py", "hello there") == ["hello", "there"]
            assert await session.run("echo.py", args=BIG) == [BIG]
            left = await session.submit("leaves.sh", "word")
            assert await session.run("reads.sh", left.file("word.txt")) == ["word"]
            task = await session.submit("echo.py", "x")
            await task.cancel()
            await session.flush()
        found = await pool.broadcast("echo.py", "guest", timeout=60.0)
        assert [(result.value, result.error) for result in found.values()] == [(["guest"], None)]
        assert list(found) == [node.id for node in await mine.nodes()]
        await mine.repurpose(SHOUT)
        async with pool.session("guest") as session:
            assert await session.run("echo.py") == "shouted"


async def test_guest_can_make_and_remove_no_pool(mine: Pool, shared: Settings) -> None:
    """The error says why, and the pool stays as it was."""
    before = await mine.runtime.connections.manifests.read(mine.id)
    async with Client(shared) as guest:
        pool = await guest.pool(mine.id)
        attempts = (
            guest.create_pool(PoolSpec("new", nodes=0)),
            guest.ensure_pool("new", nodes=0),
            guest.delete_pool(mine.id),
            pool.resize(3),
            pool.repurpose(SHOUT),
            pool.stop(),
            pool.delete(),
            pool.client_settings(),
        )
        for attempt in attempts:
            with pytest.raises(ServiceError, match=r"rights of one pool's clients|settings access\.\*"):
                await attempt
        assert "agent" in str(await pool.explain())
    assert await mine.runtime.connections.manifests.read(mine.id) == before
    assert await mine.runtime.connections.compute.pool(mine.id)


async def test_guest_without_agents_is_told_whom_to_ask(client: Client) -> None:
    """It has no right to start agents."""
    pool = await client.ensure_pool(f"rights-{uuid.uuid4().hex[:8]}", files=ECHO, nodes=1)
    async with Client(await pool.client_settings()) as guest:
        attached = await guest.pool(pool.id)
        with pytest.raises(PoolError, match="let a client that has the accounts' keys"):
            await attached.start()
    await pool.delete()


async def test_guest_of_a_pool_without_agents_is_told_that_it_may_not_start_them(client: Client) -> None:
    """By the error of its tasks; nothing is said about heartbeats, which it can read."""
    pool = await client.ensure_pool(f"rights-{uuid.uuid4().hex[:8]}", files=ECHO, nodes=1)
    async with Client(await pool.client_settings()) as guest:
        async with (await guest.pool(pool.id)).session() as session:
            events = session.events()
            task = await session.submit("echo.py", 1)
            with pytest.raises(NoAgents, match="let a client that has the accounts' keys"):
                await within(task.outcome())
            await task.cancel()
        assert [
            event.message for event in [event async for event in events] if "heartbeat" in event.message
        ] == []
    await pool.delete()


async def test_guest_settings_open_nothing_after_the_pool_is_deleted(client: Client) -> None:
    """Every service refuses them."""
    pool = await client.ensure_pool(f"rights-{uuid.uuid4().hex[:8]}", files=ECHO, nodes=0)
    settings = await pool.client_settings()
    await pool.delete()
    async with Client(settings) as guest:
        with pytest.raises(ServiceError):
            await guest.pool(pool.id)
        async with ServiceBusBroker(None, by_queue=queues_of(settings.access)) as broker:
            await refused(BrokerError, broker.sender(pool.runtime.manifest.task_queues[0]))


async def test_renewing_the_keys_of_guests_shuts_out_the_old_ones(mine: Pool, shared: Settings) -> None:
    """Agents and new guests work on."""
    await mine.wait_ready(timeout=60)
    sdk = await mine.runtime.connections.admin._client()  # type: ignore[attr-defined]
    for queue in mine.runtime.manifest.queues:
        properties = await sdk.get_queue(queue.entity)
        for rule in properties.authorization_rules:
            if rule.key_name == rights.CLIENT_RULE:
                rule.primary_key, rule.secondary_key = (fresh_key() for _ in range(2))
        await sdk.update_queue(properties)
    async with ServiceBusBroker(None, by_queue=queues_of(shared.access)) as broker:
        await refused(
            BrokerError,
            broker.sender(mine.runtime.manifest.task_queues[0]),
            broker.mailbox(mine.runtime.manifest.results_queues[0], "default/me"),
        )
    async with (
        Client(await mine.client_settings()) as guest,
        (await guest.pool(mine.id)).session("guest") as session,
    ):
        assert await session.run("echo.py", "again") == ["again"]


def fresh_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


async def test_batch_shows_no_secret(mine: Pool) -> None:
    """The pool, the agents' job and their tasks hold no key, and no signature but in addresses of files;
    of settings of the environment there are none. The file with an agent's keys is its user's alone."""
    await mine.start()
    (name,) = [info.name async for info in mine.runtime.ctl.list("agent/") if info.name.endswith(".json")]
    config = AgentConfig.decode((await mine.runtime.ctl.get(name)).data)
    keys = [each.connection_string or "" for each in (*config.task_queues, *config.results_queues)]
    settings = mine.runtime.settings
    keys += [settings.servicebus.connection_string or "", settings.storage.connection_string or ""]
    held = {key.partition("Key=")[2].partition(";")[0] for key in keys} | {settings.batch.key or ""}
    held |= {str(each.signature).rpartition("sig=")[2].partition("&")[0] for each in (config.ctl, config.out)}
    assert len(held) >= 6
    assert "" not in held
    sdk = mine.runtime.connections.compute._client  # type: ignore[attr-defined]
    job = mine.runtime.manifest.agents_job
    tasks = [task.as_dict() async for task in sdk.list_tasks(job)]
    files = [task.pop("resourceFiles") for task in tasks]
    shown = f"{tasks}{(await sdk.get_pool(mine.id)).as_dict()}{(await sdk.get_job(job)).as_dict()}"
    assert not [secret for secret in held if secret in shown]
    assert not [word for word in ("sig=", "SharedAccess", "AccountKey") if word in shown]
    assert not any(task.get("environmentSettings") for task in tasks)
    assert "sig=" in str(files)
    modes = [file.get("fileMode") for each in files for file in each if file["filePath"] == CONFIG_FILE]
    assert modes == ["0600"] * len(tasks)


def test_bad_access_setting_is_named_and_not_quoted() -> None:
    """The setting is no list of connection strings."""
    settings = load_settings(
        environment={"BATCHFLOW_ACCESS_TASK_QUEUES": "Endpoint=sb://h/;SharedAccessKey=x"}
    )
    with pytest.raises(ConfigurationError, match=r"access\.task_queues") as caught:
        queues_of(settings.access)
    assert "SharedAccessKey=x" not in str(caught.value)

"""The agent process, from its configuration to its exit code: what the supervisor forks.

The start lasts as long as the opening of the links, which is mostly waiting. So the links are opened first.
Meanwhile a thread imports the rest: the agent, which starts the slots' children, and the Blob SDK. An agent
with embedded files needs no container for its first task, unless that has waited for a second. It imports
the Blob SDK after that task.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchflow.azure.identity import check_https, of_the_node
from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.protocol.documents import AgentConfig
from batchflow.support import process_tuning
from node_agent.control.log_upload import LogUploader
from node_agent.startup import callbacks
from node_agent.startup.early_links import EarlyContainer, EarlyLinks
from node_agent.supervision.supervisor import EX_CONFIG, UNFIT
from node_agent.system import json_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.azure.blob import BlobContainer
    from batchflow.azure.identity import Credential
    from batchflow.protocol.documents import ContainerAccess

logger = logging.getLogger("node_agent")

_PASS: Final = 0.25
"""Seconds to wait for the first task before the Blob SDK is imported, unless that is wanted before. The first
heartbeat follows."""


def run(config: bytes, path: str, directory: str) -> int:
    """Run an agent to its end; return the exit code.

    `config`: what the supervisor read of the file `path`, which may be gone by now; `directory`: for the
    agent's own files.

    It runs on asyncio's own loop, because uvloop starts programs by a fork, at three times the CPU cost.
    """
    json_log.configure()
    try:
        wanted = AgentConfig.decode(config)
        return asyncio.run(_serve(wanted, Path(directory)))
    except (ProtocolError, ConfigurationError) as error:
        logger.error("config_unusable", extra={"path": path, "error": str(error)})
        return EX_CONFIG


async def _serve(config: AgentConfig, directory: Path) -> int:
    """Return the exit code."""
    async with AsyncExitStack() as stack:
        stack.enter_context(callbacks.fatal())
        identity = None
        if config.identity is not None:
            identity = await stack.enter_async_context(of_the_node(config.identity))
        broker = await stack.enter_async_context(_broker(config, identity))
        await asyncio.to_thread(_load_agent)
        from node_agent.startup import assembly, node_check

        wanted = asyncio.Event()
        load = asyncio.create_task(_load_blobs(wanted, _PASS if config.brought else 0.0), name="load blobs")
        containers = (
            _container(each, identity, config, load, wanted.set) for each in (config.ctl, config.out)
        )
        ctl, out = [await stack.enter_async_context(each) for each in containers]
        uploader = LogUploader(json_log.JsonLines())
        logging.getLogger().addHandler(uploader)
        incarnation = secrets.token_hex(6)
        if not await node_check.NodeCheck(config, incarnation, directory, ctl, out).passed():
            return 0
        services = assembly.Adaptors(broker, ctl, out)
        agent = assembly.agent(config, directory, services, stack, log=uploader, incarnation=incarnation)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, agent.stop)
        loop.add_signal_handler(signal.SIGINT, _nothing)
        if config.leave_at is not None:
            loop.call_later(max(0.0, config.leave_at - time.time()), agent.stop)
        trimming = asyncio.create_task(process_tuning.trim_heap(), name="trim heap")
        stack.callback(trimming.cancel)
        await agent.run()
        if agent.preemption is not None and agent.preemption.announced:
            await agent.preemption.until_over()  # Batch starts a task again that its node took along
            return UNFIT
    if agent.exit_reason != "unfit":
        return 0
    node_check.note_step_back(directory)
    return UNFIT


def _nothing() -> None:
    """Ignore an interrupt from the terminal. The supervisor gets it too, and passes it on as SIGTERM."""


def _broker(config: AgentConfig, identity: Credential | None) -> EarlyLinks:
    from batchflow.azure.servicebus import ServiceBusBroker

    queues = (*config.task_queues, *config.results_queues)
    broker = ServiceBusBroker(
        None,
        identity,
        by_queue={access.queue: access.connection_string for access in queues},
        ca_file=config.ca_file,
        websockets=config.websockets,
    )
    return EarlyLinks(
        broker,
        receive=(access.queue for access in config.task_queues),
        send=(access.queue for access in config.results_queues),
    )


def _load_agent() -> None:
    with process_tuning.quick_switching():
        import node_agent.startup.assembly  # noqa: F401


async def _load_blobs(wanted: asyncio.Event, seconds: float) -> None:
    """Import the Blob SDK after so many seconds, or when it is wanted."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wanted.wait()
    await asyncio.to_thread(_import_blobs)


def _import_blobs() -> None:
    """Do the last imports, and exempt all imported objects from garbage collection."""
    with process_tuning.quick_switching():
        import batchflow.azure.blob  # noqa: F401

    process_tuning.keep_imports()


def _container(
    access: ContainerAccess,
    identity: Credential | None,
    config: AgentConfig,
    load: asyncio.Future[None],
    hurry: Callable[[], None],
) -> EarlyContainer:
    url, signature, ca_file = access.url, access.signature, config.storage_ca_file
    if signature is None and identity is None:
        raise ConfigurationError("there is neither a signature nor an identity for the containers")
    if signature is None:
        check_https(url, "the managed identity")

    def make() -> BlobContainer:
        from batchflow.azure.blob import IdentityContainer, SignedContainer

        if signature is not None:
            return SignedContainer(url, signature, ca_file=ca_file)
        assert identity is not None
        return IdentityContainer(url, identity, ca_file=ca_file)

    return EarlyContainer(url, load, make, hurry)

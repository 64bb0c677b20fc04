"""Assembles an agent from its parts.

The slots' Python children are started first, because they start on the other cores.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import TYPE_CHECKING

from batchflow.errors import ProtocolError, StorageError
from batchflow.support.frozen import frozen
from node_agent.agent import Agent, Parts
from node_agent.bundles.cache import BundleCache
from node_agent.bundles.embedded_files import EmbeddedFiles
from node_agent.bundles.environments import EnvironmentCache
from node_agent.bundles.task_files import LIMIT, FileCache
from node_agent.control.broadcast_record import BroadcastRecord
from node_agent.control.broadcasts import BroadcastParts
from node_agent.control.event_batcher import EventBatcher
from node_agent.control.heartbeat import host_name
from node_agent.execution.child_template import ChildTemplate
from node_agent.execution.process_limits import ProcessLimiter, most_processes
from node_agent.execution.slot import Slot
from node_agent.supervision import crash_record
from node_agent.supervision.settled_record import SettledRecord
from node_agent.system import thread_limits

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.ports.broker import Broker
    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import AgentConfig
    from node_agent.control.log_upload import LogUploader

logger = logging.getLogger(__name__)


@frozen
class Adaptors:
    """The services that an agent works with. The caller opened them and closes them."""

    broker: Broker
    ctl: Container
    out: Container


def agent(
    config: AgentConfig,
    directory: Path,
    services: Adaptors,
    stack: ExitStack | AsyncExitStack,
    *,
    log: LogUploader | None = None,
    incarnation: str | None = None,
) -> Agent:
    """Assemble an agent. The resources that it opens itself are closed with the stack.

    `incarnation`: the agent's name, by default a new one.
    """
    slots = config.slots or os.cpu_count() or 1
    batcher = EventBatcher()
    limiter, most = ProcessLimiter(config.process_limit), most_processes(config.process_limit, slots)
    template = ChildTemplate(thread_limits.task_environment(directory / "slots", slots))

    def open_slot(index: int) -> Slot:
        return Slot.open(
            index,
            directory / "slots",
            config,
            on_event=batcher.tell,
            node=host_name(),
            limiter=limiter,
            most_processes=most,
            template=template,
        )

    made = [open_slot(index) for index in range(slots)]
    embedded = EmbeddedFiles(config.brought, services.ctl)
    bundles = BundleCache(directory / "cache", embedded, config.cache_limit)
    environments = EnvironmentCache(directory / "environments", bundles, config.cache_limit)
    stack.callback(environments.close)
    if config.bundle is not None:
        fetching = asyncio.create_task(_fetch_ahead(bundles, config.bundle), name="fetch ahead")
        stack.callback(fetching.cancel)
    boot = crash_record.boot_id()
    crashes = crash_record.CrashRecord(directory / "deaths.json", boot)
    parts = Parts(
        config=config,
        agent=incarnation or secrets.token_hex(6),
        boot_id=boot,
        broker=services.broker,
        ctl=services.ctl,
        out=services.out,
        bundles=bundles,
        environments=environments,
        slots=made,
        running=stack.enter_context(crash_record.RunningRecord(directory / "running", slots + 1)),
        settled=stack.enter_context(SettledRecord(directory / "settled")),
        crashes=crashes.known,
        forget_crashes=crashes.forget,
        events=batcher,
        broadcasts=BroadcastParts(
            BroadcastRecord(directory / "broadcasts"),
            partial(open_slot, slots),  # beside those of the agent
        ),
        files=FileCache(directory / "files", min(LIMIT, config.cache_limit)),
        log=log,
    )
    logger.info("agent_starting", extra={"agent": parts.agent})
    return Agent(parts)


async def _fetch_ahead(bundles: BundleCache, bundle_hash: str) -> None:
    """Fetch the default bundle while the links open. A task that needs the bundle reports an error."""
    try:
        async with bundles.use(bundle_hash):
            logger.debug("bundle_ahead", extra={"bundle": bundle_hash})
    except (StorageError, ProtocolError, OSError) as error:
        logger.info("no_bundle_ahead", extra={"bundle": bundle_hash, "error": str(error)})

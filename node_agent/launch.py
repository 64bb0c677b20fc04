"""How an agent is put together.

The slots' Python children are started first: they come up on the other cores.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

from batchflow.errors import ProtocolError, StorageError
from batchflow.frozen import frozen
from node_agent import record
from node_agent.agent import Agent, Parts
from node_agent.cache import BundleCache
from node_agent.census import Census, most_processes
from node_agent.heartbeat import host_name
from node_agent.luggage import Luggage
from node_agent.news import NewsDesk
from node_agent.slots import Slot

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.broker import Broker
    from batchflow.control import AgentConfig
    from batchflow.storage import Container
    from node_agent.logkeeper import LogKeeper

logger = logging.getLogger(__name__)


@frozen
class Adaptors:
    """The services that an agent works with; whoever opened them closes them."""

    broker: Broker
    ctl: Container
    out: Container


def agent(
    config: AgentConfig,
    directory: Path,
    services: Adaptors,
    stack: ExitStack | AsyncExitStack,
    log: LogKeeper | None = None,
) -> Agent:
    """An agent that can be run. What it holds open itself ends with the stack."""
    slots = config.slots or os.cpu_count() or 1
    desk = NewsDesk()
    census, most = Census(config.process_limit), most_processes(config.process_limit, slots)
    runners = [
        Slot(
            index,
            directory / "slots",
            config,
            on_event=desk.tell,
            node=host_name(),
            census=census,
            most_processes=most,
        )
        for index in range(slots)
    ]
    luggage = Luggage(config.brought, services.ctl)
    bundles = BundleCache(directory / "cache", luggage, config.cache_limit)
    if config.bundle is not None:
        fetching = asyncio.create_task(_fetch_ahead(bundles, config.bundle), name="fetch ahead")
        stack.callback(fetching.cancel)
    boot = record.boot_id()
    deaths = record.DeathRecord(directory / "deaths.json", boot)
    parts = Parts(
        config=config,
        agent=secrets.token_hex(6),
        boot_id=boot,
        broker=services.broker,
        ctl=services.ctl,
        out=services.out,
        bundles=bundles,
        runners=runners,
        journal=stack.enter_context(record.RunningRecord(directory / "running", slots)),
        deaths=deaths.known,
        forget_deaths=deaths.forget,
        news=desk,
        log=log,
    )
    logger.info("agent_starting", extra={"agent": parts.agent})
    return Agent(parts)


async def _fetch_ahead(bundles: BundleCache, bundle_hash: str) -> None:
    """While the links open. What goes wrong is told to the task that needs it."""
    try:
        async with bundles.use(bundle_hash):
            logger.debug("bundle_ahead", extra={"bundle": bundle_hash})
    except (StorageError, ProtocolError, OSError) as error:
        logger.info("no_bundle_ahead", extra={"bundle": bundle_hash, "error": str(error)})

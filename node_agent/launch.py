"""How an agent is put together, as fast as it goes.

The slots' Python children are started first: they come up on the other cores while this process imports the
SDKs and opens its links.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node_agent import record
from node_agent.agent import Agent, Parts
from node_agent.cache import BundleCache
from node_agent.heartbeat import host_name
from node_agent.news import NewsDesk
from node_agent.slots import Slot

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.broker import Broker
    from batchflow.control import AgentConfig
    from batchflow.storage import Container
    from node_agent.logkeeper import LogKeeper

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adaptors:
    """The services that an agent works with."""

    broker: Broker
    ctl: Container
    out: Container
    beneath: tuple[AbstractAsyncContextManager[object], ...] = ()
    """What they work with, and what is closed after them."""


async def agent(
    config: AgentConfig,
    directory: Path,
    adaptors: Callable[[], Awaitable[Adaptors]],
    stack: AsyncExitStack,
    log: LogKeeper | None = None,
) -> Agent:
    """An agent that can be run. What it holds open ends with the stack."""
    began = time.monotonic()
    slots = config.slots or os.cpu_count() or 1
    desk = NewsDesk()
    runners = [
        Slot(index, directory / "slots", config, on_event=desk.tell, node=host_name())
        for index in range(slots)
    ]
    services = await adaptors()
    for service in (*services.beneath, services.broker, services.ctl, services.out):
        await stack.enter_async_context(service)
    boot = record.boot_id()
    deaths = record.DeathRecord(directory / "deaths.json", boot)
    parts = Parts(
        config=config,
        agent=secrets.token_hex(6),
        boot_id=boot,
        broker=services.broker,
        ctl=services.ctl,
        out=services.out,
        bundles=BundleCache(directory / "cache", services.ctl, config.cache_limit),
        runners=runners,
        journal=stack.enter_context(record.RunningRecord(directory / "running", slots)),
        deaths=deaths.known,
        forget_deaths=deaths.forget,
        news=desk,
        log=log,
    )
    logger.info("agent_starting", extra={"agent": parts.agent, "after": round(time.monotonic() - began, 3)})
    return Agent(parts)

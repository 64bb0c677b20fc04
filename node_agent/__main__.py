"""`python -m node_agent --config agent.json`: the supervisor, which forks the agent."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node_agent import logs
from node_agent.supervisor import EX_CONFIG, Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.azure.blob import BlobContainer
    from batchflow.azure.identity import Credential
    from batchflow.control import AgentConfig, ContainerAccess
    from node_agent.launch import Adaptors

logger = logging.getLogger("node_agent")

_SPARE: Final = 20.0
"""Seconds that a drain may take beyond its grace."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="node_agent", description="Runs the tasks of a pool on its node.")
    parser.add_argument("--config", type=Path, required=True, help="the agent's configuration (JSON)")
    parser.add_argument("--directory", type=Path, default=Path("agent"), help="where it keeps its files")
    options = parser.parse_args(arguments)
    logs.configure()
    try:
        drain_grace = float(json.loads(options.config.read_bytes()).get("drain_grace", 30.0))
        options.directory.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, AttributeError) as error:
        logger.error("config_unusable", extra={"path": str(options.config), "error": str(error)})
        return EX_CONFIG
    agent = partial(_agent, options.config.resolve(), options.directory.resolve())
    return Supervisor(agent, options.directory, drain_grace + _SPARE).run()


def _agent(config_path: Path, directory: Path) -> int:
    """The agent process's life, in the fork."""
    from batchflow.control import AgentConfig
    from batchflow.errors import ConfigurationError, ProtocolError

    try:
        config = AgentConfig.decode(config_path.read_bytes())
        _run(config, directory)
    except (ProtocolError, ConfigurationError) as error:
        logger.error("config_unusable", extra={"path": str(config_path), "error": str(error)})
        return EX_CONFIG
    return 0


def _run(config: AgentConfig, directory: Path) -> None:
    """On asyncio's own loop: uvloop would start programs by a fork, at three times the cost in CPU."""
    import asyncio

    asyncio.run(_serve(config, directory))


async def _serve(config: AgentConfig, directory: Path) -> None:
    import asyncio
    from contextlib import AsyncExitStack

    from node_agent import launch
    from node_agent.logkeeper import LogKeeper

    async with AsyncExitStack() as stack:
        keeper = LogKeeper(logs.JsonLines())
        logging.getLogger().addHandler(keeper)
        agent = await launch.agent(config, directory, partial(_adaptors, config), stack, keeper)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, agent.stop)
        loop.add_signal_handler(signal.SIGINT, _nothing)
        if config.leave_at is not None:
            loop.call_later(max(0.0, config.leave_at - time.time()), agent.stop)
        await agent.run()


def _nothing() -> None:
    """An interrupt from the terminal reaches the supervisor too, which hands it on."""


async def _adaptors(config: AgentConfig) -> Adaptors:
    """The SDKs are imported here, after the slots' children were started."""
    from batchflow.azure.identity import of_the_node
    from batchflow.azure.servicebus import ServiceBusBroker
    from node_agent.launch import Adaptors

    identity = None if config.identity is None else of_the_node(config.identity)
    queues = (*config.task_queues, *config.results_queues)
    broker = ServiceBusBroker(
        None,
        identity,
        by_queue={access.queue: access.connection_string for access in queues},
        ca_file=config.ca_file,
        websockets=config.websockets,
    )
    ctl, out = (_container(access, identity, config.storage_ca_file) for access in (config.ctl, config.out))
    return Adaptors(broker, ctl, out, () if identity is None else (identity,))


def _container(access: ContainerAccess, identity: Credential | None, ca_file: str | None) -> BlobContainer:
    from batchflow.azure.blob import IdentityContainer, SignedContainer
    from batchflow.errors import ConfigurationError

    if access.signature is not None:
        return SignedContainer(access.url, access.signature, ca_file=ca_file)
    if identity is None:
        raise ConfigurationError("there is neither a signature nor an identity for the containers")
    return IdentityContainer(access.url, identity, ca_file=ca_file)


if __name__ == "__main__":
    sys.exit(main())

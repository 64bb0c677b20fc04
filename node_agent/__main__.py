"""`python -m node_agent --config agent.json`: the supervisor, which forks the agent."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node_agent import logs
from node_agent.supervisor import EX_CONFIG, Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """The agent process's life, in the fork. Nothing is garbage while all of it is being imported."""
    import gc

    gc.disable()
    from node_agent import daemon

    return daemon.run(config_path, directory)


if __name__ == "__main__":
    sys.exit(main())

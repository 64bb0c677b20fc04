"""`python -m node_agent --config agent.json`: the supervisor, which forks the agent."""

from __future__ import annotations

import getopt
import json
import os
import sys
from functools import partial

from node_agent.supervision.supervisor import EX_CONFIG, Supervisor
from node_agent.system.plain_log import say

TYPE_CHECKING = False  # see `node_agent.system.plain_log`
if TYPE_CHECKING:
    from typing import Final

_USAGE: Final = """usage: node_agent --config CONFIG [--directory DIRECTORY]

Runs the tasks of a pool on its node.

  --config CONFIG        the agent's configuration (JSON)
  --directory DIRECTORY  where it keeps its files (default: agent)
"""
_OPTIONS: Final = ("config=", "directory=", "help")
_EX_USAGE: Final = 2
_SPARE: Final = 20.0
"""Seconds that a drain may take beyond its grace."""


def main(arguments: list[str] | None = None) -> int:
    try:
        pairs, rest = getopt.getopt(sys.argv[1:] if arguments is None else arguments, "h", _OPTIONS)
    except getopt.GetoptError as error:
        return _refuse(str(error))
    options = {"--directory": "agent", **dict(pairs)}
    if "-h" in options or "--help" in options:
        sys.stdout.write(_USAGE)
        return 0
    if rest or "--config" not in options:
        return _refuse(f"what is {rest[0]!r}?" if rest else "--config is needed")
    return _supervise(options["--config"], options["--directory"])


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{_USAGE}\nnode_agent: {reason}\n")
    return _EX_USAGE


def _supervise(config: str, directory: str) -> int:
    try:
        with open(config, "rb") as file:
            data = file.read()
        drain_grace = float(json.loads(data).get("drain_grace", 30.0))
    except (OSError, ValueError, AttributeError) as error:
        say("ERROR", "node_agent", "config_unusable", path=config, error=str(error))
        return EX_CONFIG
    agent = partial(_agent, data, config, os.path.realpath(directory))
    return Supervisor(agent, directory, drain_grace + _SPARE).run()


def _agent(config: bytes, path: str, directory: str) -> int:
    """Run the agent process, in the fork. `config`: read once, because a task may remove the file `path`."""
    from batchflow.support.process_tuning import pause_collector

    pause_collector()
    from node_agent.startup import process

    return process.run(config, path, directory)


if __name__ == "__main__":
    sys.exit(main())

"""Lines of the agent's log without `logging`, as `node_agent.system.json_log` has them.

For the supervisor, which logs little and runs as long as its node, so it imports as little as it can.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False  # `typing` alone is a seventh of what the supervisor holds
if TYPE_CHECKING:
    from typing import Any, Final

_LEVELS: Final = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


def say(level: str, logger: str, event: str, **fields: Any) -> None:
    """Write an event with its fields to stderr. Nothing secret may be among them.

    An event that cannot be written is dropped: the file may be on a full disk.
    """
    wanted = os.environ.get("BATCHFLOW_LOG_LEVEL", "INFO").upper()
    if _LEVELS[level] < _LEVELS.get(wanted, _LEVELS["INFO"]):
        return
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    head = {
        "at": f"{seconds}.{int(now % 1 * 1000):03d}+00:00",
        "level": level,
        "event": event,
        "logger": logger,
        "pid": os.getpid(),
    }
    with suppress(OSError):
        sys.stderr.write(json.dumps(head | fields, default=str, ensure_ascii=False) + "\n")
        sys.stderr.flush()

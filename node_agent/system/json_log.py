"""The agent's log: JSON lines, one event each, with its fields; nothing secret in them.

Configured by `__main__` alone. All other modules use `logging` with constant event names and `extra`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRETS: Final = re.compile(
    r"(SharedAccessKey=|AccountKey=|SharedAccessSignature=|[?&]sig=|\"sig=)[^;&\"'\s]+"
)


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON. Text that looks like a key or a signature is struck out."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _SECRETS.sub(r"\1***", json.dumps(fields, default=str, ensure_ascii=False))


def configure(level: str | None = None) -> None:
    """Log to stderr, which Batch keeps as `stderr.txt`. `level`: default BATCHFLOW_LOG_LEVEL, or INFO."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level or os.environ.get("BATCHFLOW_LOG_LEVEL", "INFO").upper())
    for name in ("azure", "uamqp", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)

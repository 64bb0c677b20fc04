"""What fails in the local cloud itself, which no request may bring about: counted and logged.

Only the client whose request failed hears of it: by an answer of status 500, or the end of its AMQP
connection. Everything else goes on.
"""

from __future__ import annotations

import logging
import sys

from batchflow.support.progress_report import counted

_log = logging.getLogger(__name__)


class InternalErrors:
    """The errors of one cloud since it was started."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        """Where the last one came up, and its type."""

    def note(self, where: str, error: BaseException | None = None) -> None:
        """Count an exception: the one that is being handled, unless another is given."""
        error = error or sys.exc_info()[1]
        self.count += 1
        self.last = f"{where}: {type(error).__name__}"
        _log.error("cloud.internal_error", extra={"where": where}, exc_info=error)

    def __str__(self) -> str:
        return (
            f"{counted(self.count, 'internal error')}, each a bug of the local cloud; the last in {self.last}"
        )

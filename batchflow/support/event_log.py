"""Log lines of named events, whose text carries what they are about."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from batchflow.printable import printable

if TYPE_CHECKING:
    Adapter = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter


class EventLogger(Adapter):
    """Takes an event's name, and fields as `extra`, and writes both: ``mailbox_lost: mailbox=a/b``.

    The fields stay in the record as well, for handlers that write structured lines. Without this a handler
    that writes the message alone, as Python's own do, would leave out what happened.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = kwargs.get("extra") or {}
        if fields:
            text = ", ".join(f"{name}={value}" for name, value in fields.items())
            msg = f"{msg}: {printable(text)}"
        return msg, kwargs


def event_logger(name: str) -> EventLogger:
    """Return the logger of a module. May be called from any thread, as its methods may."""
    return EventLogger(logging.getLogger(name), {})

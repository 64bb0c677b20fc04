"""Tasks that failed, as they travelled: kept for a while, so that one can be run again elsewhere. Pure.

An agent keeps the tasks that fail on it, at a bounded rate. A client keeps those that the broker gave up on
and that it turns into results. Their arguments, bundles and variables lie where the task names them.
"""

from __future__ import annotations

from typing import Final

import orjson

from batchflow.errors import ProtocolError
from batchflow.protocol import wire
from batchflow.protocol.wire import TaskItem
from batchflow.support.frozen import frozen

FAILED: Final = "failed/"
"""What the names of the blobs of failed tasks begin with, in both containers of a pool."""
_VERSION: Final = 1
_LONGEST_ERROR: Final = 2000
"""Characters of an error that are kept."""
_LONGEST_NUMBER: Final = 10
"""Digits of an attempt."""


@frozen
class FailedTask:
    """A task that failed, and how."""

    task: TaskItem
    kind: str
    """The name of the `TaskError`."""
    error: str
    node: str | None
    """The host name of the node that ran it; None when no node did."""
    at: float
    """Seconds since the epoch."""

    @property
    def blob(self) -> str:
        return f"{failed_prefix(self.task.job, self.task.client)}{self.task.uid}-{self.task.attempt}.json"

    def encode(self) -> bytes:
        document = {
            "v": _VERSION,
            "task": orjson.Fragment(wire.encode(self.task)),
            "kind": self.kind,
            "error": self.error[:_LONGEST_ERROR].encode("utf-8", "replace").decode(),
            "node": self.node,
            "at": self.at,
        }
        return orjson.dumps(document)

    @classmethod
    def decode(cls, data: bytes) -> FailedTask:
        """Read a document. Raises `ProtocolError`, because code on a node may have written it."""
        try:
            document = orjson.loads(data)
            if document["v"] > _VERSION:
                raise ProtocolError(f"a failed task of version {document['v']}: install a newer batchflow")
            kind, error, node = (document[name] for name in ("kind", "error", "node"))
            if not (isinstance(kind, str) and isinstance(error, str) and isinstance(node, str | None)):
                raise ProtocolError("a failed task whose kind, error or node is no text")
            (task,) = wire.decode(wire.join("tasks", [orjson.dumps(document["task"])]))
            at = float(document["at"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"a failed task that cannot be read: {error!r}") from error
        assert isinstance(task, TaskItem)
        return cls(task, kind, error, node, at)


def failed_prefix(job: str = "", client: str = "") -> str:
    """Return what the blobs of failed tasks begin with: all, those of a job, or those of one client in it."""
    return FAILED + "".join(f"{part}/" for part in (job, client) if part)


def attempt_of(blob: str) -> int:
    """Return the attempt that such a blob is named by; 0 for a name that code on a node made up."""
    number = blob.removesuffix(".json").rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < _LONGEST_NUMBER else 0


def uid_of(blob: str) -> str:
    """Return the uid that such a blob is named by."""
    return blob.rpartition("/")[2].removesuffix(".json").rpartition("-")[0]

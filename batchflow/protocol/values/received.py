"""What a session makes of the results that come: values of `values`, opened without executing anything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchflow.model import Status
from batchflow.protocol.values.classes import BundleClasses
from batchflow.protocol.values.encoding import Decoder
from batchflow.protocol.values.misfits import Undecodable
from batchflow.protocol.values.raised import rebuild
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.protocol.wire import ResultItem


@frozen
class ReceivedValue:
    """A value that came in a container."""

    value: Any
    data: bytes | bytearray
    """The container, in which the arrays of the value may lie."""


class ValueReader:
    """Opens the values of one session's results."""

    def __init__(self, classes: BundleClasses | None = None, *, unpickle: bool = False) -> None:
        """`classes`: those of the session's files, by default none. `unpickle`: whether to open pickles."""
        self._classes = BundleClasses() if classes is None else classes
        self._unpickle = _unpickled if unpickle else None

    def decode(self, data: bytes | bytearray) -> Any:
        """Return a value. Raises `Undecodable`."""
        return Decoder(resolve=self._classes.find, unpickle=self._unpickle).decode(data)

    def raised(self, item: ResultItem) -> Exception | None:
        """Return what the task raised; None where it raised nothing, or where it cannot be rebuilt safely."""
        return rebuild(item.raised, item.raised_data, self._classes.find)

    def opened(self, item: ResultItem, data: bytes) -> ResultItem:
        """Return a result with its value opened, or the failure that stands for it."""
        own = bytearray(data)  # so that arrays lie in it, and can be written to
        try:
            return replace(item, value=ReceivedValue(self.decode(own), own))
        except Undecodable as error:
            return unreadable(item, f"its value cannot be read here: {error}", "ResultNotSerializable")


def unreadable(item: ResultItem, why: str, kind: str = "TaskFailed") -> ResultItem:
    """Return the failure that stands for a result whose value is not to be had. A failure keeps its kind."""
    error = f"the task {item.status.value}, but {why}"
    if item.status is not Status.SUCCEEDED:
        return replace(item, value=None, error=f"{item.error} ({error})")
    return replace(item, status=Status.FAILED, value=None, error=error, kind=kind)


def _unpickled(data: bytes, buffers: list[memoryview]) -> Any:
    """Open a pickle, which executes what it names: only where the session's user asked for it."""
    import pickle

    return pickle.loads(data, buffers=buffers)

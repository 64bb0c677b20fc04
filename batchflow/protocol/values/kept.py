"""What a session keeps of a task's arguments, so that the result says what was asked.

Texts and numbers are kept as they are. Anything else is kept as it was encoded, because the program may
change its own objects after it has submitted them. Large arguments are in a blob anyway, and are not kept in
memory as well.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from batchflow.model import StoredArgument
from batchflow.protocol.values import arguments
from batchflow.protocol.values.encoding import Decoder, to_json
from batchflow.protocol.values.types import type_name
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.protocol.values.classes import BundleClasses
    from batchflow.protocol.values.encoding import Encoded

LARGE: Final = 16 * 1024
"""Bytes of an argument above which it is kept in its blob alone, if it is in one."""

Fetch = Callable[[int], Awaitable[Any]]
"""Fetches the argument of that number."""


@frozen
class KeptArguments:
    """The arguments of one task, encoded."""

    data: bytes
    classes: BundleClasses
    stored: dict[int, StoredArgument]
    """Those that are in a blob, by their number; None stands for them in the data."""

    fill: Callable[[int], Any] | None = None
    """Returns what stands in the place of an argument that was not known at the submit."""

    def open(self) -> list[Any]:
        """Return the arguments, made anew. They never left this process, so their pickles are opened."""
        unpickle = partial(_unpickled, self.fill)
        made: list[Any] = Decoder(resolve=self._resolve, unpickle=unpickle, fill=self.fill).decode(self.data)
        for place, argument in self.stored.items():
            made[place] = argument
        return made

    def _resolve(self, name: str) -> Any:
        if (found := self.classes.find(name)) is not None:
            return found
        module, _, qualname = name.partition(":")
        found = sys.modules.get(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        return found


def keep(
    given: list[Any], encoded: bytes | Encoded | None, classes: BundleClasses, fetch: Fetch | None
) -> list[Any] | KeptArguments:
    """Return what to keep. `fetch`: of arguments that are in a blob."""
    if fetch is not None:
        return _keep_small(given, classes, fetch)
    if encoded is None:
        return given
    return KeptArguments(arguments.in_blob(given, encoded), classes, {})


def _keep_small(given: list[Any], classes: BundleClasses, fetch: Fetch) -> KeptArguments:
    small: list[Any] = []
    stored: dict[int, StoredArgument] = {}
    for place, argument in enumerate(given):
        if (size := _size(argument, classes)) > LARGE:
            stored[place] = StoredArgument(type_name(argument), size, partial(fetch, place))
            small.append(None)
        else:
            small.append(argument)
    return KeptArguments(arguments.in_blob(small, arguments.encode(small, "", classes)), classes, stored)


def _size(argument: Any, classes: BundleClasses) -> int:
    """Return the bytes that an argument takes by itself."""
    if isinstance(argument, str | bytes):
        return len(argument)
    if (data := to_json(argument)) is not None:
        return len(data)
    encoded = arguments.encode([argument], "", classes)
    return len(encoded) if isinstance(encoded, bytes) else encoded.size


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, buffers: list[memoryview], fill: Callable[[int], Any]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._fill = fill

    def persistent_load(self, pid: Any) -> Any:
        return self._fill(pid)


def _unpickled(fill: Callable[[int], Any] | None, data: bytes, buffers: list[memoryview]) -> Any:
    if fill is None:
        return pickle.loads(data, buffers=buffers)
    return _Unpickler(data, buffers, fill).load()

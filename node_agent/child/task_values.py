"""A task's arguments and what it returns, in the child: see `batchflow.protocol.values`.

Arguments are opened here and nowhere else, because a pickle among them executes what it names. What a task
returns is JSON where JSON holds it, else a container; a short one is followed by its nearest JSON, for
clients that read nothing else.
"""

from __future__ import annotations

import sys
from operator import attrgetter

import orjson

from batchflow.protocol.values import encoding as values
from batchflow.protocol.values import misfits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

_GENERAL_ADVICE: Final = "return one of the types that docs/data.md lists, or write a file to outputs/"
_PICKLE_ADVICE: Final = "return one of the types of docs/data.md, or open the session with unpickle=True"
_FORM_LIMIT: Final = 16 * 1024
"""Bytes of a container that is followed by its nearest JSON."""


class NotSerializable(Exception):
    """The value has no encoding."""

    kind = "ResultNotSerializable"


class TooLarge(Exception):
    """The value is above the limit."""

    kind = "ResultTooLarge"


def read_task(payload: bytes) -> dict[str, Any]:
    """Return a task as the agent sends it: JSON, or the length of that, it, and a container of arguments."""
    if payload[:1] != b"\0":
        task: dict[str, Any] = orjson.loads(payload)
        return task
    end = 4 + int.from_bytes(payload[:4], "big")
    task = orjson.loads(payload[4:end])
    task["args"] = payload[end:]
    return task


def arguments_of(task: dict[str, Any], read: Callable[[str], bytearray]) -> list[Any]:
    """Return the arguments of a task. Raises `misfits.Undecodable`. `read`: see `open_arguments`."""
    arguments: list[Any] | bytes = task["args"]
    return (
        open_arguments(arguments, task.get("inputs", ()), read=read)
        if isinstance(arguments, bytes)
        else arguments
    )


def open_arguments(
    data: bytes, inputs: Sequence[str] = (), *, read: Callable[[str], bytearray] | None = None
) -> list[Any]:
    """Return the arguments of a container. Raises `misfits.Undecodable`.

    `inputs`: the files with the values of other tasks that it has numbers for. `read` returns
    the content of one.
    """
    opened: dict[int, Any] = {}

    def fill(number: int) -> Any:
        assert read is not None
        if number not in opened:
            opened[number] = values.Decoder(resolve=_imported, unpickle=_unpickled).decode(
                read(inputs[number])
            )
        return opened[number]

    def unpickle(data: bytes, buffers: list[memoryview]) -> Any:
        return _unpickled_with(fill, data, buffers) if inputs else _unpickled(data, buffers)

    decoder = values.Decoder(resolve=_imported, unpickle=unpickle, fill=fill if inputs else None)
    arguments = decoder.decode(bytearray(data))
    if type(arguments) is not list:
        raise misfits.Undecodable("they are not a list")
    return arguments


def encode(value: Any, limit: int, *, pickles: bool = False) -> bytes:
    """Encode what a task returned, in at most `limit` bytes. Raises `NotSerializable` or `TooLarge`.

    `pickles`: whether what has no encoding is pickled, because the session opens pickles.
    """
    data = b"null" if value is None else values.to_json(value)
    if data is None:
        data = _container(value, limit, pickles)
    if len(data) > limit:
        raise TooLarge(
            f"the result is {len(data)} bytes of JSON, the limit is {limit}: write it to a file in outputs/"
        )
    return data


def tell_raised(error: BaseException) -> dict[str, Any]:
    """Return what the client can rebuild an exception from; see `batchflow.protocol.values.raised`."""
    from batchflow.protocol.values.raised import tell

    return tell(error)


def _container(value: Any, limit: int, pickles: bool) -> bytes:
    encoder = values.Encoder(limit=limit, class_name=_class_name, pickle=_pickle if pickles else None)
    try:
        encoded = encoder.encode(value)
    except misfits.TooLarge as error:
        error.advice = "write it to a file in outputs/"
        raise TooLarge(f"do_action returned too much: {error.text('result')}") from error
    except misfits.Misfit as error:
        error.advice = error.advice or (_GENERAL_ADVICE if pickles else _PICKLE_ADVICE)
        raise NotSerializable(f"do_action returned what cannot travel: {error.text('result')}") from error
    if encoded.size > _FORM_LIMIT:
        return encoded.join()
    return encoded.join() + _nearest_json(value)


def _nearest_json(value: Any) -> bytes:
    from batchflow.protocol.values.json_form import json_form

    try:
        form = orjson.dumps(json_form(value))
    except (misfits.Misfit, TypeError, RecursionError):
        return b""
    return form if len(form) <= _FORM_LIMIT else b""


def _class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _pickle(value: Any, add_buffer: Callable[[Any], object]) -> bytes:
    import pickle

    try:
        return pickle.dumps(value, 5, buffer_callback=add_buffer)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise misfits.Unencodable(
            f"is of type {type(value).__name__} and cannot be pickled ({reason})", _GENERAL_ADVICE
        ) from error


def _unpickled(data: bytes, buffers: list[memoryview]) -> Any:
    import pickle

    return pickle.loads(data, buffers=buffers)


def _unpickled_with(fill: Callable[[int], Any], data: bytes, buffers: list[memoryview]) -> Any:
    import io
    import pickle

    class Filling(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return fill(pid)

    return Filling(io.BytesIO(data), buffers=buffers).load()


def _imported(name: str) -> Any:
    """Return a class that an argument is of. Raises ImportError or AttributeError."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        from importlib import import_module

        found = import_module(module)
    return attrgetter(qualname)(found)

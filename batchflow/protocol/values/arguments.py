"""How a task's arguments are encoded: by `values`, and what that does not know by a pickle.

Arguments come from the task's own user, so they may be pickled. They are opened in the task's process alone.
"""

from __future__ import annotations

import io
import pickle
import shlex
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final

import orjson
from orjson import Fragment

from batchflow.errors import ArgumentNotSerializable, ConfigurationError
from batchflow.model import UNSET
from batchflow.protocol.fields import carried
from batchflow.protocol.values.encoding import Encoder, to_json
from batchflow.protocol.values.json_form import json_form
from batchflow.protocol.values.misfits import Misfit, TooLarge, Unencodable
from batchflow.protocol.values.types import unknown

if TYPE_CHECKING:
    from batchflow.protocol.values.classes import BundleClasses
    from batchflow.protocol.values.encoding import Encoded

MOST_BYTES: Final = 2**31 - 2**20
"""Bytes of the arguments of a task: what the agent passes on in one piece."""


_PLAIN: Final = frozenset((str, int, bool, type(None)))
_DEEPEST_MARK: Final = 100

Mark = Callable[[Any], "int | None"]
"""Numbers what stands for a value that is not known yet; returns None for anything else."""


def are_plain(arguments: list[Any]) -> bool:
    """Return whether all arguments are texts and whole numbers, which need no look at their values."""
    return _PLAIN.issuperset(map(type, arguments))


def encode(
    arguments: list[Any],
    command: str,
    classes: BundleClasses,
    index: int | None = None,
    *,
    is_python: bool = True,
    mark: Mark | None = None,
) -> bytes | Encoded:
    """Encode the arguments of a task: JSON where JSON holds them, else a container.

    `index`: their place among several inputs. `is_python`: whether Python gets them, and no program. `mark`:
    of arguments that are filled in later. Raises `ArgumentNotSerializable`.
    """
    if (data := to_json(arguments)) is not None:
        # a copy, because it is kept: the encoder's own buffer is of kilobytes, however short the text
        return bytes(memoryview(data))
    what = command if index is None else f"{command}: inputs[{index}]"
    if not is_python and (mark is None or not _has_mark(arguments, mark)):
        return orjson.dumps(_words(arguments, what))
    encoder = Encoder(
        limit=MOST_BYTES, class_name=classes.name_of, pickle=_Pickles(classes, mark).write, mark=mark
    )
    try:
        return encoder.encode(arguments)
    except Misfit as error:
        if isinstance(error, TooLarge) and not error.advice:
            error.advice = "put it into a file of the bundle, or into storage that the task reads"
        raise ArgumentNotSerializable(f"{what}: {error.text('args')}") from error


def _has_mark(value: Any, mark: Mark, depth: int = 0) -> bool:
    """Return whether a list, tuple, set or dictionary of a program's arguments holds what `mark` numbers."""
    if depth > _DEEPEST_MARK:
        return False
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return mark(value) is not None
    return any(_has_mark(part, mark, depth + 1) for part in value)


def _words(arguments: list[Any], what: str) -> list[Any]:
    """Return a program's arguments as JSON: its words. Raises `ArgumentNotSerializable`."""
    try:
        return [_word(argument, place) for place, argument in enumerate(arguments)]
    except Misfit as error:
        raise ArgumentNotSerializable(
            f"{what}: {error.text('args')}: a program takes texts and numbers"
        ) from error


def in_message(encoded: bytes | Encoded) -> Any:
    """Return what a task's message has in place of the arguments."""
    return Fragment(encoded) if isinstance(encoded, bytes) else carried(encoded.join())


def in_blob(arguments: list[Any], encoded: bytes | Encoded | None) -> bytes:
    """Return what a blob has in place of the arguments."""
    if encoded is None:
        return orjson.dumps(arguments)
    return encoded if isinstance(encoded, bytes) else encoded.join()


def size(encoded: bytes | Encoded | None) -> int:
    """Return the bytes that encoded arguments take in a message: a container is in base64 there."""
    if encoded is None:
        return 0
    return len(encoded) if isinstance(encoded, bytes) else -(-encoded.size // 3) * 4


def _word(argument: Any, place: int) -> Any:
    if isinstance(argument, float):
        return argument if float("-inf") < argument < float("inf") else repr(float(argument))
    if type(argument).__name__ in ("Decimal", "Fraction", "int"):
        return argument if type(argument) is int and abs(argument) < 2**63 else str(argument)
    try:
        return json_form(argument)
    except Misfit as error:
        raise error.below(f"[{place}]") from None


def command_line(params: tuple[Any, ...], args: Any, *, split: bool = True) -> list[Any]:
    """Return the arguments of a call. `split`: whether a lone text is a command line, as for a file.

    Raises `ConfigurationError` for both forms at once, or an unclosed quote.
    """
    if args is not UNSET:
        if params:
            raise ConfigurationError("submit takes either positional arguments or args=, not both")
        return as_arguments(args)
    if split and len(params) == 1 and isinstance(params[0], str):
        try:
            return [*shlex.split(params[0])]
        except ValueError as error:
            raise ConfigurationError(
                f"the command line {params[0]!r} cannot be split: {error}; pass args=[...] for text as it is"
            ) from error
    return list(params)


def as_arguments(value: Any) -> list[Any]:
    """Return the arguments for an input: a list or tuple as it is, anything else as the one argument."""
    return list(value) if isinstance(value, list | tuple) else [value]


class _Pickles:
    """Writes pickles that the nodes can open."""

    def __init__(self, classes: BundleClasses, mark: Mark | None = None) -> None:
        self._classes = classes
        self._mark = mark

    def write(self, value: Any, add_buffer: Callable[[Any], object]) -> bytes:
        """Return a pickle. Raises `Unencodable`, naming what the nodes do not have."""
        stream = io.BytesIO()
        try:
            if self._mark is None:
                _Pickler(stream, add_buffer, self._classes).dump(value)
            else:
                _MarkingPickler(stream, add_buffer, self._classes, self._mark).dump(value)
        except (Misfit, ConfigurationError):
            raise
        except Exception as error:
            reason = f"it cannot be pickled: {type(error).__name__}: {error}"[:200]
            known = unknown(value)
            raise Unencodable(known.what, known.advice or reason) from error
        return stream.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: Any, add_buffer: Callable[[Any], object], classes: BundleClasses) -> None:
        super().__init__(stream, 5, buffer_callback=add_buffer)
        self._classes = classes

    def reducer_override(self, value: Any) -> Any:
        """Refuse classes and functions that the nodes cannot import; leave the rest to pickle."""
        if isinstance(value, (type, FunctionType)) and not isinstance(value, BuiltinFunctionType):
            self._classes.name_of(value)  # type: ignore[arg-type]
        return NotImplemented


class _MarkingPickler(_Pickler):
    def __init__(
        self, stream: Any, add_buffer: Callable[[Any], object], classes: BundleClasses, mark: Mark
    ) -> None:
        super().__init__(stream, add_buffer, classes)
        self._mark = mark

    def persistent_id(self, value: Any) -> int | None:
        """Return the number of what is filled in later; None: the value itself is pickled."""
        return self._mark(value)

"""The nearest JSON of a value that JSON does not hold exactly: for programs, logs and readers of JSON alone.

Lists stand for tuples, sets (sorted where they can be), ranges, deques, views and arrays; objects for
dataclasses, by their fields; an Enum's value for its member; RFC 3339 for dates and times; texts for paths
and UUIDs. Keys that are int, float, bool, None, date, UUID or enum become text, as in Python's own json.
What would be lost or bent in silence has no such form: NaN and the infinities, integers of more than 64 bits,
bytes, two keys that become one.
"""

from __future__ import annotations

import sys
from math import isfinite

import orjson

from batchflow.protocol.values.misfits import Misfit, Unencodable, shown, step
from batchflow.protocol.values.types import ObjectFields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

_DEEPEST: Final = 100


def json_form(value: Any, *, otherwise: Callable[[Any], Any] | None = None) -> Any:
    """Return the value as JSON's own types. `otherwise`: what stands for a part that has no form in JSON.

    Raises `Unencodable` for such a part, where `otherwise` is not given.
    """
    return _Form(otherwise).of(value, 0)


class _Form:
    def __init__(self, otherwise: Callable[[Any], Any] | None) -> None:
        self._otherwise = otherwise

    def of(self, value: Any, depth: int) -> Any:
        try:
            return self._of(value, depth)
        except _NoForm as error:
            if self._otherwise is None:
                raise Unencodable(error.args[0]) from None
            return self._otherwise(value)

    def _of(self, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise _NoForm("is nested too deep, or holds itself")
        if value is None or value is True or value is False:
            return value
        enum = sys.modules.get("enum")
        if enum is not None and isinstance(value, enum.Enum):
            return self.of(value.value, depth + 1)
        if isinstance(value, str):
            return _text(str.__str__(value))
        if isinstance(value, int):
            return _number(int.__int__(value))
        if isinstance(value, float):
            return _number(float.__float__(value))
        if isinstance(value, dict):
            return self._mapping(dict(dict.items(value)), depth + 1)
        if isinstance(value, (set, frozenset)):
            return self._items(_sorted(value), depth + 1)
        if isinstance(value, list):  # what a subclass says of itself is not asked
            return self._items(list(list.__iter__(value)), depth + 1)
        if isinstance(value, tuple):
            return self._items(list(tuple.__iter__(value)), depth + 1)
        if isinstance(value, _LISTED) or type(value).__name__ == "deque":
            return self._items([*value], depth + 1)
        return self._object(value, depth + 1)

    def _items(self, values: list[Any], depth: int) -> list[Any]:
        made: list[Any] = []
        try:
            for value in values:
                made.append(self.of(value, depth))  # noqa: PERF401 - its length is the place of a fault
        except Misfit as error:
            raise error.below(f"[{len(made)}]") from None
        return made

    def _mapping(self, values: dict[Any, Any], depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in values.items():
            name = _key(key)
            if name in made:
                raise _NoForm(f"has two keys that are one in JSON, {shown(key)}")
            try:
                made[name] = self.of(value, depth)
            except Misfit as error:
                raise error.below(step(key)) from None
        return made

    def _object(self, value: Any, depth: int) -> Any:
        numpy, pathlib = sys.modules.get("numpy"), sys.modules.get("pathlib")
        if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
            if value.dtype.kind in "Mm":
                return self._items(value.astype(str).tolist(), depth) if value.shape else str(value)
            return self.of(value.tolist(), depth)
        if pathlib is not None and isinstance(value, pathlib.PurePath):
            return _text(str(value))
        dataclasses = sys.modules.get("dataclasses")
        if dataclasses is not None and dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
            return self._mapping(fields, depth)
        try:
            return orjson.loads(orjson.dumps(value))  # date, datetime, time, UUID
        except TypeError:
            raise _NoForm(f"is of type {type(value).__name__}, which has no form in JSON") from None


class _NoForm(Exception):
    """JSON has no form for the value."""


_LISTED: Final[tuple[Any, ...]] = (
    range,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _NoForm("holds lone surrogates, which are no Unicode text") from None
    return value


def _number(value: float) -> float:
    if type(value) is int and not -(2**63) <= value < 2**64:
        raise _NoForm("is an integer of more than 64 bits")
    if not isfinite(value):
        raise _NoForm("is NaN or infinite, which JSON has not")
    return value


def _sorted(values: Any) -> list[Any]:
    items = list((set if isinstance(values, set) else frozenset).__iter__(values))
    try:
        return sorted(items)
    except TypeError:
        return items


def _key(key: Any) -> str:
    if type(key) is str:
        return _text(key)
    if isinstance(key, ObjectFields):
        raise _NoForm(f"has a key that is no text or number, {shown(key)}")
    try:
        return str(next(iter(orjson.loads(orjson.dumps({key: 0}, None, orjson.OPT_NON_STR_KEYS)))))
    except TypeError:
        raise _NoForm(f"has a key that is no text or number, {shown(key)}") from None

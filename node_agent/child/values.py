"""What a task returns, as JSON: runs in the child.

Rules:

- What JSON has: dict, list, tuple, str, int of at most 64 bits, finite float, bool, None.
- What has one obvious form in it: dataclasses (all their fields), enums (their value), date and datetime
  (RFC 3339), UUID, paths (text), named tuples, ranges, deques and dict views (lists), sets (lists, sorted
  where they can be), numpy scalars and arrays. Keys that are int, float, bool, None, date, UUID or enum
  become text, as in Python's own json.
- What would be lost or bent in silence is refused: NaN and the infinities (JSON has none), larger integers
  (most readers make floats of them), bytes, two keys that become one.

The refusal names the place in the value, the type, and what to return instead.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from math import isfinite
from pathlib import PurePath

import orjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS
_LISTED: tuple[Any, ...] = (tuple, range, deque, type({}.keys()), type({}.values()), type({}.items()))
_WALKED: tuple[Any, ...] = (list, set, frozenset, *_LISTED)
_DEEPEST = 250
_ADVICE = {
    "bytes": "decode it, or return base64 text",
    "bytearray": "decode it, or return base64 text",
    "int": "JSON readers take no more than 64 bits; return it as str",
    "float": "JSON has no NaN or infinity; return None or a text instead",
    "Decimal": "return it as str or float",
    "complex": "return its real and imaginary part",
    "timedelta": "return its total_seconds()",
    "generator": "return a list of what it yields",
    "str": "it holds lone surrogates, which are no Unicode text",
}
_GENERAL_ADVICE = "return what JSON knows, or write a file to outputs/"


class NotSerializable(Exception):
    """JSON cannot hold the value."""


class TooLarge(Exception):
    """The value is above the limit."""


def encode(value: Any, limit: int) -> bytes:
    """Return JSON of at most `limit` bytes. Raises `NotSerializable` or `TooLarge`."""
    try:
        data = orjson.dumps(value, _plain, _OPTIONS)
    except (TypeError, RecursionError) as error:
        data = _encode_with_other_keys(value, error)
    if value is not None and b"null" in data:
        _refuse_lost(value)
    if len(data) > limit:
        raise TooLarge(
            f"the result is {len(data)} bytes of JSON, the limit is {limit}: write it to a file in outputs/"
        )
    return data


def _plain(value: Any) -> Any:
    """Return what orjson is to write for a type that it does not know. Raises TypeError."""
    if isinstance(value, (set, frozenset)):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if isinstance(value, _LISTED):
        return list(value)
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, float):
        return float(value)
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _encode_with_other_keys(value: Any, error: BaseException) -> bytes:
    """Encode again, for dicts whose keys are not str; they must stay apart as text."""
    if (place := next(_unwritable(value, "result", 0), None)) is not None:
        raise NotSerializable(_refusal(*place)) from error
    try:
        return orjson.dumps(value, _plain, _OPTIONS | orjson.OPT_NON_STR_KEYS)
    except (TypeError, RecursionError) as reason:
        raise NotSerializable(f"do_action returned what JSON cannot hold: {reason}") from reason


def _refuse_lost(value: Any) -> None:
    """Refuse NaN and the infinities, which orjson writes as null."""
    if (place := next(_unwritable(value, "result", 0), None)) is not None:
        raise NotSerializable(_refusal(*place))


def _refusal(path: str, part: Any, why: str) -> str:
    kind = type(part).__name__
    advice = why or _ADVICE.get("float" if _is_floating(part) else kind, _GENERAL_ADVICE)
    return f"do_action returned what JSON cannot hold: {path} is of type {kind} ({advice})"


def _unwritable(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any, str]]:
    """Return the parts that JSON cannot hold: (where, what, why)."""
    if depth > _DEEPEST:
        yield path[:200] + "...", value, f"nested deeper than {_DEEPEST}, or holding itself"
    elif isinstance(value, dict):
        yield from _bad_keys(value, path)
        for key, part in value.items():
            yield from _unwritable(part, f"{path}[{_short(key)}]", depth + 1)
    elif isinstance(value, _WALKED):
        for index, part in enumerate(value):
            yield from _unwritable(part, f"{path}[{index}]", depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _unwritable(getattr(value, field.name), f"{path}.{field.name}", depth + 1)
    elif not _writable(value):
        yield path, value, ""


def _bad_keys(value: dict[Any, Any], path: str) -> Iterable[tuple[str, Any, str]]:
    seen: dict[str, Any] = {}
    for key in value:
        try:
            text = next(iter(orjson.loads(orjson.dumps({key: 0}, None, orjson.OPT_NON_STR_KEYS))))
        except TypeError:
            yield f"a key of {path}, {_short(key)},", key, "a key must be text or a number"
            continue
        if text in seen:
            yield f"a key of {path}, {_short(key)},", key, f"it and {_short(seen[text])} are one key in JSON"
        seen[text] = key


def _writable(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if _is_floating(value):
        return bool(sys.modules["numpy"].isfinite(value).all())
    try:
        orjson.dumps(value, _plain, _OPTIONS)
    except (TypeError, RecursionError):
        return False
    return True


def _is_floating(value: Any) -> bool:
    """Return whether it is a scalar or an array of numpy's floating kind."""
    return bool(getattr(getattr(value, "dtype", None), "kind", None) == "f")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The encoding of values of the standard library's types, and of dataclasses and enums; see `encoding`.

=====================================  ===============================================================
in the tree                            value
=====================================  ===============================================================
``{"$float": "nan"}``                  NaN, and the infinities
``{"$int": "0x..."}``                  an integer of more than 64 bits
``{"$str": hexadecimal}``              text with lone surrogates: its UTF-8
``{"$bytes": n}``                      bytes: buffer n; so `$bytearray`
``{"$tuple": [...]}``                  a tuple; so `$set`, `$frozenset`
``{"$namedtuple": [class, [...]]}``    a named tuple; a tuple where its class is not resolved
``{"$deque": [[...], length]}``        a deque
``{"$ordered": [[k, v], ...]}``        an OrderedDict; so `$counter`
``{"$range": [start, stop, step]}``    a range; so `$slice`
``{"$complex": [real, imaginary]}``    a complex number, its parts as texts
``{"$decimal": text}``                 a Decimal
``{"$fraction": [n, d]}``              a Fraction, its parts as trees
``{"$uuid": hexadecimal}``             a UUID
``{"$path": [class, text]}``           a path of pathlib
``{"$date": text}``                    a date
``{"$datetime": [text, zone, fold]}``  a datetime; so `$time`
``{"$timedelta": [d, s, us]}``         a timedelta
``{"$zone": zone}``                    None, "utc", [days, seconds, microseconds, name] or a zone's key
``{"$enum": [class, name, value]}``    a member of an Enum
``{"$object": [class, {...}]}``        a dataclass, by its fields
``{"$pickle": [n, ...]}``              a pickle of protocol 5 and its buffers
=====================================  ===============================================================

Imports nothing at its start that a process which runs tasks has not.
"""

from __future__ import annotations

import sys

from batchflow.protocol.values.misfits import Undecodable, Unencodable
from batchflow.protocol.values.trees import special_atom
from batchflow.protocol.values.zones import zone_from, zone_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from batchflow.protocol.values.trees import TreeReader, TreeWriter


class ObjectFields(dict[str, "Any"]):
    """The fields of an object whose class is not used here: a mapping with the class's name.

    A member of an Enum has the fields `name` and `value`.
    """

    __slots__ = ("class_name",)

    def __init__(self, class_name: str, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.class_name = class_name
        """The class as `module:name`."""

    def __repr__(self) -> str:
        return f"<{self.class_name} {super().__repr__()}>"

    def __hash__(self) -> int:  # type: ignore[override]
        """A frozen dataclass may stand in a set, and so may its fields."""
        return hash((self.class_name, tuple(self.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectFields, (self.class_name, dict(self))


ADVICE: Final = {
    "generator": "pass a list of what it yields",
    "async_generator": "pass a list of what it yields",
    "coroutine": "await it first",
    "object": "a bare object has only its identity, which does not travel",
    "map": "pass a list of what it yields",
    "filter": "pass a list of what it yields",
    "zip": "pass a list of what it yields",
    "TextIOWrapper": "pass its content",
    "BufferedReader": "pass its content",
    "socket": "it belongs to its process; open it in the task",
    "lock": "it belongs to its process",
}


def unknown(value: Any) -> Unencodable:
    """Return the error for a value of a type without an encoding."""
    advice = ADVICE.get(type(value).__name__, "")
    return Unencodable(f"is of type {type_name(value)}, which has no encoding", advice)


def type_name(value: Any) -> str:
    """Return the name of a value's type, with its module if it is not built in."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ---- encoding


def encode_other(encoder: TreeWriter, value: Any) -> Any:
    """Return the tree of a value that is none of JSON's types. Raises `Misfit`."""
    kind = type(value)
    if (write := _WRITERS.get(kind)) is not None:
        return write(encoder, value)
    module = kind.__module__.partition(".")[0]
    if (write := _BY_NAME.get((module, kind.__name__))) is not None:
        return write(encoder, value)
    if module in _LIBRARIES:
        from batchflow.protocol.values import arrays

        if (tree := arrays.encode(encoder, value)) is not None:
            return tree
    if (enum := sys.modules.get("enum")) is not None and isinstance(value, enum.Enum):
        return _write_enum(encoder, value)
    if isinstance(getattr(value, "_fields", None), tuple) and isinstance(value, tuple):
        return _write_tuple(encoder, value)
    if (dataclasses := sys.modules.get("dataclasses")) is not None and dataclasses.is_dataclass(kind):
        return _write_object(encoder, value)
    return _write_relative(encoder, value)


_LIBRARIES: Final = frozenset(("numpy", "pandas", "polars", "pyarrow"))


def _write_relative(encoder: TreeWriter, value: Any) -> Any:
    """Write a pickle where pickles are wanted, else an instance of a subclass as its base."""
    if type(value) is object:
        raise unknown(value)
    if not encoder.pickles and not isinstance(value, type):
        for base in type(value).__mro__[1:]:
            name = (base.__module__.partition(".")[0], base.__name__)
            if name[0] in _LIBRARIES:
                from batchflow.protocol.values import arrays

                if (tree := arrays.encode(encoder, value)) is not None:
                    return tree
            if (write := _BY_NAME.get(name) or _BASES.get(base)) is not None:
                return write(encoder, value)
    return encoder.pickled(value, unknown(value))


def _write_tuple(encoder: TreeWriter, value: Any) -> Any:
    fields = getattr(type(value), "_fields", None)
    items = encoder.items([*tuple.__iter__(value)], tags=1)
    if type(value) is not tuple and type(fields) is tuple:
        try:
            return {"$namedtuple": [encoder.class_name(type(value)), items]}
        except Unencodable:
            return {"$tuple": items}
    return {"$tuple": items}


def _write_set(encoder: TreeWriter, value: Any) -> Any:
    name = "$frozenset" if isinstance(value, frozenset) else "$set"
    base = frozenset if isinstance(value, frozenset) else set
    return {name: encoder.items(list(base.__iter__(value)), tags=1)}


def _write_text(encoder: TreeWriter, value: Any) -> Any:
    return encoder.tree(str.__str__(value))


def _write_int(encoder: TreeWriter, value: Any) -> Any:
    number = int.__int__(value)
    return special_atom(number) or number


def _write_float(encoder: TreeWriter, value: Any) -> Any:
    return encoder.tree(float.__float__(value))


def _write_list(encoder: TreeWriter, value: Any) -> Any:
    return encoder.items(list(list.__iter__(value)))


def _write_dict(encoder: TreeWriter, value: Any) -> Any:
    return encoder.mapping(dict(dict.items(value)))


def _write_bytes(encoder: TreeWriter, value: Any) -> Any:
    return {"$bytes": encoder.buffer(value)}


def _write_bytearray(encoder: TreeWriter, value: Any) -> Any:
    return {"$bytearray": encoder.buffer(bytes(value))}


def _write_memoryview(encoder: TreeWriter, value: Any) -> Any:
    encoder.fits(value.nbytes)
    return {"$bytes": encoder.buffer(value.tobytes())}


def _write_range(encoder: TreeWriter, value: Any) -> Any:
    return {"$range": [_whole(value.start), _whole(value.stop), _whole(value.step)]}


def _whole(value: int) -> Any:
    return special_atom(value) or value


def _write_slice(encoder: TreeWriter, value: Any) -> Any:
    return {"$slice": encoder.items([value.start, value.stop, value.step])}


def _write_complex(encoder: TreeWriter, value: Any) -> Any:
    return {"$complex": [repr(value.real), repr(value.imag)]}


def _write_view(encoder: TreeWriter, value: Any) -> Any:
    return encoder.items(list(value))


def _write_deque(encoder: TreeWriter, value: Any) -> Any:
    return {"$deque": [encoder.items(list(value)), value.maxlen]}


def _write_ordered(encoder: TreeWriter, value: Any) -> Any:
    return {"$ordered": encoder.pairs(value)}


def _write_counter(encoder: TreeWriter, value: Any) -> Any:
    return {"$counter": encoder.pairs(value)}


def _write_decimal(encoder: TreeWriter, value: Any) -> Any:
    return {"$decimal": str(value)}


def _write_fraction(encoder: TreeWriter, value: Any) -> Any:
    return {"$fraction": [_whole(value.numerator), _whole(value.denominator)]}


def _write_uuid(encoder: TreeWriter, value: Any) -> Any:
    return {"$uuid": value.hex}


def _write_path(encoder: TreeWriter, value: Any) -> Any:
    return {"$path": [type(value).__name__, encoder.tree(str(value))]}


def _write_date(encoder: TreeWriter, value: Any) -> Any:
    return {"$date": value.isoformat()}


def _write_datetime(encoder: TreeWriter, value: Any) -> Any:
    plain = value.replace(tzinfo=None)
    return {"$datetime": [type(plain).isoformat(plain), zone_of(encoder, value.tzinfo), value.fold]}


def _write_time(encoder: TreeWriter, value: Any) -> Any:
    plain = value.replace(tzinfo=None)
    return {"$time": [plain.isoformat(), zone_of(encoder, value.tzinfo), value.fold]}


def _write_timedelta(encoder: TreeWriter, value: Any) -> Any:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _write_zone(encoder: TreeWriter, value: Any) -> Any:
    return {"$zone": zone_of(encoder, value)}


def _write_enum(encoder: TreeWriter, value: Any) -> Any:
    name = None if value.name is None else str(value.name)
    raw = value.value
    if isinstance(raw, type(value)):  # a Flag of Python 3.11 whose value is a member itself
        raw = int(raw)
    return {"$enum": [encoder.class_name(type(value)), name, encoder.below(".value", raw)]}


def _write_object(encoder: TreeWriter, value: Any) -> Any:
    fields = {}
    for field in sys.modules["dataclasses"].fields(value):
        try:
            fields[field.name] = getattr(value, field.name)
        except AttributeError:
            continue  # it was never set
    return _object(encoder, encoder.class_name(type(value)), fields)


def _write_fields(encoder: TreeWriter, value: Any) -> Any:
    return _object(encoder, value.class_name, value)


def _object(encoder: TreeWriter, name: str, fields: dict[str, Any]) -> Any:
    encoder.deepen(3)
    trees = {key: encoder.below(f".{key}", part) for key, part in fields.items()}
    encoder.deepen(-3)
    return {"$object": [name, trees]}


_WRITERS: Final[dict[type, Callable[[TreeWriter, Any], Any]]] = {
    tuple: _write_tuple,
    set: _write_set,
    frozenset: _write_set,
    bytes: _write_bytes,
    bytearray: _write_bytearray,
    memoryview: _write_memoryview,
    range: _write_range,
    slice: _write_slice,
    complex: _write_complex,
    type({}.keys()): _write_view,
    type({}.values()): _write_view,
    type({}.items()): _write_view,
    ObjectFields: _write_fields,
}
_BY_NAME: Final[dict[tuple[str, str], Callable[[TreeWriter, Any], Any]]] = {
    ("collections", "deque"): _write_deque,
    ("collections", "OrderedDict"): _write_ordered,
    ("collections", "Counter"): _write_counter,
    ("decimal", "Decimal"): _write_decimal,
    ("fractions", "Fraction"): _write_fraction,
    ("uuid", "UUID"): _write_uuid,
    ("datetime", "datetime"): _write_datetime,
    ("datetime", "date"): _write_date,
    ("datetime", "time"): _write_time,
    ("datetime", "timedelta"): _write_timedelta,
    ("datetime", "timezone"): _write_zone,
    ("zoneinfo", "ZoneInfo"): _write_zone,
    **{
        ("pathlib", name): _write_path
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
"""By the first part of the module and the name of the class, so that encoding imports nothing."""
_BASES: Final[dict[type, Callable[[TreeWriter, Any], Any]]] = {
    str: _write_text,
    int: _write_int,
    float: _write_float,
    complex: _write_complex,
    bytes: _write_bytes,
    bytearray: _write_bytearray,
    tuple: _write_tuple,
    list: _write_list,
    dict: _write_dict,
    set: _write_set,
    frozenset: _write_set,
}
"""Subclasses of these arrive as the base."""


# ---- decoding


def decode_other(decoder: TreeReader, name: str, content: Any) -> Any:
    """Return the value of a tag. Raises `Undecodable` for one that is not known, and what readers raise."""
    if (read := _READERS.get(name)) is not None:
        return read(decoder, content)
    from batchflow.protocol.values import arrays

    if (read := arrays.READERS.get(name)) is not None:
        return read(decoder, content)
    raise Undecodable(f"a value of the kind {name[:40]!r}, which this batchflow does not know")


def _read_whole(decoder: TreeReader, content: Any) -> int:
    value = decoder.value(content)
    if type(value) is not int:
        raise Undecodable(f"{type(value).__name__} is no integer")
    return value


def _read_named(decoder: TreeReader, content: Any) -> Any:
    name, items = content
    made = tuple(decoder.items(items))
    kind = decoder.resolve(name)
    fields = getattr(kind, "_fields", None)
    if isinstance(kind, type) and issubclass(kind, tuple) and type(fields) is tuple:
        return tuple.__new__(kind, made) if len(fields) == len(made) else made
    return made


def _read_deque(decoder: TreeReader, content: Any) -> Any:
    from collections import deque

    items, length = content
    return deque(decoder.items(items), length)


def _read_ordered(decoder: TreeReader, content: Any) -> Any:
    from collections import OrderedDict

    return OrderedDict((decoder.value(key), decoder.value(part)) for key, part in content)


def _read_counter(decoder: TreeReader, content: Any) -> Any:
    from collections import Counter

    made: Counter[Any] = Counter()
    for key, part in content:
        made[decoder.value(key)] = decoder.value(part)
    return made


def _read_decimal(decoder: TreeReader, content: Any) -> Any:
    from decimal import Decimal

    return Decimal(content)


def _read_fraction(decoder: TreeReader, content: Any) -> Any:
    from fractions import Fraction

    numerator, denominator = content
    return Fraction(_read_whole(decoder, numerator), _read_whole(decoder, denominator))


def _read_uuid(decoder: TreeReader, content: Any) -> Any:
    from uuid import UUID

    return UUID(hex=content)


def _read_path(decoder: TreeReader, content: Any) -> Any:
    import pathlib

    name, text = content[0], decoder.value(content[1])
    kinds: dict[str, type[pathlib.PurePath]] = {
        "PurePosixPath": pathlib.PurePosixPath,
        "PureWindowsPath": pathlib.PureWindowsPath,
    }
    own = type(pathlib.Path())
    kinds[own.__name__] = own
    other = pathlib.PureWindowsPath if name == "WindowsPath" else pathlib.PurePosixPath
    return kinds.get(name, other)(text)


def _read_date(decoder: TreeReader, content: Any) -> Any:
    from datetime import date

    return date.fromisoformat(content)


def _read_datetime(decoder: TreeReader, content: Any) -> Any:
    from datetime import datetime

    text, zone, fold = content
    return datetime.fromisoformat(text).replace(tzinfo=zone_from(decoder, zone), fold=fold)


def _read_time(decoder: TreeReader, content: Any) -> Any:
    from datetime import time

    text, zone, fold = content
    return time.fromisoformat(text).replace(tzinfo=zone_from(decoder, zone), fold=fold)


def _read_timedelta(decoder: TreeReader, content: Any) -> Any:
    from datetime import timedelta

    days, seconds, microseconds = content
    return timedelta(days, seconds, microseconds)


def _read_enum(decoder: TreeReader, content: Any) -> Any:
    name, member, raw = content
    kind = decoder.resolve(name)
    value = decoder.value(raw)
    if kind is not None and (found := _member(kind, member, value)) is not None:
        return found
    return ObjectFields(name, {"name": member, "value": value})


def _member(kind: Any, name: str | None, value: Any) -> Any:
    """Return the member of an Enum, without a call of its own code."""
    from enum import Enum, EnumMeta, Flag

    if type(kind) is not EnumMeta or not issubclass(kind, Enum):
        return None
    members = type.__getattribute__(kind, "_member_map_")
    if name in members:
        return members[name]
    own, usual = type.__getattribute__(kind, "_missing_"), type.__getattribute__(Flag, "_missing_")
    if issubclass(kind, Flag) and getattr(own, "__func__", None) is usual.__func__:
        return kind(value)
    return None


def _read_object(decoder: TreeReader, content: Any) -> Any:
    name, trees = content
    fields = {field: decoder.value(tree) for field, tree in trees.items()}
    kind = decoder.resolve(name)
    if kind is None or (made := _filled(kind, fields)) is None:
        return ObjectFields(name, fields)
    return made


def _filled(kind: Any, fields: dict[str, Any]) -> Any:
    """Return a dataclass with these fields; None when they are not those of the class.

    Neither `__init__` nor `__post_init__` nor a property runs.
    """
    import dataclasses
    from types import MemberDescriptorType

    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        return None
    if not set(fields) <= {field.name for field in dataclasses.fields(kind)}:
        return None
    made = object.__new__(kind)
    slots = {
        name: attribute
        for base in reversed(kind.__mro__)
        for name, attribute in base.__dict__.items()
        if isinstance(attribute, MemberDescriptorType)
    }
    for name, value in fields.items():
        if name in slots:
            slots[name].__set__(made, value)
        else:
            object.__getattribute__(made, "__dict__")[name] = value
    return made


_READERS: Final[dict[str, Callable[[TreeReader, Any], Any]]] = {
    "$int": lambda decoder, content: int(content, 16),
    "$str": lambda decoder, content: bytes.fromhex(content).decode("utf-8", "surrogatepass"),
    "$bytes": lambda decoder, content: bytes(decoder.buffer(content)),
    "$bytearray": lambda decoder, content: bytearray(decoder.buffer(content)),
    "$tuple": lambda decoder, content: tuple(decoder.items(content)),
    "$set": lambda decoder, content: set(decoder.items(content)),
    "$frozenset": lambda decoder, content: frozenset(decoder.items(content)),
    "$namedtuple": _read_named,
    "$deque": _read_deque,
    "$ordered": _read_ordered,
    "$counter": _read_counter,
    "$range": lambda decoder, content: range(*(_read_whole(decoder, part) for part in content)),
    "$slice": lambda decoder, content: slice(*decoder.items(content)),
    "$complex": lambda decoder, content: complex(float(content[0]), float(content[1])),
    "$decimal": _read_decimal,
    "$fraction": _read_fraction,
    "$uuid": _read_uuid,
    "$path": _read_path,
    "$date": _read_date,
    "$datetime": _read_datetime,
    "$time": _read_time,
    "$timedelta": _read_timedelta,
    "$zone": zone_from,
    "$enum": _read_enum,
    "$object": _read_object,
}

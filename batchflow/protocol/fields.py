"""A codec that follows from one table: the fields of a record, their names in JSON, their types and defaults.

A record is a dataclass whose fields are made by `always` and `optional`. `Codec` builds a writer and a reader
from these. Nearly all records of a class have the same fields, so both look for exactly these first, with a
few calls into C; only a record with other fields is read or written field by field. Pure.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from dataclasses import MISSING, InitVar, dataclass, field, fields, make_dataclass
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar, cast, dataclass_transform

from batchflow.model import Attempt
from batchflow.support.frozen import frozen

T = TypeVar("T")

_KEY: Final = "batchflow.field"
UID_PATTERN: Final = re.compile(r"(.*):([0-9]{1,19})", re.DOTALL)


class FieldError(Exception):
    """A value that its field cannot hold. The text names the place, never the value, which may be secret."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text, path)
        self.text = text
        self.path = path

    def below(self, step: str) -> FieldError:
        """Return the same error, seen from one level above."""
        return FieldError(self.text, step + self.path)

    def __str__(self) -> str:
        return f"{self.path.removeprefix('.')}: {self.text}" if self.path else self.text


@frozen
class Kind:
    """A type of fields."""

    name: str
    exact: type[Any] | None
    """The Python type whose values need no conversion; None: values of every type."""
    read: Callable[[Any], Any]
    """Returns the field's value. Raises `FieldError`."""
    check: Callable[[Any], Any] | None = None
    """Returns the field's value for one of the exact type; None: the value itself. Raises `FieldError` or
    KeyError."""
    write: Callable[[Any], Any] | None = None
    """Returns what JSON has in place of the value; None: the value itself."""


def misfit(value: Any, name: str) -> FieldError:
    return FieldError(f"{_NAMES.get(type(value), type(value).__name__)} is not {name}")


_NAMES: Final = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a truth value",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def text(value: Any) -> str:
    if type(value) is not str:
        raise misfit(value, "a string")
    return value


def number(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        raise misfit(value, "a number")
    return float(value)


def whole(value: Any) -> int:
    if type(value) is not int:
        raise misfit(value, "a whole number")
    return value


def table(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise misfit(value, "an object")
    return value


def sequence(value: Any) -> list[Any]:
    if type(value) is not list:
        raise misfit(value, "a list")
    return value


def each(read: Callable[[Any], T], values: Any) -> tuple[T, ...]:
    """Read a list. A fault names the place in it."""
    made: list[T] = []
    try:
        for value in sequence(values):
            made.append(read(value))  # noqa: PERF401 - its length is the place of a fault
    except FieldError as error:
        raise (error.below(f"[{len(made)}]") if type(values) is list else error) from None
    return tuple(made)


def uid(value: Any) -> str:
    """Describe an incarnation, a colon, and a sequence number of 19 digits at most."""
    return _checked_uid(text(value))


def _checked_uid(value: str) -> str:
    if UID_PATTERN.fullmatch(value) is None:
        raise FieldError("a string that is not a uid")
    return value


def attempt(value: Any) -> Attempt:
    if type(value) is not list or len(value) != len(_ATTEMPT):
        raise misfit(value, "a list of number, error, node and time")
    made: list[Any] = []
    try:
        for read, part in zip(_ATTEMPT, value, strict=True):
            made.append(read(part))
    except FieldError as error:
        raise error.below(f"[{len(made)}]") from None
    return Attempt(*made)


_ATTEMPT: Final[tuple[Callable[[Any], Any], ...]] = (whole, text, text, number)


def _written_history(history: tuple[Attempt, ...]) -> list[list[Any]]:
    return [[past.number, past.error, past.node, past.finished_at] for past in history]


def choice(name: str, values: Mapping[str, Any]) -> Kind:
    """Describe one of several strings, each of which stands for a value."""

    def read(value: Any) -> Any:
        if type(value) is not str or value not in values:
            raise FieldError(f"not {name}")
        return values[value]

    return Kind(name, str, read, check=values.__getitem__)


ANY: Final = Kind("any JSON", None, lambda value: value)
TEXT: Final = Kind("a string", str, text)
UID: Final = Kind("a uid", str, uid, check=_checked_uid)
NUMBER: Final = Kind("a number", float, number)
WHOLE: Final = Kind("a whole number", int, whole)
TRUTH: Final = Kind("a truth value", bool, bool)
LIST: Final = Kind("a list", list, sequence)
TABLE: Final = Kind("an object", dict, table, write=dict)
TEXTS: Final = Kind("a list of strings", None, lambda values: each(text, values))
HISTORY: Final = Kind(
    "a list of attempts", None, lambda values: each(attempt, values), write=_written_history
)


NEEDS_NEWER: Final = "this-needs-a-newer-batchflow"
"""The blob that stands for a container in a message: earlier versions look for it, and say that it is not
there."""


@frozen
class Reference:
    """A value that is not JSON, or is too large for a message. It lies in a blob, or is a container here."""

    blob: str
    size: int
    """Bytes of the value."""
    data: bytes | None = None
    """A container of `values` that travels in the message itself."""


def carried(data: bytes) -> Reference:
    """Return the reference to a container that travels in the message."""
    return Reference(NEEDS_NEWER, len(data), data)


def to_base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()


def from_base64(value: Any) -> bytes:
    """Read bytes that JSON has as text."""
    try:
        return a2b_base64(text(value), strict_mode=True)
    except ValueError:
        raise FieldError("a string that is not base64") from None


def reference(value: Any) -> Reference:
    fields = table(value)
    data = _member(fields, "data", from_base64) if "data" in fields else None
    return Reference(_member(fields, "blob", text), _member(fields, "size", whole), data)


def _member(fields: dict[str, Any], name: str, read: Callable[[Any], T]) -> T:
    if name not in fields:
        raise FieldError("missing", f".{name}")
    try:
        return read(fields[name])
    except FieldError as error:
        raise error.below(f".{name}") from None


@frozen
class Field:
    """A row of the table: what JSON has of an attribute."""

    name: str
    """In JSON."""
    kind: Kind
    absent: Any = MISSING
    """What a reader takes if the field is absent; if that is None, null is read as well. MISSING: a fault."""
    always: bool = False
    """Whether it is written when the attribute has its default, too."""
    usual: bool = False
    """Whether nearly every record has it. The default of an optional one is None or a truth value."""
    frequent: bool = False
    """Whether many records have it beside the usual ones, and many have not. Its default is as theirs."""
    source: str | None = None
    """The attribute that is written, if not the one that is read."""
    reference: str | None = None
    """The field that holds a `Reference` to the value, if a blob holds the value."""


def always(
    name: str,
    kind: Kind,
    *,
    default: Any = MISSING,
    absent: Any = MISSING,
    source: str | None = None,
    reference: str | None = None,
) -> Any:
    """Describe a field that is always written. A reader insists on it, unless absence has a value."""
    absent = default if absent is MISSING else absent
    row = Field(name, kind, absent, always=True, usual=True, source=source, reference=reference)
    return field(default=default, metadata={_KEY: row})


def optional(name: str, kind: Kind, *, default: Any, usual: bool = False, frequent: bool = False) -> Any:
    """Describe a field that is left out when the attribute has its default."""
    row = Field(name, kind, default, usual=usual, frequent=frequent)
    return field(default=default, metadata={_KEY: row})


@dataclass_transform(field_specifiers=(always, optional))
def record(cls: type[T]) -> type[T]:
    """Make a dataclass with slots. It is not frozen, because that makes it six times as slow to create."""
    return dataclass(slots=True)(cls)


class Codec(Generic[T]):
    """Writes records of one class as dictionaries for JSON, and reads them.

    A dictionary has the fields that are always written, then the reference to the value, then the others.
    Each part is in the order of the table. `settle` completes a record that was read, and may raise
    `FieldError`.
    """

    def __init__(self, cls: type[T], settle: Callable[[T], None] | None = None) -> None:
        rows = [(each.name, each.metadata[_KEY]) for each in fields(cast("Any", cls))]
        self.write: Final[Callable[[T], dict[str, Any]]] = _writer(cls, rows)
        self.read: Final[Callable[[Any], T]] = _reader(cls, rows, settle)


_Rows = list[tuple[str, Field]]


def _writer(cls: type[T], rows: _Rows) -> Callable[[T], dict[str, Any]]:
    """Look for a record whose rare fields have their defaults first: none of these is written.

    Methods that `dataclass` compiles take the place of a call for each field: `__eq__` compares attributes,
    and `__init__` makes a dictionary of values.
    """
    written = [(name, row) for name, row in rows if row.always]
    written += [(name, row) for name, row in rows if not row.always and _is_written_at_once(row)]
    rare = [name for name, row in rows if not (row.always or _is_written_at_once(row))]
    values_of = attrgetter(*(row.source or name for name, row in written))
    # A value of any type is not compared: that would run its own code. Each record has such a field, and the
    # first is left out by the class that holds the others.
    extra = next(place for place, (_, row) in enumerate(written) if row.kind is ANY and not row.always)
    names: list[Any] = [row.name for _, row in written]
    with_extra = make_dataclass("WithExtra", names)
    # An InitVar is an argument that does not become an attribute.
    names[extra] = (names[extra], InitVar[Any])
    without_extra = make_dataclass("WithoutExtra", names)
    optional_rows = [row for place, (_, row) in enumerate(written) if not row.always and place != extra]
    removable = tuple((row.name, row.absent) for row in optional_rows)
    has_equal = cast("Callable[[T, T], bool]", make_dataclass("Rare", rare).__eq__)
    blank = cls(*(None if row.absent is MISSING else row.absent for _, row in rows))
    stored = next((row.name for _, row in written if row.reference), written[0][1].name)
    write_each = _general_writer(rows)

    def write(record: T) -> dict[str, Any]:
        if not has_equal(record, blank):
            return write_each(record)
        values = values_of(record)
        made: dict[str, Any] = (without_extra if values[extra] is None else with_extra)(*values).__dict__
        if type(made[stored]) is Reference:
            return write_each(record)
        for name, absent in removable:
            if made[name] is absent:
                del made[name]
        return made

    return write


def _is_written_at_once(row: Field) -> bool:
    return row.usual or row.frequent or row.kind is ANY


def _general_writer(rows: _Rows) -> Callable[[Any], dict[str, Any]]:
    firsts = [(name, row) for name, row in rows if row.always]
    others = [(name, row) for name, row in rows if not row.always]
    firsts_of = attrgetter(*(row.source or name for name, row in firsts))
    others_of = attrgetter(*(name for name, _ in others), firsts[0][0])  # a tuple for one field, too
    names = [row.name for _, row in firsts]
    stored = next((row for _, row in firsts if row.reference), None)
    table_of = [(row.name, row.absent, row.kind is ANY, row.kind.write) for _, row in others]

    def write(record: Any) -> dict[str, Any]:
        made = dict(zip(names, firsts_of(record), strict=True))
        if stored is not None and type(value := made[stored.name]) is Reference:
            made[stored.name] = None
            place: dict[str, Any] = {"blob": value.blob, "size": value.size}
            if value.data is not None:
                place["data"] = to_base64(value.data)
            made[cast("str", stored.reference)] = place
        for (name, default, is_any, convert), value in zip(table_of, others_of(record), strict=False):
            if value is not default and (is_any or value != default):
                made[name] = value if convert is None else convert(value)
        return made

    return write


def _reader(cls: type[T], rows: _Rows, settle: Callable[[T], None] | None) -> Callable[[Any], T]:
    """Look for the usual fields in the order of the table, with values of the usual types, first.

    Then for these and the frequent ones, if there are any.
    """
    read_usual = _form_reader(rows, lambda row: row.usual)
    read_frequent = _form_reader(rows, lambda row: row.usual or row.frequent)
    read_each = _general_reader(rows)

    def read(value: Any) -> T:
        arguments = None
        if type(value) is dict:
            try:
                arguments = read_usual(value) or read_frequent(value)
            except (FieldError, KeyError):
                arguments = read_each(value)  # which names the field
        record = cls(*(arguments or read_each(value)))
        if settle is not None:
            settle(record)
        return record

    return read


def _form_reader(
    rows: _Rows, belongs: Callable[[Field], bool]
) -> Callable[[dict[str, Any]], list[Any] | None]:
    """Make the reader of one form, in which exactly those fields are there that belong to it.

    It returns the arguments of the record; None when the dictionary has another form.
    """
    form = [row for _, row in rows if belongs(row)]
    names = [row.name for row in form]
    types = [row.kind.exact for row in form]
    untyped = tuple(place for place, row in enumerate(form) if row.kind.exact is None)
    checks = [(place, row.kind.check) for place, row in enumerate(form) if row.kind.check is not None]
    gaps = _gaps(rows, belongs)

    def read(value: dict[str, Any]) -> list[Any] | None:
        if [*value] != names:
            return None
        arguments = [*value.values()]
        found: list[type[Any] | None] = [*map(type, arguments)]
        for place in untyped:
            found[place] = None
        if found != types:
            return None
        for place, check in checks:
            arguments[place] = check(arguments[place])
        for place, absent in gaps:
            arguments[place:place] = absent
        return arguments

    return read


def _gaps(rows: _Rows, belongs: Callable[[Field], bool]) -> list[tuple[int, list[Any]]]:
    """Return where values are to be put among those of a form, and which, from the first place on."""
    last = max(place for place, (_, row) in enumerate(rows) if belongs(row))
    gaps: list[tuple[int, list[Any]]] = []
    for place, (_, row) in enumerate(rows[:last]):
        if belongs(row):
            continue
        if gaps and gaps[-1][0] + len(gaps[-1][1]) == place:
            gaps[-1][1].append(row.absent)
        else:
            gaps.append((place, [row.absent]))
    return gaps


def _general_reader(rows: _Rows) -> Callable[[Any], list[Any]]:
    table_of = [(row.name, row.kind.read, row.absent, row.reference) for _, row in rows]

    def read(value: Any) -> list[Any]:
        """Read the arguments of the record, in order."""
        found = table(value)
        arguments: list[Any] = []
        for name, read_value, absent, place in table_of:
            if place is not None and found.get(place) is not None:
                arguments.append(_member(found, place, reference))
            elif absent is not MISSING and found.get(name, absent) is absent:
                arguments.append(absent)
            else:
                arguments.append(_member(found, name, read_value))
        return arguments

    return read

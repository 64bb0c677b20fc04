"""Values of the standard library's types travel as what they are; what cannot is refused with its place."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import sys
import uuid
import zoneinfo
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchflow.protocol.values.encoding import (
    MAGIC,
    Decoder,
    Encoded,
    Encoder,
    encode,
    is_container,
    is_json,
    to_json,
)
from batchflow.protocol.values.misfits import Misfit, TooLarge, Undecodable, Unencodable
from batchflow.protocol.values.types import ObjectFields


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    called: Any = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        raise AssertionError("decoding runs no code of a class")


class Color(enum.Enum):
    RED = "red"
    BLUE = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    a: Any
    b: Any


CLASSES = {kind.__qualname__: kind for kind in (Point, Slotted, Color, Level, Access, Pair)}


def resolve(name: str) -> Any:
    return CLASSES.get(name.partition(":")[2])


def travel(value: Any, known: Any = resolve, **options: Any) -> Any:
    """Return a value as it arrives."""
    data = encode(value, Encoder(**options))
    return Decoder(resolve=known).decode(data if isinstance(data, bytes) else data.join())


def container(value: Any) -> bytes:
    data = encode(value, Encoder())
    assert isinstance(data, Encoded)
    return data.join()


def same(one: Any, other: Any) -> bool:
    """Whether two values are of the same types, in the same order, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or one != one != other
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) for a, b in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (Point, Slotted)):
        return same(one.x, other.x)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, decimal.Decimal):
        return str(one) == str(other)
    return bool(one == other)


ZONES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.just(datetime.UTC),
    st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]).map(zoneinfo.ZoneInfo),
    st.builds(
        datetime.timezone,
        st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)),
        st.sampled_from(["X", "UTC"]),
    ),
)
ATOMS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.times(timezones=st.just(datetime.UTC)),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.timedeltas(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 10**30)),
    st.builds(pathlib.PurePosixPath, st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
    st.sampled_from([*Color, *Level, *Access, Access.READ | Access.WRITE, Access(0)]),
)
KEYS: st.SearchStrategy[Any] = st.one_of(
    st.text(),
    st.sampled_from(["$tuple", "$dict", "$"]),
    st.integers(),
    st.none(),
    st.booleans(),
    st.binary(),
    st.uuids(),
    st.tuples(st.integers(), st.text()),
)


def deeper(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(values),
        st.lists(values).map(tuple),
        st.dictionaries(KEYS, values),
        st.dictionaries(KEYS, values).map(collections.OrderedDict),
        st.sets(KEYS),
        st.frozensets(KEYS),
        st.lists(values).map(collections.deque),
        st.builds(Point, values, values),
        st.builds(Pair, values, values),
    )


@settings(max_examples=60, deadline=None)
@given(st.recursive(ATOMS, deeper, max_leaves=12))
def test_values_arrive_with_their_types_and_order(value: Any) -> None:
    """Any of the types of the standard library, in any other."""
    assert same(travel(value), value)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda values: st.one_of(st.lists(values), st.dictionaries(st.text(), values)),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(JSON)
def test_what_json_holds_travels_as_it_always_did(value: Any) -> None:
    """Byte for byte what orjson writes."""
    assert is_json(value)
    assert encode(value, Encoder()) == orjson.dumps(value)
    assert same(travel(value), value)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"x"),
        slice(1, None, 2),
        collections.Counter("aab"),
        collections.deque([1, 2], maxlen=3),
        datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime.time(1, 2, fold=1),
        datetime.timezone(datetime.timedelta(0), "GMT"),
        zoneinfo.ZoneInfo("Asia/Tokyo"),
        pathlib.Path("/a/b"),
        pathlib.PureWindowsPath("C:/a"),
        {"$a": 1},
        {1: "a", "1": "b"},
        [2**64],
        [1.0, -0.0, math.inf],
        {"a": {"b": [1.5, math.nan]}},
        {frozenset([Point(1)]): 2},
    ],
    ids=repr,
)
def test_rarer_values_arrive_as_they_were(value: Any) -> None:
    """Those that hypothesis would seldom make."""
    assert same(travel(value), value)


class Money(float):
    pass


class Names(list[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("its own code does not run")

    def __len__(self) -> int:
        return 10**12


@pytest.mark.parametrize(
    ("value", "arrived"),
    [
        (Money(1.5), 1.5),
        (Names([1, 2]), [1, 2]),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (memoryview(b"ab"), b"ab"),
        ({"k": 1}.keys(), ["k"]),
        ({"k": 1}.items(), [("k", 1)]),
    ],
    ids=["float", "list that lies", "defaultdict", "memoryview", "keys", "items"],
)
def test_a_subclass_arrives_as_its_base(value: Any, arrived: Any) -> None:
    """What its own methods say of it is not asked."""
    assert same(travel(value), arrived)


# ---- classes


def test_a_dataclass_arrives_without_its_code_being_run() -> None:
    """Its fields are filled in; `__post_init__` is not called."""
    slotted = object.__new__(Slotted)
    slotted.x, slotted.called = 1, 2
    made = travel([slotted])[0]
    assert type(made) is Slotted
    assert (made.x, made.called) == (1, 2)


@pytest.mark.parametrize(
    ("value", "fields"),
    [(Point(1, (2,)), {"x": 1, "y": (2,)}), (Color.BLUE, {"name": "BLUE", "value": (1, 2)})],
)
def test_an_unknown_class_arrives_as_a_mapping_with_its_name(value: Any, fields: dict[str, Any]) -> None:
    """And travels on as what it was."""
    made = travel([value], known=None)[0]
    assert type(made) is ObjectFields
    assert made == fields
    assert made.class_name == f"{__name__}:{type(value).__qualname__}"
    assert made.class_name in repr(made)
    if isinstance(value, Point):
        assert travel([made]) == [value]


def test_a_named_tuple_of_an_unknown_class_is_a_tuple() -> None:
    """Its names are lost, its order is not."""
    assert same(travel([Pair(1, 2)], known=None), [(1, 2)])


def test_other_fields_than_the_class_has_make_a_mapping() -> None:
    """The class of the reader may be older or newer."""
    data = container([Point(1)]).replace(b'"x":1', b'"z":1')
    made = Decoder(resolve=resolve).decode(data)[0]
    assert type(made) is ObjectFields
    assert made["z"] == 1


# ---- what cannot travel


def _generator() -> Any:
    yield 1


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _deep(kind: Any) -> Any:
    value = kind()
    for _ in range(400):
        value = kind([value])
    return value


class _Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"surface": [1, 2, 3, _generator()]}, 'result["surface"][3] is of type generator'),
        ([_generator()], "pass a list of what it yields"),
        (object(), "result is of type object, which has no encoding"),
        (_circle(), "is nested too deep, or holds itself"),
        (_deep(list), "is nested too deep"),
        (_deep(tuple), "is nested too deep"),
        ({1: {"a": object()}}, 'result[1]["a"] is of type object'),
        ({object(): 1}, "result has a key that is of type object"),
        ([Point(1, print)], "result[0].y is of type builtin_function_or_method"),
        ((1, {2, _Hostile}), "of type type"),
        ({"a": {_Hostile(): 1}}, "_Hostile"),
        (Point, "result is of type type"),
        (sys, "result is of type module"),
        ({"$a": [lambda: 1]}, 'result["$a"][0] is of type function'),
        (datetime.datetime(2024, 1, 1, tzinfo=type("Zone", (datetime.tzinfo,), {})()), "zoneinfo"),
        (NotImplemented, "NotImplementedType"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_place(value: Any, words: str) -> None:
    """The type, the place in the value, and what to do."""
    with pytest.raises(Unencodable) as caught:
        travel(value)
    assert words in caught.value.text("result")


@pytest.mark.parametrize(("value", "place"), [({"a": b"x" * 100}, '["a"]'), ((b"x" * 60, b"x" * 60), "[1]")])
def test_a_value_above_the_limit_is_refused_with_its_place(value: Any, place: str) -> None:
    """Before it is copied."""
    with pytest.raises(TooLarge) as caught:
        travel(value, limit=99)
    assert caught.value.place == place


# ---- pickles


class _Marked:
    pass


def test_a_pickle_is_opened_only_by_whom_it_is_asked_for() -> None:
    """It executes what it names."""
    import pickle

    def write(value: Any, add_buffer: Any) -> bytes:
        return pickle.dumps(value, 5, buffer_callback=add_buffer)

    data = Encoder(pickle=write).encode([1, _Marked()]).join()
    with pytest.raises(Undecodable, match="pickle"):
        Decoder().decode(data)
    opened = Decoder(unpickle=lambda data, buffers: pickle.loads(data, buffers=buffers)).decode(data)
    assert type(opened[1]) is _Marked


# ---- bytes that are no value


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_and_raise_nothing_else(data: st.DataObject) -> None:
    """Whatever is changed in a container, or comes instead of one."""
    whole = bytearray(container({"a": (1, b"xyz", {2: 3}), "b": [Color.RED, Point(1)], "c": 10**30}))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(Undecodable):
        Decoder(resolve=resolve).decode(damaged)


@pytest.mark.parametrize(
    "tree",
    [
        b'{"$later":1}',
        b'{"$bytes":7}',
        b'{"$bytes":-1}',
        b'{"$int":"zz"}',
        b'{"$datetime":["x",null,0]}',
        b'{"$datetime":["2024-01-01",{"key":"../../etc/passwd"},0]}',
        b'{"$range":["a",1,1]}',
        b'{"$set":[[]]}',
        b'{"$object":[1,{}]}',
        b'{"$pickle":[0]}',
        b'{"$array":[["O"],[1],"C",0]}',
        b'{"$fraction":[1,0]}',
        b"[" * 1000 + b"]" * 1000,
        b"not json",
    ],
)
def test_a_tree_that_stands_for_nothing_is_refused(tree: bytes) -> None:
    """With a text that says why."""
    data = Encoded(tree, [memoryview(b"12345678")]).join()
    if tree.startswith(b'{"$object'):
        assert isinstance(Decoder().decode(data), ObjectFields)
        return
    with pytest.raises(Undecodable):
        Decoder(resolve=resolve).decode(data)


def test_another_version_is_named() -> None:
    """So that the reader knows what to renew."""
    data = container((1,))
    with pytest.raises(Undecodable, match="version 02; this batchflow reads version 01"):
        Decoder().decode(data[:4] + b"\x02" + data[5:])


def test_a_container_is_told_from_json_by_its_first_bytes() -> None:
    """No JSON text begins so."""
    assert is_container(container((1,)))
    assert not is_container(b"null")
    assert container((1,)).startswith(MAGIC)


def test_what_json_does_not_hold_is_told() -> None:
    """Also where orjson would write something."""
    for value in [
        (1,),
        [(1,)],
        {"a": {1: 2}},
        uuid.UUID(int=1),
        Color.RED,
        math.nan,
        [None, math.inf],
        "\ud800",
    ]:
        assert to_json(value) is None
    assert issubclass(Unencodable, Misfit)


def test_fractions_and_decimals_keep_their_exact_form() -> None:
    """The exponent of a Decimal says how exact it is."""
    assert str(travel(decimal.Decimal("1.10"))) == "1.10"
    assert travel(fractions.Fraction(10**30, 3)) == fractions.Fraction(10**30, 3)

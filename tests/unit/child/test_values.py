"""What a task may return, and how it is told that it may not."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import pathlib
import sys
import types
import uuid
from typing import Any

import orjson
import pytest

from node_agent.child.values import NotSerializable, TooLarge, encode

LIMIT = 10_000_000


@dataclasses.dataclass
class Point:
    x: int
    _hidden: int = 2
    deep: Any = None


class Color(enum.Enum):
    RED = "red"


Pair = collections.namedtuple("Pair", "a b")


class Money(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"a": [1, 2.5, "ü", True, None]}, {"a": [1, 2.5, "ü", True, None]}),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (2**64 - 1, 2**64 - 1),
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1), {"x": 1, "_hidden": 2, "deep": None}),
        ([Color.RED], ["red"]),
        (Pair(1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset(["b", "a"]), ["a", "b"]),
        (range(3), [0, 1, 2]),
        (collections.deque([1]), [1]),
        ({"k": 1}.keys(), ["k"]),
        ({"k": 1}.items(), [["k", 1]]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (pathlib.Path("/a/b"), "/a/b"),
        (Money(1.5), 1.5),
        (datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), "2024-01-02T03:00:00+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "null": "c"}),
    ],
)
def test_what_has_one_obvious_form_is_written(value: Any, expected: Any) -> None:
    """JSON as one would expect it."""
    assert orjson.loads(encode(value, LIMIT)) == expected


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(400):
        value = [value]
    return value


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, b"x"]}, r"result\['a'\]\[1\] is of type bytes"),
        (float("nan"), "result is of type float .*NaN"),
        ([1, {"x": float("inf")}], r"result\[1\]\['x'\] is of type float"),
        (Point(1, deep={"n": float("-inf")}), r"result.deep\['n'\] is of type float"),
        ([2**64], r"result\[0\] is of type int .*64 bits"),
        ({"a": {object()}}, r"result\['a'\]\[0\] is of type object"),
        (decimal.Decimal(1), "result is of type Decimal"),
        (1j, "result is of type complex"),
        (datetime.timedelta(1), r"total_seconds\(\)"),
        ((x for x in "a"), "result is of type generator"),
        ("\ud800", "lone surrogates"),
        (["ok", "\ud800"], r"result\[1\] is of type str"),
        ({(1, 2): 3}, r"a key of result, \(1, 2\), is of type tuple"),
        ({1: "a", "1": "b"}, "are one key in JSON"),
        (print, "result is of type builtin_function_or_method"),
        (_deep(), "nested deeper"),
        (_circle(), "holding itself"),
        (Point, "result is of type type"),
    ],
)
def test_what_would_be_lost_is_refused_with_its_place(value: Any, place: str) -> None:
    """The refusal says where and of what type."""
    with pytest.raises(NotSerializable, match=place):
        encode(value, LIMIT)


def test_a_result_above_the_limit_is_refused_with_both_figures() -> None:
    """Size and limit are named."""
    with pytest.raises(TooLarge, match="102 bytes of JSON, the limit is 101"):
        encode("x" * 100, 101)


class _Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_value_whose_repr_raises_is_refused_like_any_other() -> None:
    """Nothing of the value is trusted."""
    with pytest.raises(NotSerializable, match="_Hostile"):
        encode({"a": {_Hostile(): 1}}, LIMIT)


class _Array:
    """An array of numpy's kind, as far as the looking for NaN goes."""

    dtype = types.SimpleNamespace(kind="f")


def test_nan_in_an_array_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array with NaN is asked as a whole."""
    numpy = types.ModuleType("numpy")
    finite = types.SimpleNamespace(all=lambda: False)
    numpy.__dict__.update(isfinite=lambda _: finite, ndarray=type(None))
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    with pytest.raises(NotSerializable, match=r"result\[1\] is of type _Array"):
        encode([None, _Array()], LIMIT)


def test_numpy_values_are_written_and_their_nan_refused() -> None:
    """Scalars and arrays, also those that are not contiguous."""
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    assert orjson.loads(encode([numpy.float64(1.5), numpy.arange(4)[::2]], LIMIT)) == [1.5, [0, 2]]
    with pytest.raises(NotSerializable):
        encode({"a": numpy.array([1.0, float("nan")])}, LIMIT)

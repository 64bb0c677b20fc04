"""The nearest JSON of a value: one obvious form, or none."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import math
import pathlib
import uuid
from typing import Any

import numpy as np
import pytest

from batchflow.protocol.values.json_form import json_form
from batchflow.protocol.values.misfits import Unencodable


@dataclasses.dataclass
class Point:
    x: int
    _hidden: int = 2
    deep: Any = None


class Color(enum.Enum):
    RED = "red"


class Money(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"a": [1, 2.5, "ü", True, None]}, {"a": [1, 2.5, "ü", True, None]}),
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1), {"x": 1, "_hidden": 2, "deep": None}),
        ([Color.RED], ["red"]),
        ({3, 1, 2}, [1, 2, 3]),
        (range(3), [0, 1, 2]),
        (collections.deque([1]), [1]),
        ({"k": 1}.items(), [["k", 1]]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (pathlib.Path("/a/b"), "/a/b"),
        (Money(1.5), 1.5),
        (datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), "2024-01-02T03:00:00+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "null": "c"}),
        ([np.float64(1.5), np.arange(4)[::2], np.datetime64("2024-01-01")], [1.5, [0, 2], "2024-01-01"]),
    ],
)
def test_what_has_one_obvious_form_has_it(value: Any, expected: Any) -> None:
    """JSON as one would expect it."""
    assert json_form(value) == expected


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, b"x"]}, 'result["a"][1] is of type bytes'),
        ([1, {"x": math.inf}], 'result[1]["x"] is NaN or infinite'),
        ([2**64], "result[0] is an integer of more than 64 bits"),
        (["ok", "\ud800"], "result[1] holds lone surrogates"),
        ({(1, 2): 3}, "result has a key that is no text or number, (1, 2)"),
        ({1: "a", "1": "b"}, "result has two keys that are one in JSON"),
        (np.array([1.0, math.nan]), "result[1] is NaN"),
        (print, "result is of type builtin_function_or_method"),
    ],
)
def test_what_would_be_lost_has_no_form(value: Any, place: str) -> None:
    """The error says where; a caller may have something else stand there."""
    with pytest.raises(Unencodable) as caught:
        json_form(value)
    assert caught.value.text("result").startswith(place)


class _Liar(list[Any]):
    def __len__(self) -> int:
        return 10**12

    def __iter__(self) -> Any:
        raise AssertionError("its own code does not run")


def test_a_list_that_lies_about_its_size_is_what_it_holds() -> None:
    """What a subclass says of itself is not asked."""
    assert json_form({"a": _Liar([1, 2])}) == {"a": [1, 2]}


def test_another_thing_may_stand_for_what_has_no_form() -> None:
    """For those who show values."""
    assert json_form({"a": (1, b"x"), "b": math.nan}, otherwise=repr) == {"a": [1, "b'x'"], "b": "nan"}

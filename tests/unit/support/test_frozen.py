"""`batchflow.support.frozen` against the frozen dataclasses of the standard library, which it stands for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.model import Result, Status
from batchflow.support.frozen import frozen, maker


@frozen
class Value:
    number: int
    text: str = ""
    secret: str = field(default="", repr=False)
    note: str = field(default="", compare=False)
    many: tuple[int, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Model:
    number: int
    text: str = ""
    secret: str = field(default="", repr=False)
    note: str = field(default="", compare=False)
    many: tuple[int, ...] = field(default_factory=tuple)


@frozen
class Other:
    number: int
    text: str = ""


@frozen
class Empty:
    pass


@frozen
class Named:
    number: int

    def __repr__(self) -> str:
        return "mine"

    def __eq__(self, other: object) -> bool:
        return other == 1

    def __hash__(self) -> int:
        return 7


FEW = st.integers(0, 2)
WORDS = st.sampled_from(["", "a", "b"])
ARGUMENTS = st.tuples(FEW, WORDS, WORDS, WORDS, st.tuples(FEW))


@given(ARGUMENTS, ARGUMENTS)
def test_as_the_standard_library(one: tuple[Any, ...], another: tuple[Any, ...]) -> None:
    """Equal, hashed, shown, replaced and taken apart like a frozen dataclass."""
    values, models = [Value(*one), Value(*another)], [Model(*one), Model(*another)]
    assert (values[0] == values[1]) == (models[0] == models[1])
    assert (len(set(values)) == 1) == (len(set(models)) == 1)
    assert [repr(each).replace("Value", "Model") for each in values] == [repr(each) for each in models]
    assert [dataclasses.asdict(each) for each in values] == [dataclasses.asdict(each) for each in models]
    assert dataclasses.replace(values[0], number=9) == Value(9, *one[1:])
    assert pickle.loads(pickle.dumps(values[0])) == copy.deepcopy(values[0]) == values[0]


def test_what_is_not_shown() -> None:
    """A field that must not reach a log does not."""
    assert "hush" not in repr(Value(1, secret="hush"))


def test_another_class_is_never_equal() -> None:
    """However alike its fields are."""
    other: object = Other(1)
    empty: object = Empty()
    assert other != Value(1)
    assert other != (1, "")
    assert empty == Empty()
    assert empty != other
    assert hash(empty) == hash(Empty())


def test_what_a_class_defines_itself_stays() -> None:
    """Its own way of being shown, compared and hashed."""
    assert (repr(Named(3)), Named(3) == 1, hash(Named(3))) == ("mine", True, 7)


def test_there_are_slots() -> None:
    """Nothing can be added, and there is no dictionary for each."""
    assert not hasattr(Value(1), "__dict__")
    with pytest.raises(AttributeError):
        Value(1).nothing = 1  # type: ignore[attr-defined]


def test_unhashable_fields() -> None:
    """Told by whoever hashes."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(Value([]))  # type: ignore[arg-type]


@given(st.integers(), st.text(), st.text(), st.text())
def test_what_a_maker_makes(number: int, text: str, secret: str, note: str) -> None:
    """Is what the constructor makes, defaults included, and as frozen."""
    make = maker(Model)
    made = make(number, text, secret=secret, note=note)
    assert type(made) is Model
    assert made == Model(number, text, secret, note)
    assert (made.secret, made.note, made.many) == (secret, note, ())
    assert repr(made) == repr(Model(number, text, note=note))
    assert dataclasses.replace(made, number=1) == Model(1, text, secret)
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.number = 2  # type: ignore[misc]


def test_a_maker_wants_what_the_constructor_wants() -> None:
    """And lets nothing else pass."""
    with pytest.raises(TypeError, match="number"):
        maker(Model)()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="nothing"):
        maker(Model)(1, nothing=1)  # type: ignore[call-arg]


def test_results_are_made_so() -> None:
    """The public class has what that takes: slots, and nothing that its constructor does besides."""
    arguments = ("1", "job", "client", "x.py", Status.SUCCEEDED, 0)
    assert maker(Result)(*arguments) == Result(*arguments)
    assert not hasattr(Result, "__post_init__")

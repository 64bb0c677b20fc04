"""Functions by value: what comes out again, and what is refused."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from batchflow import Client
from batchflow.errors import ConfigurationError
from batchflow.functions.pickling import pickle_function

Make = Callable[[str, str], ModuleType]


def _again(function: Callable[..., Any]) -> Any:
    return pickle.loads(pickle_function(function, "f").data)


def test_a_closure_comes_out_with_its_variables() -> None:
    factor, table = 3, {"a": 1}

    assert _again(lambda x: (x * factor, table["a"]))(2) == (6, 1)


def test_the_modules_of_the_project_that_a_closure_refers_to_are_named(module: Make) -> None:
    helper = module("helper_i", "def twice(x): return 2 * x\nclass Point: ...\n")
    model = module("model_i", "")
    point = helper.Point()

    pickled = pickle_function(lambda x: (helper.twice(x), model, point), "f")

    assert pickled.modules == {"helper_i", "model_i"}


def test_a_module_that_was_made_while_running_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    made = types.ModuleType("made_j")
    exec("def twice(x): return 2 * x", vars(made))
    monkeypatch.setitem(sys.modules, "made_j", made)
    twice = made.twice
    data = pickle_function(lambda x: twice(x), "f").data
    monkeypatch.delitem(sys.modules, "made_j")

    assert pickle.loads(data)(4) == 8


class Holder:
    def __init__(self, held: object) -> None:
        self.held = {"deep": [held]}

    def method(self) -> None: ...


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda value: lambda: value, "the variable value"),
        (lambda value: Holder(value).method, r"self.held\['deep'\]\[0\]"),
        (
            lambda value: (lambda holder: lambda: holder)(Holder(value)),
            r"the variable holder.held\['deep'\]\[0\]",
        ),
        (lambda value: (lambda inner: lambda: inner())(lambda: value), "the variable value"),
        (lambda value: _with_default(value), "the default of held"),
    ],
)
def test_what_cannot_travel_is_refused_naming_the_variable(make: Callable[..., Any], place: str) -> None:
    with (
        socket.socket() as open_socket,
        pytest.raises(ConfigurationError, match=f"the function f cannot travel.*{place}.*socket"),
    ):
        pickle_function(make(open_socket), "f")
    with pytest.raises(ConfigurationError, match=f"{place} is of type _thread.lock"):
        pickle_function(make(threading.Lock()), "f")


def _with_default(value: object) -> Callable[..., None]:
    def function(held: object = value) -> None: ...

    return function


@pytest.mark.parametrize("kept", [Client.local()], ids=["client"])
def test_what_holds_connections_or_keys_stays_here(kept: object) -> None:
    with pytest.raises(ConfigurationError, match=r"the variable kept .*stay in this process"):
        pickle_function(lambda: kept, "f")


def test_an_object_that_holds_itself_is_no_endless_search() -> None:
    around: list[Any] = [asyncio.Event]
    around.append(around)
    lock = threading.Lock()

    with pytest.raises(ConfigurationError, match="the variable lock"):
        pickle_function(lambda: (around, lock), "f")

"""What a task returns is JSON where JSON holds it; what it is given is opened in its own process."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batchflow.protocol.values import arguments
from batchflow.protocol.values.classes import BundleClasses
from batchflow.protocol.values.encoding import Decoder, container_size, is_container
from batchflow.protocol.values.misfits import Undecodable
from node_agent.child.task_values import NotSerializable, TooLarge, encode, open_arguments, read_task


@pytest.mark.parametrize("value", [None, 5, [1, {"a": None}], "ü"])
def test_json_is_written_as_it_always_was(value: Any) -> None:
    """Nothing beside it."""
    assert encode(value, 1000) == orjson.dumps(value)


@pytest.mark.parametrize(
    ("value", "nearest"), [((1, {2}), [1, [2]]), ([b"x"], None), ({"a": 1j}, None), ({1: 2}, {"1": 2})]
)
def test_a_short_container_is_followed_by_its_nearest_json(value: Any, nearest: Any) -> None:
    """For clients that read nothing else."""
    data = encode(value, 10_000)
    end = container_size(data)
    assert Decoder().decode(data[:end]) == value
    assert data[end:] == (b"" if nearest is None else orjson.dumps(nearest))


def test_a_long_container_stands_alone() -> None:
    """Its JSON would be as long again."""
    data = encode((b"", "x" * 20_000), 100_000)
    assert is_container(data)
    assert container_size(data) == len(data)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"surface": [1, 2, 3, print]}, r'result\["surface"\]\[3\] is of type builtin.*unpickle=True'),
        ([iter("a")], r"result\[0\] is of type str_ascii_iterator|str_iterator"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_place(value: Any, words: str) -> None:
    """And with what to do."""
    with pytest.raises(NotSerializable, match=words):
        encode(value, 1000)


class Own:
    pass


def test_a_pickle_is_written_only_for_a_session_that_opens_it() -> None:
    """For what has no encoding."""
    with pytest.raises(NotSerializable):
        encode([Own()], 1000)
    assert is_container(encode([Own()], 1000, pickles=True))
    with pytest.raises(NotSerializable, match="cannot be pickled"):
        encode([lambda: 1], 1000, pickles=True)


@pytest.mark.parametrize("value", ["x" * 100, b"x" * 200, (["x" * 100],)])
def test_a_result_above_the_limit_is_refused_with_both_figures(value: Any) -> None:
    """Size and limit are named."""
    with pytest.raises(TooLarge, match=r"\d+ bytes.* the limit is 101"):
        encode(value, 101)


def test_a_task_comes_as_json_or_with_a_container() -> None:
    """Of its arguments."""
    data = arguments.in_blob([], arguments.encode([(1, 2)], "x.py", BundleClasses(), None))
    head = orjson.dumps({"command": "x.py", "args": None})
    task = read_task(len(head).to_bytes(4, "big") + head + data)
    assert task == {"command": "x.py", "args": data}
    assert open_arguments(task["args"]) == [(1, 2)]
    assert read_task(b'{"args":[1]}') == {"args": [1]}


def test_arguments_that_are_no_list_are_refused() -> None:
    """Whoever wrote them."""
    with pytest.raises(Undecodable, match="not a list"):
        open_arguments(b"5")

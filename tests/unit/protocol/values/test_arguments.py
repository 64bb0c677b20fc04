"""Arguments travel as JSON, in a container, or by a pickle that the nodes can open."""

from __future__ import annotations

import array
import fractions
import pickle
import socket
import threading
from typing import Any

import numpy as np
import pytest

from batchflow.errors import ArgumentNotSerializable
from batchflow.protocol.values import arguments
from batchflow.protocol.values.classes import BundleClasses
from batchflow.protocol.values.encoding import Decoder
from batchflow.protocol.values.misfits import Undecodable


def _unpickled(data: bytes, buffers: list[memoryview]) -> Any:
    return pickle.loads(data, buffers=buffers)


def travel(given: list[Any], *files: str) -> Any:
    """Return arguments as the task's process opens them."""
    classes = BundleClasses()
    classes.add(files)
    data = arguments.encode(given, "x.py", classes, None)
    return Decoder(unpickle=_unpickled).decode(arguments.in_blob(given, data))


@pytest.mark.parametrize(
    "value",
    [array.array("d", [1.5]), np.array([1, "a", None], object), {"a": [Exception("x").args]}],
    ids=["array", "objects", "plain"],
)
def test_what_has_no_encoding_is_pickled(value: Any) -> None:
    """It is opened in the task's process alone."""
    (made,) = travel([value])
    assert type(made) is type(value)
    assert list(made) == list(value)


class Own:
    """A class of this file, which a bundle may have."""

    def __init__(self) -> None:
        self.array = np.arange(10_000.0)


def test_an_object_of_the_sessions_own_files_is_pickled_without_a_copy_of_its_arrays() -> None:
    """They are buffers of the container."""
    classes = BundleClasses()
    classes.add(["values/test_arguments.py"])
    own = Own()
    encoded = arguments.encode([own], "x.py", classes, None)
    assert not isinstance(encoded, bytes)
    assert any(
        np.shares_memory(own.array, piece) for piece in encoded.pieces if isinstance(piece, memoryview)
    )
    with pytest.raises(Undecodable, match="pickle"):
        Decoder().decode(encoded.join())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Own(), "class Own of .*test_arguments, which is not in the session's files"),
        ([{"surface": [1, Own]}], r'args\[0\]\[0\]\["surface"\]\[1\]'),
        (threading.Lock(), "of type _thread.lock, which has no encoding: it belongs to its process"),
        (socket.socket, None),
        (lambda: 1, "<lambda> of .*not in the session's files"),
        (object(), "only its identity"),
        (iter([1]), None),
        ((x for x in "a"), "pass a list of what it yields"),
    ],
    ids=["own", "class", "lock", "class of the library", "lambda", "object", "iterator", "generator"],
)
def test_what_the_nodes_cannot_have_is_refused_with_its_place(value: Any, words: str | None) -> None:
    """What they can import by its name goes."""
    if words is None:
        travel([value])
        return
    with pytest.raises(ArgumentNotSerializable, match=words):
        travel([value])


def test_an_error_names_the_input() -> None:
    """And the command."""
    with pytest.raises(
        ArgumentNotSerializable, match=r"^x.py: inputs\[7\]: args\[1\]\[0\] is of type object"
    ):
        arguments.encode([1, [object()]], "x.py", BundleClasses(), 7)


def test_a_program_gets_words_or_an_error_that_names_the_place() -> None:
    """Texts and numbers."""
    encoded = arguments.encode(
        [fractions.Fraction(1, 3), {"a": (1,)}], "run.sh", BundleClasses(), is_python=False
    )
    assert encoded == b'["1/3",{"a":[1]}]'
    with pytest.raises(ArgumentNotSerializable, match=r'args\[1\]\["a"\] is of type bytes.*program'):
        arguments.encode([1, {"a": b""}], "run.sh", BundleClasses(), is_python=False)

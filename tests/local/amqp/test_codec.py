"""AMQP types and messages on the wire: what is written is read, and nothing that is read does harm."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchflow.local.amqp.codec import (
    MAX_DEPTH,
    Array,
    DecodeError,
    Described,
    Int,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    decode,
    encode,
    encode_described,
    encode_list,
    skip,
    split_list,
)
from batchflow.local.amqp.message import (
    Envelope,
    Stamp,
    read_batch,
    read_message,
    read_request,
    with_application_properties,
    with_message_id,
    write_message,
)
from batchflow.local.amqp.performatives import read_performative
from tests.support.work import peak, steps

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 255).map(UByte),
    st.integers(0, 2**32 - 1).map(UInt),
    st.integers(0, 2**64 - 1).map(ULong),
    st.integers(-(2**31), 2**31 - 1).map(Int),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Timestamp),
    st.floats(allow_nan=False),
    st.uuids(),
    st.binary(max_size=400),
    st.text(max_size=300),
    st.text("abc:-", max_size=300).map(Symbol),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.text(max_size=5), inner, max_size=5),
        inner.map(lambda value: Described(ULong(7), value)),
    ),
    max_leaves=12,
)


@given(_VALUES)
@settings(max_examples=75)
def test_what_is_encoded_is_decoded(value: Any) -> None:
    """To an equal value, and skipping ends at the same place."""
    data = encode(value)
    assert decode(data) == (value, len(data))
    assert skip(data, 0) == len(data)


@pytest.mark.parametrize(
    "array",
    [
        Array(str, ["a", "ü" * 300]),
        Array(bytes, [b"", b"x"]),
        Array(int, [1, -(2**62)]),
        Array(UUID, [UUID(int=7)]),
        Array(Timestamp, []),
        Array(Symbol, [Symbol("s")]),
    ],
)
def test_arrays_are_decoded_as_lists(array: Array) -> None:
    """Of the values that went in."""
    assert decode(encode(array))[0] == list(array.values)


def test_narrow_encodings_are_understood() -> None:
    """Those that this server does not write, but clients may."""
    for data, value in (
        (b"\x54\xff", -1),
        (b"\x55\x80", -128),
        (b"\x51\x7f", 127),
        (b"\x61\xff\xfe", -2),
        (b"\x60\x01\x00", 256),
        (b"\x56\x01", True),
        (b"\x73\x00\x00\x00\x41", "A"),
        (b"\x72\x3f\x80\x00\x00", 1.0),
        (b"\xe0\x04\x02\x50\x01\x02", [1, 2]),
        (b"\xe0\x02\x05\x41", [True] * 5),
        (b"\x45", []),
    ):
        assert decode(data) == (value, len(data))


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    """Whatever the bytes, the only error is DecodeError."""
    for read in (decode, read_performative, read_message, read_batch, read_request, split_list):
        try:
            read(data)
        except DecodeError:
            continue


@given(_VALUES, st.data())
@settings(max_examples=75)
def test_what_is_cut_short_is_refused(value: Any, data: st.DataObject) -> None:
    """A value that ends too early never decodes to something else."""
    encoded = encode(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(DecodeError):
        decode(encoded[:cut])


def test_sizes_and_depths_are_bounded() -> None:
    """A few bytes cannot ask for much memory or stack."""
    huge_list = b"\xd0\x00\x00\x00\x05\xff\xff\xff\xff\x40"
    huge_array = b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40"
    deep_list = b"\xc0\x03\x01" * (MAX_DEPTH + 1) + b"\x40"
    deep_description = b"\x00" * 10_000
    unhashable = b"\xc1\x04\x02\xc0\x01\x00\x40"
    for data in (huge_list, huge_array, deep_list, deep_description, unhashable):
        with pytest.raises(DecodeError):
            decode(data)
    with pytest.raises(DecodeError):
        skip(deep_description, 0)


def _section(code: int, value: Any) -> bytes:
    return encode_described(code, encode(value))


_BODY = _section(0x75, b"body")


def test_a_message_is_split_and_put_together_again() -> None:
    """Its own annotations stay, the broker's are replaced, the body is not touched."""
    annotations = {Symbol("x-opt-partition-key"): "pk", Symbol("x-opt-locked-until"): Timestamp(1)}
    properties = ["id", *[None] * 9, "session"]
    sent = (
        _section(0x70, [True, UByte(4), UInt(5_000)])
        + _section(0x72, annotations | {Symbol("x-opt-scheduled-enqueue-time"): Timestamp(77)})
        + _section(0x73, properties)
        + _BODY
    )
    incoming = read_message(sent)
    assert (incoming.message_id, incoming.session_id) == ("id", "session")
    assert (incoming.ttl_ms, incoming.scheduled_ms) == (5_000, 77)
    written = write_message(incoming.envelope, incoming.bare, Stamp(300, 9, 1_000, 2_000, 1, 77))
    header, end = decode(written)
    assert header.value == [True, 4, 5_000, None, 300]
    stamped, end = decode(written, end)
    assert stamped.value == {
        "x-opt-partition-key": "pk",
        "x-opt-sequence-number": 9,
        "x-opt-enqueued-time": 1_000,
        "x-opt-locked-until": 2_000,
        "x-opt-message-state": 1,
        "x-opt-scheduled-enqueue-time": 77,
    }
    assert written[end:] == _section(0x73, properties) + _BODY


def test_a_bare_message_is_enough() -> None:
    """Everything may be missing, also the body."""
    nothing = Envelope(b"\x40" * 4, b"", 0)
    assert read_message(_BODY) == (nothing, _BODY, None, None, None, None)
    properties = _section(0x73, ["id"])
    assert read_message(properties) == (nothing, properties, "id", None, None, None)
    assert read_message(b"") == (nothing, b"", None, None, None, None)
    assert read_message(with_message_id(b"", "id")).message_id == "id"
    with pytest.raises(DecodeError, match="order"):
        read_message(_BODY + _section(0x73, ["id"]))


@pytest.mark.parametrize(
    "fields",
    [
        ["x" * 300],
        [True, "high"],
        [True, UInt(256)],
        [True, None, ULong(1 << 32)],
        [True, None, None, b"no"],
        [None, None, [1]],
    ],
)
def test_a_header_that_could_not_be_written_again_is_refused(fields: list[Any]) -> None:
    """The broker writes it anew at each delivery: what does not fit there fails where it comes in."""
    with pytest.raises(DecodeError, match="header"):
        read_message(_section(0x70, fields) + _BODY)


@pytest.mark.parametrize("when", [Timestamp(-1), Timestamp((1 << 63) - 1), "soon", [1]])
def test_a_message_is_scheduled_for_a_time_that_can_be_told(when: Any) -> None:
    """Up to the end of the year 9999."""
    annotations = {Symbol("x-opt-scheduled-enqueue-time"): when}
    with pytest.raises(DecodeError, match="scheduled"):
        read_message(_section(0x72, annotations) + _BODY)


def test_an_id_and_application_properties_are_added_in_their_place() -> None:
    """Whether or not there were such sections before."""
    named = with_message_id(_section(0x73, [None, None, "to"]) + _BODY, "id")
    assert named == _section(0x73, ["id", None, "to"]) + _BODY
    named = with_message_id(_BODY, "id")
    assert read_message(named).message_id == "id"
    added = with_application_properties(named, {"a": "1"})
    again = with_application_properties(added, {"a": "2", "b": "3"})
    request = read_request(again)
    assert dict(request.properties) == {"a": "2", "b": "3"}
    assert read_message(again).message_id == "id"
    assert again.endswith(_BODY)


def test_a_batch_is_its_data_sections() -> None:
    """And nothing else is one."""
    assert read_batch(_section(0x73, ["envelope"]) + _section(0x75, b"a") + _section(0x75, b"b")) == [
        b"a",
        b"b",
    ]
    with pytest.raises(DecodeError):
        read_batch(_section(0x77, "value"))


def test_lists_are_split_without_being_decoded() -> None:
    """So that all but one item go back as they came."""
    items = [encode(UInt(1)), encode("x" * 300), encode(None)]
    data = encode_list(items)
    assert split_list(data) == (items, len(data))
    with pytest.raises(DecodeError):
        split_list(encode("text"))


# -- bounded work -----------------------------------------------------------------------------------------

_LIST = b"\xd0"
_NESTED = (b"\x45", b"\x40", b"\xa1\x00", b"\xc0\x01\x00", b"\xc1\x01\x00", b"\x00\x53\x01\x40")
_BOMBS = {
    "array of empty lists": b"\xf0" + struct.pack(">II", 5, 65_536) + b"\x45",
    "array of nulls": b"\xf0" + struct.pack(">II", 5, 65_536) + b"\x40",
    "short array of zeros": b"\xe0\x02\xff\x44",
    "array of described nothings": b"\xe0\x05\xff\x00\x53\x01\x45",
    "array of arrays": b"\xf0" + struct.pack(">II", 9, 4_000_000_000) + b"\xf0\x00\x00\x00\x00",
    "list with too many items": b"\xd0" + struct.pack(">II", 4, 4_000_000_000),
    "map with too many items": b"\xd1" + struct.pack(">II", 4, 4_000_000_000),
    "string beyond the end": b"\xb1\xff\xff\xff\xff",
}


def _many(item: bytes, count: int) -> bytes:
    body = item * count
    return _LIST + struct.pack(">II", len(body) + 4, count) + body


def _try(data: bytes) -> object:
    try:
        return decode(data)
    except DecodeError:
        return None


@pytest.mark.parametrize("bomb", _BOMBS.values(), ids=_BOMBS)
def test_a_count_beyond_the_bytes_costs_nothing(bomb: bytes) -> None:
    """Whatever a size field says, time and memory are those of the bytes that came."""
    data = _many(bomb, 200)
    assert steps(lambda: _try(data)) < 40 * len(data) + 2_000
    assert peak(lambda: _try(data)) < 150 * len(data) + 20_000


_VALUES = st.recursive(
    st.sampled_from([*_NESTED, *_BOMBS.values(), b"\x98" + bytes(16), b"\x52\x07"]) | st.binary(max_size=12),
    lambda inner: st.builds(
        lambda code, items, lie: (
            bytes((code,)) + struct.pack(">II", len(b"".join(items)) + 4, lie or len(items)) + b"".join(items)
        ),
        st.sampled_from([0xD0, 0xD1, 0xF0]),
        st.lists(inner, max_size=8),
        st.sampled_from([0, 0, 0, 1, 255, 65_536, 0xFFFF_FFFF]),
    ),
    max_leaves=30,
)


@given(_VALUES)
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_decoded_with_work_in_proportion(data: bytes) -> None:
    """Or refused, with no more."""
    assert steps(lambda: _try(data)) < 40 * len(data) + 2_000
    assert peak(lambda: _try(data)) < 150 * len(data) + 20_000


@pytest.mark.parametrize(
    "key",
    [UUID(int=7), UUID(int=7 + (1 << 61) - 1), Described(UInt(1), "x"), [1]],
)
def test_keys_whose_hashes_a_sender_can_choose_are_refused(key: Any) -> None:
    """A map of keys of one hash takes quadratic time."""
    head, value = encode(key), encode(1)
    body = head + value
    with pytest.raises(DecodeError, match="key"):
        decode(b"\xd1" + struct.pack(">II", len(body) + 4, 2) + body)


@pytest.mark.parametrize("descriptor", [[1], {}, None, UUID(int=1)])
def test_a_descriptor_is_a_number_or_a_symbol(descriptor: Any) -> None:
    """Others could not be looked up."""
    with pytest.raises(DecodeError, match="descriptor"):
        decode(b"\x00" + encode(descriptor) + b"\x45")


def test_half_of_a_surrogate_pair_is_no_character() -> None:
    """It could not be written again."""
    with pytest.raises(DecodeError, match="Unicode"):
        decode(b"\x73\x00\x00\xd8\x00")


def test_an_unsigned_number_beyond_a_long_comes_back() -> None:
    """As what it came as."""
    assert decode(encode((1 << 64) - 1))[0] == (1 << 64) - 1

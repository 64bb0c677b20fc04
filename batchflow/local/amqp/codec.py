"""AMQP 1.0 types on the wire (OASIS AMQP 1.0, part 1), sans-IO.

Decoding maps integers of every width to ``int`` and keeps apart what Python would confuse: symbols are
:class:`Symbol`, timestamps :class:`Timestamp`. Encoding picks the wire type by the exact Python type, so an
``int`` is a long and the other widths have classes of their own.

A peer is not trusted. Input that is malformed, nested too deeply or longer than its frame raises
:class:`DecodeError` and nothing else. Time and memory are linear in the bytes received, whatever counts they
name: an array of items without bytes is short, and no key of a map has a hash that its sender can choose.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_DEPTH = 32
MAX_EMPTY_ITEMS = 32
"""Items of an array whose type takes no bytes. So an array costs no more for each byte than a list does."""


class DecodeError(ValueError):
    """The bytes are not valid AMQP."""


class Symbol(str):
    """An AMQP symbol: a string of ASCII from a constrained domain."""

    __slots__ = ()


class UByte(int):
    """Encodes as ubyte."""


class UInt(int):
    """Encodes as uint."""


class ULong(int):
    """Encodes as ulong."""


class Int(int):
    """Encodes as int."""


class Timestamp(int):
    """Milliseconds since the Unix epoch; encodes as timestamp."""


class Described(NamedTuple):
    """A value with the descriptor that gives it its meaning."""

    descriptor: Any
    value: Any


class Array(NamedTuple):
    """Values of one type, to be encoded as an array. ``of`` is that type, one of those encoded here."""

    of: type
    values: Sequence[Any]


class Raw(NamedTuple):
    """A value that is encoded already."""

    data: bytes


_U2 = struct.Struct(">H")
_U4 = struct.Struct(">I")
_U8 = struct.Struct(">Q")
_S2 = struct.Struct(">h")
_S4 = struct.Struct(">i")
_S8 = struct.Struct(">q")
_F4 = struct.Struct(">f")
_F8 = struct.Struct(">d")

# -- decoding ---------------------------------------------------------------------------------------------


def decode(data: bytes, pos: int = 0, depth: int = 0) -> tuple[Any, int]:
    """Decode the value at ``pos``; return it and the position after it. Raises :class:`DecodeError`."""
    try:
        return _decode(data, pos, depth)
    except (IndexError, struct.error) as error:
        raise DecodeError("a value goes beyond the end of its frame") from error
    except UnicodeDecodeError as error:
        raise DecodeError("a string or symbol is not valid text") from error
    except TypeError as error:
        raise DecodeError("a map has a key that cannot be one") from error


def skip(data: bytes, pos: int, depth: int = 0) -> int:
    """Return the position after the value at ``pos`` without decoding it. Raises :class:`DecodeError`."""
    try:
        code = data[pos]
        if code == 0x00:
            if depth >= MAX_DEPTH:
                raise DecodeError("values are nested too deeply")
            return skip(data, skip(data, pos + 1, depth + 1), depth + 1)
        end = pos + 1 + _payload_size(data, pos + 1, code >> 4)
    except (IndexError, struct.error) as error:
        raise DecodeError("a value goes beyond the end of its frame") from error
    if end > len(data):
        raise DecodeError("a value goes beyond the end of its frame")
    return end


def _payload_size(data: bytes, pos: int, category: int) -> int:
    match category:
        case 0x4:
            return 0
        case 0x5 | 0x6 | 0x7 | 0x8 | 0x9:
            return int(1 << (category - 5))
        case 0xA | 0xC | 0xE:
            return 1 + data[pos]
        case 0xB | 0xD | 0xF:
            return int(4 + _U4.unpack_from(data, pos)[0])
        case _:
            raise DecodeError("a value has an unknown type")


def _decode(data: bytes, pos: int, depth: int) -> tuple[Any, int]:
    return _DECODERS[data[pos]](data, pos + 1, depth)


def _unknown(data: bytes, pos: int, depth: int) -> tuple[Any, int]:
    raise DecodeError(f"0x{data[pos - 1]:02x} is not a type")


def _constant(value: Any) -> Callable[[bytes, int, int], tuple[Any, int]]:
    return lambda data, pos, depth: (value, pos)


def _packed(format_: struct.Struct) -> Callable[[bytes, int, int], tuple[Any, int]]:
    unpack, size = format_.unpack_from, format_.size
    return lambda data, pos, depth: (unpack(data, pos)[0], pos + size)


def _byte(data: bytes, pos: int, depth: int) -> tuple[int, int]:
    return data[pos], pos + 1


def _signed_byte(data: bytes, pos: int, depth: int) -> tuple[int, int]:
    value = data[pos]
    return (value - 256 if value > 127 else value), pos + 1


def _boolean(data: bytes, pos: int, depth: int) -> tuple[bool, int]:
    return data[pos] != 0, pos + 1


def _timestamp(data: bytes, pos: int, depth: int) -> tuple[Timestamp, int]:
    return Timestamp(_S8.unpack_from(data, pos)[0]), pos + 8


def _character(data: bytes, pos: int, depth: int) -> tuple[str, int]:
    code = _U4.unpack_from(data, pos)[0]
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise DecodeError("a character is not Unicode")
    return chr(code), pos + 4


def _uuid(data: bytes, pos: int, depth: int) -> tuple[UUID, int]:
    return UUID(bytes=_slice(data, pos, pos + 16)), pos + 16


def _opaque(size: int) -> Callable[[bytes, int, int], tuple[bytes, int]]:
    return lambda data, pos, depth: (_slice(data, pos, pos + size), pos + size)


def _slice(data: bytes, start: int, end: int) -> bytes:
    if end > len(data):
        raise DecodeError("a value goes beyond the end of its frame")
    return data[start:end]


def _binary8(data: bytes, pos: int, depth: int) -> tuple[bytes, int]:
    end = pos + 1 + data[pos]
    return _slice(data, pos + 1, end), end


def _binary32(data: bytes, pos: int, depth: int) -> tuple[bytes, int]:
    end = pos + 4 + _U4.unpack_from(data, pos)[0]
    return _slice(data, pos + 4, end), end


def _string8(data: bytes, pos: int, depth: int) -> tuple[str, int]:
    raw, end = _binary8(data, pos, depth)
    return raw.decode(), end


def _string32(data: bytes, pos: int, depth: int) -> tuple[str, int]:
    raw, end = _binary32(data, pos, depth)
    return raw.decode(), end


def _symbol8(data: bytes, pos: int, depth: int) -> tuple[Symbol, int]:
    raw, end = _binary8(data, pos, depth)
    return Symbol(raw.decode("ascii")), end


def _symbol32(data: bytes, pos: int, depth: int) -> tuple[Symbol, int]:
    raw, end = _binary32(data, pos, depth)
    return Symbol(raw.decode("ascii")), end


def _described(data: bytes, pos: int, depth: int) -> tuple[Described, int]:
    if depth >= MAX_DEPTH:
        raise DecodeError("values are nested too deeply")
    descriptor, pos = _descriptor(data, pos, depth + 1)
    value, pos = _decode(data, pos, depth + 1)
    return Described(descriptor, value), pos


def _descriptor(data: bytes, pos: int, depth: int) -> tuple[int | str, int]:
    descriptor, pos = _decode(data, pos, depth)
    if not isinstance(descriptor, int | str):
        raise DecodeError("a descriptor is neither a number nor a symbol")
    return descriptor, pos


def _compound8(data: bytes, pos: int) -> tuple[int, int, int]:
    """Return the item count, where the items begin, and where the compound must end."""
    return data[pos + 1], pos + 2, pos + 1 + data[pos]


def _compound32(data: bytes, pos: int) -> tuple[int, int, int]:
    size, count = struct.unpack_from(">II", data, pos)
    return count, pos + 8, pos + 4 + size


def _items(data: bytes, count: int, pos: int, end: int, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise DecodeError("values are nested too deeply")
    if end > len(data) or count > end - pos:
        raise DecodeError("a list, map or array goes beyond the end of its frame")
    items = []
    decoders = _DECODERS
    depth += 1
    for _ in range(count):
        value, pos = decoders[data[pos]](data, pos + 1, depth)
        items.append(value)
    if pos != end:
        raise DecodeError("a list or map is not as long as it says")
    return items


def _pairs(data: bytes, count: int, pos: int, end: int, depth: int) -> dict[Any, Any]:
    if count % 2:
        raise DecodeError("a map has a key without a value")
    items = _items(data, count, pos, end, depth)
    keys = items[::2]
    if not _KEYS.issuperset(map(type, keys)):
        raise DecodeError("a map has a key that cannot be one")
    return dict(zip(keys, items[1::2], strict=True))


_KEYS = frozenset({str, Symbol, bytes, bool, int, float, Timestamp, type(None)})
"""Types of the keys of a map. A sender could make any number of UUIDs, or of described values, whose hashes
are the same, and a map of those takes quadratic time."""


def _list8(data: bytes, pos: int, depth: int) -> tuple[list[Any], int]:
    count, start, end = _compound8(data, pos)
    return _items(data, count, start, end, depth), end


def _list32(data: bytes, pos: int, depth: int) -> tuple[list[Any], int]:
    count, start, end = _compound32(data, pos)
    return _items(data, count, start, end, depth), end


def _map8(data: bytes, pos: int, depth: int) -> tuple[dict[Any, Any], int]:
    count, start, end = _compound8(data, pos)
    return _pairs(data, count, start, end, depth), end


def _map32(data: bytes, pos: int, depth: int) -> tuple[dict[Any, Any], int]:
    count, start, end = _compound32(data, pos)
    return _pairs(data, count, start, end, depth), end


def _array8(data: bytes, pos: int, depth: int) -> tuple[list[Any], int]:
    count, start, end = _compound8(data, pos)
    return _array_items(data, count, start, end, depth), end


def _array32(data: bytes, pos: int, depth: int) -> tuple[list[Any], int]:
    count, start, end = _compound32(data, pos)
    return _array_items(data, count, start, end, depth), end


def _array_items(data: bytes, count: int, pos: int, end: int, depth: int) -> list[Any]:
    if end > len(data) or depth >= MAX_DEPTH:
        raise DecodeError("an array goes beyond the end of its frame, or is nested too deeply")
    descriptor = None
    described = data[pos] == 0x00
    if described:
        descriptor, pos = _descriptor(data, pos + 1, depth + 1)
    code = data[pos]
    decoder = _DECODERS[code]
    pos += 1
    if count > (MAX_EMPTY_ITEMS if code >> 4 == 0x4 else end - pos):
        raise DecodeError("an array has more items than bytes")
    items = []
    for _ in range(count):
        value, pos = decoder(data, pos, depth + 1)
        items.append(Described(descriptor, value) if described else value)
    if pos != end:
        raise DecodeError("an array is not as long as it says")
    return items


_KNOWN: dict[int, Callable[[bytes, int, int], tuple[Any, int]]] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(0),
    0x44: _constant(0),
    0x45: lambda data, pos, depth: ([], pos),
    0x50: _byte,
    0x51: _signed_byte,
    0x52: _byte,
    0x53: _byte,
    0x54: _signed_byte,
    0x55: _signed_byte,
    0x56: _boolean,
    0x60: _packed(_U2),
    0x61: _packed(_S2),
    0x70: _packed(_U4),
    0x71: _packed(_S4),
    0x72: _packed(_F4),
    0x73: _character,
    0x74: _opaque(4),
    0x80: _packed(_U8),
    0x81: _packed(_S8),
    0x82: _packed(_F8),
    0x83: _timestamp,
    0x84: _opaque(8),
    0x94: _opaque(16),
    0x98: _uuid,
    0xA0: _binary8,
    0xA1: _string8,
    0xA3: _symbol8,
    0xB0: _binary32,
    0xB1: _string32,
    0xB3: _symbol32,
    0xC0: _list8,
    0xC1: _map8,
    0xD0: _list32,
    0xD1: _map32,
    0xE0: _array8,
    0xF0: _array32,
}
_DECODERS = tuple(_KNOWN.get(code, _unknown) for code in range(256))


def inside(data: bytes, pos: int, short: int) -> tuple[int, int]:
    """Return the item count of the list or map at ``pos``, and where its items begin.

    ``short`` is the type's code with a size of one byte. Raises :class:`DecodeError` for another type.
    """
    end = skip(data, pos)
    width = {short: 1, short + 0x10: 4}.get(data[pos])
    if width is None:
        raise DecodeError("a list or a map was expected, and something else found")
    start = pos + 1 + 2 * width
    if start > end:
        raise DecodeError("a list or map has no room for its count")
    return int.from_bytes(data[start - width : start], "big"), start


def split_list(data: bytes, pos: int = 0) -> tuple[list[bytes], int]:
    """Split the list at ``pos`` into its items, still encoded; return them and the position after it.

    So a list can be changed in one place and the rest sent back exactly as it came.
    """
    end = skip(data, pos)
    if data[pos] == 0x45:
        return [], end
    count, pos = inside(data, pos, 0xC0)
    items = []
    for _ in range(min(count, end - pos)):
        after = skip(data, pos)
        items.append(data[pos:after])
        pos = after
    if pos != end:
        raise DecodeError("a list is not as long as it says")
    return items, end


# -- encoding ---------------------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Encode a value as the wire type that its Python type stands for. Raises TypeError for others."""
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise TypeError(f"{type(value).__name__} has no AMQP type")
    return encoder(value)


def encode_list(items: Sequence[bytes]) -> bytes:
    """Make a list of items that are encoded already."""
    if not items:
        return b"\x45"
    return _compound(0xC0, len(items), b"".join(items))


def encode_described(code: int, value: bytes) -> bytes:
    """Put the numeric descriptor in front of a value that is encoded already."""
    return b"\x00" + _encode_ulong(code) + value


def _compound(code: int, count: int, body: bytes) -> bytes:
    if count < 256 and len(body) < 255:
        return bytes((code, len(body) + 1, count)) + body
    return bytes((code + 0x10,)) + struct.pack(">II", len(body) + 4, count) + body


def _variable(code: int, data: bytes) -> bytes:
    if len(data) < 256:
        return bytes((code, len(data))) + data
    return bytes((code + 0x10,)) + _U4.pack(len(data)) + data


def _encode_uint(value: int) -> bytes:
    if value == 0:
        return b"\x43"
    return bytes((0x52, value)) if value < 256 else b"\x70" + _U4.pack(value)


def _encode_ulong(value: int) -> bytes:
    if value == 0:
        return b"\x44"
    return bytes((0x53, value)) if value < 256 else b"\x80" + _U8.pack(value)


def _encode_int(value: int) -> bytes:
    return b"\x81" + _S8.pack(value) if value < 1 << 63 else b"\x80" + _U8.pack(value)


def _encode_map(value: dict[Any, Any]) -> bytes:
    items = [encode(item) for pair in value.items() for item in pair]
    return _compound(0xC1, len(items), b"".join(items))


def _encode_array(value: Array) -> bytes:
    code, pack = _ARRAY_ITEMS[value.of]
    body = bytes((code,)) + b"".join([pack(item) for item in value.values])
    return b"\xf0" + struct.pack(">II", len(body) + 4, len(value.values)) + body


_ARRAY_ITEMS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    str: (0xB1, lambda value: _variable32(value.encode())),
    Symbol: (0xB3, lambda value: _variable32(value.encode("ascii"))),
    bytes: (0xB0, lambda value: _variable32(value)),
    int: (0x81, _S8.pack),
    Timestamp: (0x83, _S8.pack),
    UUID: (0x98, lambda value: value.bytes),
}


def _variable32(data: bytes) -> bytes:
    return _U4.pack(len(data)) + data


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"\x40",
    bool: lambda value: b"\x41" if value else b"\x42",
    UByte: lambda value: bytes((0x50, value)),
    UInt: _encode_uint,
    ULong: _encode_ulong,
    Int: lambda value: b"\x71" + _S4.pack(value),
    int: _encode_int,
    Timestamp: lambda value: b"\x83" + _S8.pack(value),
    float: lambda value: b"\x82" + _F8.pack(value),
    UUID: lambda value: b"\x98" + value.bytes,
    bytes: lambda value: _variable(0xA0, value),
    str: lambda value: _variable(0xA1, value.encode()),
    Symbol: lambda value: _variable(0xA3, value.encode("ascii")),
    list: lambda value: encode_list([encode(item) for item in value]),
    dict: _encode_map,
    Described: lambda value: b"\x00" + encode(value.descriptor) + encode(value.value),
    Array: _encode_array,
    Raw: lambda value: value.data,
}

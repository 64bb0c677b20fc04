"""AMQP 1.0 messages as a broker sees them (OASIS AMQP 1.0, part 3), sans-IO.

A broker changes the header and the annotations of a message and leaves the rest alone. So a message is kept
as its few header fields and annotations, still encoded, and one run of bytes from the properties to the
footer; only the message id and the session id are read out of that. The body is never decoded.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from batchflow.local.amqp.codec import (
    DecodeError,
    Symbol,
    decode,
    encode,
    encode_described,
    encode_list,
    inside,
    skip,
    split_list,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BATCH_FORMAT = 0x80013700

_HEADER, _DELIVERY_ANNOTATIONS, _ANNOTATIONS, _PROPERTIES, _APPLICATION_PROPERTIES = range(0x70, 0x75)
_DATA, _SEQUENCE, _VALUE, _FOOTER = range(0x75, 0x79)
_MESSAGE_ID, _REPLY_TO, _CORRELATION_ID, _GROUP_ID = 0, 4, 5, 10
_NULL = b"\x40"
_MAX_PRIORITY = 255
_MAX_TTL = 0xFFFF_FFFF
_MAX_TIME = 253_402_300_800_000
"""Milliseconds since the epoch, at the end of the year 9999."""

_OWN_ANNOTATIONS = {
    "x-opt-sequence-number",
    "x-opt-enqueued-time",
    "x-opt-locked-until",
    "x-opt-message-state",
    "x-opt-scheduled-enqueue-time",
}
SCHEDULED_ENQUEUE_TIME = "x-opt-scheduled-enqueue-time"


class Envelope(NamedTuple):
    """What a broker rewrites: the first four header fields, and the sender's annotations as pairs."""

    header: bytes
    annotations: bytes
    annotation_count: int


class Incoming(NamedTuple):
    """A message that came in. ``bare`` runs from the properties to the footer."""

    envelope: Envelope
    bare: bytes
    message_id: str | None
    session_id: str | None
    ttl_ms: int | None
    scheduled_ms: int | None


class Stamp(NamedTuple):
    """What the broker says about a message; the times are milliseconds since the epoch."""

    delivery_count: int
    number: int
    enqueued_ms: int
    locked_until_ms: int | None = None
    state: int = 0
    scheduled_ms: int | None = None


class AmqpRequest(NamedTuple):
    """A message to a request-response node. ``message_id`` is still encoded, to be echoed with its type."""

    message_id: bytes
    reply_to: str | None
    properties: Mapping[str, Any]
    body: Any


# -- reading ----------------------------------------------------------------------------------------------


def _sections(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Return the sections of a message: descriptor, where the section begins, and where its value begins.

    Raises :class:`DecodeError` for what is not a well-formed sequence of sections.
    """
    pos = 0
    last = 0
    while pos < len(data):
        start = pos
        if data[pos : pos + 2] == b"\x00\x53" and len(data) > pos + 2:
            code, pos = data[pos + 2], pos + 3
        else:
            code, pos = _descriptor(data, pos)
        if code < last or not _HEADER <= code <= _FOOTER:
            raise DecodeError(f"section {code:#x} is unknown or out of order")
        last = code
        end = skip(data, pos)
        yield code, start, pos
        pos = end


def _descriptor(data: bytes, pos: int) -> tuple[int, int]:
    if data[pos] != 0x00:
        raise DecodeError("a message section has no descriptor")
    code, pos = decode(data, pos + 1)
    if not isinstance(code, int):
        raise DecodeError("a message section has no numeric descriptor")
    return code, pos


def read_message(data: bytes) -> Incoming:
    """Split a message, which may have no body. Raises :class:`DecodeError`."""
    header, ttl, annotations, scheduled = _NULL * 4, None, (b"", 0), None
    message_id = session_id = None
    bare = len(data)
    for code, start, value in _sections(data):
        if code >= _PROPERTIES:
            bare = min(bare, start)
        if code == _HEADER:
            header, ttl = _read_header(data, value)
        elif code == _ANNOTATIONS:
            annotations, scheduled = _read_annotations(data, value)
        elif code == _PROPERTIES:
            message_id, session_id = _read_ids(data, value)
    return Incoming(Envelope(header, *annotations), data[bare:], message_id, session_id, ttl, scheduled)


def _read_header(data: bytes, pos: int) -> tuple[bytes, int | None]:
    fields = split_list(data, pos)[0][:4]
    fields += [_NULL] * (4 - len(fields))
    durable, priority, ttl, first = (decode(field)[0] for field in fields)
    flags = isinstance(durable, bool | None) and isinstance(first, bool | None)
    if not (flags and _within(priority, _MAX_PRIORITY) and _within(ttl, _MAX_TTL)):
        raise DecodeError("a header has a field of a wrong type or range")
    return b"".join(fields), ttl


def _within(value: Any, most: int) -> bool:
    return value is None or (isinstance(value, int) and 0 <= value <= most)


def _read_annotations(data: bytes, pos: int) -> tuple[tuple[bytes, int], int | None]:
    kept, scheduled = [], None
    for key, raw in _pairs(data, pos):
        if key == SCHEDULED_ENQUEUE_TIME:
            scheduled = decode(raw, skip(raw, 0))[0]
        if key not in _OWN_ANNOTATIONS:
            kept.append(raw)
    if not _within(scheduled, _MAX_TIME):
        raise DecodeError("a message is scheduled for something that is not a time")
    return (b"".join(kept), 2 * len(kept)), scheduled


def _pairs(data: bytes, pos: int) -> list[tuple[Any, bytes]]:
    """Return the entries of the map at ``pos``: the key, and key and value still encoded."""
    if data[pos] == 0x40:
        return []
    end = skip(data, pos)
    _, pos = inside(data, pos, 0xC1)
    pairs = []
    while pos < end:
        key, after = decode(data, pos)
        after = skip(data, after)
        pairs.append((key, data[pos:after]))
        pos = after
    if pos != end:
        raise DecodeError("a map is not as long as it says")
    return pairs


def _read_ids(data: bytes, pos: int) -> tuple[str | None, str | None]:
    if data[pos] == 0x45:
        return None, None
    count, pos = inside(data, pos, 0xC0)
    if not count:
        return None, None
    message_id, pos = decode(data, pos)
    session_id = None
    if count > _GROUP_ID:
        for _ in range(_GROUP_ID - 1):
            pos = pos + 1 if data[pos : pos + 1] == _NULL else skip(data, pos)
        session_id = decode(data, pos)[0]
    if session_id is not None and not isinstance(session_id, str):
        raise DecodeError("a session id is not a string")
    return None if message_id is None else str(message_id), session_id


def read_batch(data: bytes) -> list[bytes]:
    """Return the messages of a batch: each of its data sections is one. Raises :class:`DecodeError`."""
    messages = []
    for code, _, value in _sections(data):
        if code == _DATA:
            messages.append(decode(data, value)[0])
    if not messages or not all(isinstance(message, bytes) for message in messages):
        raise DecodeError("a batch holds no messages")
    return messages


def read_request(data: bytes) -> AmqpRequest:
    """Read a message to a request-response node. Raises :class:`DecodeError`."""
    message_id, reply_to, properties, body = _NULL, None, {}, None
    for code, _, value in _sections(data):
        if code == _PROPERTIES:
            fields = split_list(data, value)[0] + [_NULL] * 5
            message_id, reply_to = fields[_MESSAGE_ID], decode(fields[_REPLY_TO])[0]
        elif code == _APPLICATION_PROPERTIES:
            properties = decode(data, value)[0]
        elif code == _VALUE:
            body = decode(data, value)[0]
    if not isinstance(properties, dict):
        raise DecodeError("the application properties are not a map")
    return AmqpRequest(message_id, reply_to if isinstance(reply_to, str) else None, properties, body)


# -- writing ----------------------------------------------------------------------------------------------

_NUMBER_KEY = encode(Symbol("x-opt-sequence-number")) + b"\x81"
_ENQUEUED_KEY = encode(Symbol("x-opt-enqueued-time")) + b"\x83"
_LOCKED_KEY = encode(Symbol("x-opt-locked-until")) + b"\x83"
_STATE_KEY = encode(Symbol("x-opt-message-state")) + b"\x71"
_SCHEDULED_KEY = encode(Symbol(SCHEDULED_ENQUEUE_TIME)) + b"\x83"
_LONG = struct.Struct(">q")
_ARRIVAL = struct.Struct(f">{len(_NUMBER_KEY)}sq{len(_ENQUEUED_KEY)}sq")
_HEADER_HEAD = struct.Struct(">3sBBB")
_MAP_HEAD = struct.Struct(">4sII")


def write_message(envelope: Envelope, bare: bytes, stamp: Stamp) -> bytes:
    """Put a message together for delivery."""
    count = stamp.delivery_count
    counted = bytes((0x52, count)) if count < 256 else b"\x70" + count.to_bytes(4, "big")
    size = 1 + len(envelope.header) + len(counted)
    header = _HEADER_HEAD.pack(b"\x00\x53\x70", 0xC0, size, 5)
    annotations, pairs = _write_annotations(envelope, stamp)
    head = _MAP_HEAD.pack(b"\x00\x53\x72\xd1", len(annotations) + 4, pairs)
    return b"".join((header, envelope.header, counted, head, annotations, bare))


def _write_annotations(envelope: Envelope, stamp: Stamp) -> tuple[bytes, int]:
    parts = [
        envelope.annotations,
        _ARRIVAL.pack(_NUMBER_KEY, stamp.number, _ENQUEUED_KEY, stamp.enqueued_ms),
    ]
    if stamp.locked_until_ms is not None:
        parts.append(_LOCKED_KEY + _LONG.pack(stamp.locked_until_ms))
    if stamp.state:
        parts.append(_STATE_KEY + stamp.state.to_bytes(4, "big"))
    if stamp.scheduled_ms is not None:
        parts.append(_SCHEDULED_KEY + _LONG.pack(stamp.scheduled_ms))
    optional = len(parts) - 2
    return b"".join(parts), envelope.annotation_count + 4 + 2 * optional


def with_message_id(bare: bytes, message_id: str) -> bytes:
    """Give a message an id that has none."""
    for code, start, value in _sections(bare):
        if code == _PROPERTIES:
            fields, end = split_list(bare, value)
            fields[:1] = [encode(message_id)]
            return bare[:start] + encode_described(_PROPERTIES, encode_list(fields)) + bare[end:]
        break
    return encode_described(_PROPERTIES, encode_list([encode(message_id)])) + bare


def with_application_properties(bare: bytes, added: Mapping[str, Any]) -> bytes:
    """Add application properties, in place of those of the same names. Values are of simple types."""
    before, pairs, after = b"", [], bare
    for code, _, value in _sections(bare):
        if code == _PROPERTIES:
            end = skip(bare, value)
            before, after = bare[:end], bare[end:]
        elif code == _APPLICATION_PROPERTIES:
            pairs = [raw for key, raw in _pairs(bare, value) if key not in added]
            after = bare[skip(bare, value) :]
    pairs += [encode(key) + encode(value) for key, value in added.items()]
    body = b"".join(pairs)
    head = _MAP_HEAD.pack(b"\x00\x53\x74\xd1", len(body) + 4, 2 * len(pairs))
    return before + head + body + after


def write_reply(correlation_id: bytes, properties: Mapping[str, Any], body: Any) -> bytes:
    """Return a reply of a request-response node; ``correlation_id`` is encoded already."""
    fields = [_NULL] * _CORRELATION_ID + [correlation_id]
    return (
        encode_described(_PROPERTIES, encode_list(fields))
        + encode_described(_APPLICATION_PROPERTIES, encode(dict(properties)))
        + encode_described(_VALUE, encode(body))
    )

"""AMQP 1.0 frames and performatives (OASIS AMQP 1.0, parts 2, 3 and 5), sans-IO.

What a server of messages sends and receives by the thousand, transfers and dispositions, is packed from
templates; the rest goes through the general encoder.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from batchflow.local.amqp.codec import (
    DecodeError,
    Described,
    Raw,
    Symbol,
    UByte,
    UInt,
    decode,
    encode,
    encode_described,
    encode_list,
    split_list,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
EMPTY_FRAME = b"\x00\x00\x00\x08\x02\x00\x00\x00"
AMQP_FRAME = 0
SASL_FRAME = 1

RECEIVER = True
SENDER = False


class Code(IntEnum):
    """The numeric descriptors of performatives."""

    OPEN = 0x10
    BEGIN = 0x11
    ATTACH = 0x12
    FLOW = 0x13
    TRANSFER = 0x14
    DISPOSITION = 0x15
    DETACH = 0x16
    END = 0x17
    CLOSE = 0x18
    SASL_MECHANISMS = 0x40
    SASL_INIT = 0x41
    SASL_OUTCOME = 0x44


class OutcomeCode(IntEnum):
    """The numeric descriptors of delivery states."""

    RECEIVED = 0x23
    ACCEPTED = 0x24
    REJECTED = 0x25
    RELEASED = 0x26
    MODIFIED = 0x27


class AmqpError(NamedTuple):
    """An error as it is sent: a condition that programs look at and a description that people read."""

    condition: str
    description: str

    def encoded(self) -> bytes:
        """Return the error as an AMQP value; SDKs look for its third field, info, even when it is null."""
        fields = [encode(Symbol(self.condition)), encode(self.description), encode(None)]
        return encode_described(0x1D, encode_list(fields))


class Open(NamedTuple):
    """The peer's side of a connection."""

    container_id: str
    hostname: str | None
    max_frame_size: int
    channel_max: int
    idle_timeout: int | None


class Begin(NamedTuple):
    """The peer's side of a session."""

    next_outgoing_id: int
    incoming_window: int
    outgoing_window: int


class Attach(NamedTuple):
    """The peer's side of a link. ``source`` and ``target`` are still encoded, to be echoed as they came."""

    name: str
    handle: int
    role: bool
    snd_settle_mode: int
    rcv_settle_mode: int
    source: bytes
    target: bytes
    properties: Mapping[str, Any]


class Flow(NamedTuple):
    """A change of the windows of a session, and of the credit of a link when it names one."""

    next_incoming_id: int | None
    incoming_window: int
    next_outgoing_id: int
    outgoing_window: int
    handle: int | None
    delivery_count: int | None
    link_credit: int | None
    drain: bool
    echo: bool


class Transfer(NamedTuple):
    """A message or a part of one."""

    handle: int
    delivery_id: int | None
    delivery_tag: bytes | None
    message_format: int | None
    settled: bool
    more: bool
    aborted: bool
    payload: bytes


class Disposition(NamedTuple):
    """What the peer says of the deliveries from first to last."""

    role: bool
    first: int
    last: int
    settled: bool
    state: Described | None


class Detach(NamedTuple):
    """The end of a link."""

    handle: int
    closed: bool


class End(NamedTuple):
    """The end of a session."""


class Close(NamedTuple):
    """The end of the connection."""


class SaslInit(NamedTuple):
    """The peer's choice of a mechanism, and what it says at once: with PLAIN a name and a password."""

    mechanism: str
    response: bytes

    def __repr__(self) -> str:
        return f"SaslInit(mechanism={self.mechanism!r})"


Performative = Open | Begin | Attach | Flow | Transfer | Disposition | Detach | End | Close | SaslInit

# -- reading ----------------------------------------------------------------------------------------------

_ANY = object
_MAP = dict
_DESCRIBED = Described

_FIELDS: dict[int, tuple[tuple[Any, ...], int]] = {
    # code: the types of the fields that are looked at, and how many of them are mandatory
    Code.OPEN: ((str, str, int, int, int), 1),
    Code.BEGIN: ((int, int, int, int), 4),
    Code.ATTACH: ((str, int, bool, int, int, _ANY, _ANY, _ANY, _ANY, _ANY, _ANY, _ANY, _ANY, _MAP), 3),
    Code.FLOW: ((int, int, int, int, int, int, int, int, bool, bool), 4),
    Code.TRANSFER: ((int, int, bytes, int, bool, bool, _ANY, _ANY, _ANY, bool), 1),
    Code.DISPOSITION: ((bool, int, int, bool, _DESCRIBED), 2),
    Code.DETACH: ((int, bool), 1),
    Code.END: ((), 0),
    Code.CLOSE: ((), 0),
    Code.SASL_INIT: ((str, bytes), 1),
}
_OPTIONAL_FIRST = {Code.BEGIN, Code.FLOW}
_PADDING = [None] * 16


def read_performative(body: bytes) -> Performative:
    """Read the performative at the head of a frame's body; a transfer takes the rest as its payload.

    Raises :class:`DecodeError` for an unknown performative and for fields of a wrong type.
    """
    described, end = decode(body)
    if type(described) is not Described or not isinstance(described.value, list):
        raise DecodeError("a frame does not begin with a performative")
    code = described.descriptor
    known = _FIELDS.get(code) if isinstance(code, int) else None
    if known is None:
        raise DecodeError(f"{code!r} is not a performative that a server receives")
    fields = described.value
    _check(code, fields, *known)
    fields += _PADDING
    return _build(code, fields, body, end)


def _check(code: int, fields: list[Any], types: tuple[Any, ...], mandatory: int) -> None:
    for value, type_ in zip(fields, types, strict=False):
        if value is None:
            continue
        if not isinstance(value, type_) or (type_ is int and (value < 0 or value > 0xFFFFFFFF)):
            raise DecodeError(f"performative 0x{code:x} has a field of a wrong type or range")
    first = 1 if code in _OPTIONAL_FIRST else 0
    if len(fields) < mandatory or None in fields[first:mandatory]:
        raise DecodeError(f"performative 0x{code:x} lacks a mandatory field")


def _build(code: int, fields: list[Any], body: bytes, end: int) -> Performative:
    match code:
        case Code.TRANSFER:
            handle, id_, tag, format_, settled, more = fields[:6]
            return Transfer(handle, id_, tag, format_, bool(settled), bool(more), bool(fields[9]), body[end:])
        case Code.DISPOSITION:
            role, first, last, settled, state = fields[:5]
            return Disposition(role, first, first if last is None else last, bool(settled), state)
        case Code.FLOW:
            incoming, window, outgoing, theirs, handle, count, credit, _, drain, echo = fields[:10]
            return Flow(incoming, window, outgoing, theirs, handle, count, credit, bool(drain), bool(echo))
        case Code.OPEN:
            container, host, frame_size, channels, idle = fields[:5]
            return Open(
                container, host, 0xFFFFFFFF if frame_size is None else frame_size, channels or 0xFFFF, idle
            )
        case Code.BEGIN:
            return Begin(*fields[1:4])
        case Code.ATTACH:
            return _attach(fields, body)
        case Code.DETACH:
            return Detach(fields[0], bool(fields[1]))
        case Code.END:
            return End()
        case Code.CLOSE:
            return Close()
        case _:
            return SaslInit(fields[0], fields[1] or b"")


def _attach(fields: list[Any], body: bytes) -> Attach:
    name, handle, role, snd, rcv = fields[:5]
    raw = split_list(body, _described_value(body))[0]
    source = raw[5] if len(raw) > 5 else b"\x40"
    target = raw[6] if len(raw) > 6 else b"\x40"
    return Attach(name, handle, role, 2 if snd is None else snd, rcv or 0, source, target, fields[13] or {})


def _described_value(data: bytes) -> int:
    """Return the position of the value in a described value."""
    return decode(data, 1)[1]


class Terminus(NamedTuple):
    """A source or a target, split so that one field can be changed and the rest be echoed."""

    descriptor: bytes
    fields: list[bytes]

    @classmethod
    def read(cls, data: bytes) -> Terminus | None:
        """Split an encoded terminus; None for null. Raises :class:`DecodeError`."""
        if data[0] == 0x40:
            return None
        if data[0] != 0x00:
            raise DecodeError("a source or target is not a described list")
        start = _described_value(data)
        return cls(data[:start], split_list(data, start)[0])

    @property
    def kind(self) -> Any:
        """The descriptor's value: a number, or a symbol."""
        return decode(self.descriptor, 1)[0]

    def field(self, index: int) -> Any:
        """Return the value of a field; None when it is absent."""
        return decode(self.fields[index])[0] if index < len(self.fields) else None

    def replaced(self, index: int, value: bytes) -> bytes:
        """Return the terminus, encoded, with another value in a field."""
        fields = self.fields + [b"\x40"] * (index + 1 - len(self.fields))
        fields[index] = value
        return self.descriptor + encode_list(fields)


# -- writing ----------------------------------------------------------------------------------------------


def frame(channel: int, body: bytes, kind: int = AMQP_FRAME) -> bytes:
    """Wrap a performative, and its payload if any, into a frame."""
    return struct.pack(">IBBH", len(body) + 8, 2, kind, channel) + body


def _performative(code: Code, *fields: Any) -> bytes:
    return encode_described(code, encode_list([encode(field) for field in fields]))


def sasl_mechanisms(mechanisms: Sequence[str]) -> bytes:
    """Return the server's offer. Several SDKs insist on an array even for one."""
    packed = b"".join(bytes((len(name),)) + name.encode("ascii") for name in mechanisms)
    array = bytes((0xE0, len(packed) + 2, len(mechanisms), 0xA3)) + packed
    return frame(0, _performative(Code.SASL_MECHANISMS, Raw(array)), SASL_FRAME)


def sasl_outcome(code: int) -> bytes:
    """Return the answer to the peer's choice: 0 is welcome, 1 is not."""
    return frame(0, _performative(Code.SASL_OUTCOME, UByte(code)), SASL_FRAME)


def open_(container_id: str, max_frame_size: int, channel_max: int, idle_timeout_ms: int) -> bytes:
    """Answer an open."""
    fields = (container_id, None, UInt(max_frame_size), Raw(b"\x60" + struct.pack(">H", channel_max)))
    return frame(0, _performative(Code.OPEN, *fields, UInt(idle_timeout_ms)))


def begin(channel: int, incoming_window: int, outgoing_window: int, handle_max: int) -> bytes:
    """Answer a begin; both sides use the same channel number, and transfer ids begin at 0."""
    remote_channel = Raw(b"\x60" + struct.pack(">H", channel))
    windows = (UInt(incoming_window), UInt(outgoing_window), UInt(handle_max))
    return frame(channel, _performative(Code.BEGIN, remote_channel, UInt(0), *windows))


def attach(
    channel: int,
    peer: Attach,
    source: bytes,
    target: bytes,
    *,
    max_message_size: int,
    properties: Mapping[str, Any] | None = None,
) -> bytes:
    """Answer an attach, with the peer's name, handle and modes, in the opposite role."""
    role = not peer.role
    return frame(
        channel,
        _performative(
            Code.ATTACH,
            peer.name,
            UInt(peer.handle),
            role,
            UByte(peer.snd_settle_mode),
            UByte(peer.rcv_settle_mode),
            Raw(source),
            Raw(target),
            None,
            None,
            UInt(0) if role is SENDER else None,
            Raw(b"\x80" + struct.pack(">Q", max_message_size)),
            None,
            None,
            {Symbol(key): value for key, value in properties.items()} if properties else None,
        ),
    )


def flow(
    channel: int, session: tuple[int, int, int, int], link: tuple[int, int, int, bool] | None = None
) -> bytes:
    """Tell the session's (next incoming id, incoming window, next outgoing id, outgoing window), and a
    link's (handle, delivery count, credit, drain)."""
    fields: list[Any] = [UInt(value) for value in session]
    if link is not None:
        handle, delivery_count, credit, drain = link
        fields += [UInt(handle), UInt(delivery_count), UInt(credit), UInt(0), drain]
    return frame(channel, _performative(Code.FLOW, *fields))


def detach(channel: int, handle: int, error: AmqpError | None = None, *, closed: bool = True) -> bytes:
    """End a link."""
    cause = Raw(error.encoded()) if error else None
    return frame(channel, _performative(Code.DETACH, UInt(handle), closed, cause))


def end(channel: int, error: AmqpError | None = None) -> bytes:
    """End a session."""
    return frame(channel, _performative(Code.END, Raw(error.encoded()) if error else None))


def close(error: AmqpError | None = None) -> bytes:
    """End the connection."""
    return frame(0, _performative(Code.CLOSE, Raw(error.encoded()) if error else None))


ACCEPTED = encode_described(OutcomeCode.ACCEPTED, b"\x45")
RELEASED = encode_described(OutcomeCode.RELEASED, b"\x45")
REJECTED = encode_described(OutcomeCode.REJECTED, b"\x45")


def rejected(error: AmqpError) -> bytes:
    """Return the outcome of a delivery that was refused."""
    return encode_described(OutcomeCode.REJECTED, encode_list([error.encoded()]))


def modified(*, failed: bool, undeliverable: bool) -> bytes:
    """Return the outcome of a delivery that was given back, or set aside."""
    return encode_described(OutcomeCode.MODIFIED, encode_list([encode(failed), encode(undeliverable)]))


# size, doff, type, channel, descriptor, list8, size, count, role, uint, first, null, true
_DISPOSITION = struct.Struct(">IBBH3sBBBBBIBB")


def disposition(channel: int, role: bool, delivery_id: int, state: bytes) -> bytes:
    """Settle one delivery with an encoded state."""
    if len(state) > 200:
        fields = (role, UInt(delivery_id), None, True, Raw(state))
        return frame(channel, _performative(Code.DISPOSITION, *fields))
    return _DISPOSITION.pack(
        _DISPOSITION.size + len(state), 2, 0, channel, b"\x00\x53\x15", 0xC0, 9 + len(state), 5,
        0x41 if role else 0x42, 0x70, delivery_id, 0x40, 0x41,
    ) + state  # fmt: skip


# size, doff, type, channel, descriptor, list8, size, count, uint, handle, uint, id, vbin8, length
_FIRST_TRANSFER = struct.Struct(">IBBH3sBBBBIBIBB")
_LAST_FIELDS = {(settled, more): bytes((0x43, 0x41 if settled else 0x42, 0x41 if more else 0x42))
                for settled in (False, True) for more in (False, True)}  # fmt: skip
TRANSFER_OVERHEAD = _FIRST_TRANSFER.size + 255 + 3


def transfer(
    channel: int, handle: int, delivery_id: int, tag: bytes, payload: bytes, *, settled: bool, more: bool
) -> bytes:
    """Encode one frame of a delivery, in the general message format. ``tag`` is at most 32 bytes."""
    listed = 13 + len(tag) + 3
    head = _FIRST_TRANSFER.pack(
        _FIRST_TRANSFER.size + len(tag) + 3 + len(payload), 2, 0, channel, b"\x00\x53\x14", 0xC0, listed, 6,
        0x70, handle, 0x70, delivery_id, 0xA0, len(tag),
    )  # fmt: skip
    return b"".join((head, tag, _LAST_FIELDS[settled, more], payload))

"""A client that speaks AMQP frame by frame, to the engine and to the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from batchflow.local.amqp.codec import (
    Described,
    UByte,
    UInt,
    ULong,
    decode,
    encode,
    encode_described,
    encode_list,
)
from batchflow.local.amqp.performatives import AMQP_HEADER, frame


class Frame(NamedTuple):
    """A frame that the server sent."""

    channel: int
    code: int
    fields: list[Any]
    payload: bytes


class AmqpClient:
    """A client that speaks AMQP frame by frame: ``feed`` takes bytes to the server and brings its answer."""

    def __init__(self, feed: Callable[[bytes], bytes]) -> None:
        self.feed = feed
        self.headers: list[bytes] = []

    def send(self, data: bytes) -> list[Frame]:
        """Send bytes and read the answer; protocol headers go to ``headers``."""
        answer, frames = self.feed(data), []
        while answer:
            if answer.startswith(b"AMQP"):
                self.headers.append(answer[:8])
                answer = answer[8:]
                continue
            size = int.from_bytes(answer[:4], "big")
            frame, answer = answer[:size], answer[size:]
            if size > 8:
                (code, fields), end = decode(frame, 8)
                frames.append(Frame(frame[6] << 8 | frame[7], code, fields, frame[end:]))
        return frames

    def perform(self, channel: int, code: int, *fields: Any, payload: bytes = b"") -> list[Frame]:
        """Send a performative."""
        listed = encode_list([encode(field) for field in fields])
        return self.send(frame(channel, encode_described(code, listed) + payload))

    def open(self, *, idle_ms: int | None = None, max_frame_size: int = 65_536) -> list[Frame]:
        """Exchange headers and open the connection and a session on channel 1."""
        idle = None if idle_ms is None else UInt(idle_ms)
        self.send(AMQP_HEADER)
        self.perform(0, 0x10, "test", None, UInt(max_frame_size), None, idle)
        return self.begin(1)

    def begin(self, channel: int, *, window: int = 1_000) -> list[Frame]:
        """Open a session."""
        return self.perform(channel, 0x11, None, UInt(0), UInt(window), UInt(1_000))

    def attach(
        self,
        handle: int,
        source: str | None,
        target: str | None,
        *,
        receives: bool,
        channel: int = 1,
        filters: dict[Any, Any] | None = None,
        properties: dict[Any, Any] | None = None,
        settle: tuple[int, int] = (0, 1),
    ) -> list[Frame]:
        """Attach a link."""
        origin = Described(ULong(0x28), [source, *[None] * 6, filters])
        destination = Described(ULong(0x29), [target])
        modes = (UByte(settle[0]), UByte(settle[1]))
        count = None if receives else UInt(0)
        rest = (origin, destination, None, None, count, None, None, None, properties)
        return self.perform(channel, 0x12, f"link-{handle}", UInt(handle), receives, *modes, *rest)

    def credit(
        self,
        handle: int,
        credit: int,
        *,
        seen: int = 0,
        window: int = 1_000,
        drain: bool = False,
        **more: Any,
    ) -> list[Frame]:
        """Give a link credit; ``seen`` is the link's delivery count, ``next_id`` the session's next id."""
        session = (UInt(more.get("next_id", 0)), UInt(window), UInt(0), UInt(1_000))
        return self.perform(1, 0x13, *session, UInt(handle), UInt(seen), UInt(credit), None, drain)

    def transfer(self, handle: int, delivery_id: int, payload: bytes, **more: Any) -> list[Frame]:
        """Send a message or a part of one."""
        head = (UInt(handle), UInt(delivery_id), b"tag", UInt(more.get("message_format", 0)))
        flags = (more.get("settled", False), more.get("more", False))
        return self.perform(more.get("channel", 1), 0x14, *head, *flags, payload=payload)

    def settle(self, delivery_id: int, state: int, *fields: Any) -> list[Frame]:
        """Settle a delivery with an outcome, and ask for the broker's own."""
        outcome = Described(ULong(state), list(fields))
        return self.perform(1, 0x15, True, UInt(delivery_id), None, False, outcome)


@pytest.fixture
def amqp_client() -> type[AmqpClient]:
    """The client that speaks frame by frame."""
    return AmqpClient

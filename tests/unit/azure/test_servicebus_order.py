"""In which order the local Service Bus writes to its connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batchflow.local.servicebus import server
from batchflow.ports.broker import OutgoingMessage

if TYPE_CHECKING:
    import pytest

    from tests.unit.azure.conftest import Bus


async def test_a_message_leaves_before_the_acknowledgement_of_its_sender(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody waits for the message; and each write takes as long as waking its reader."""
    queue = await bus.make()
    async with (
        await bus.broker.sender(queue) as sender,
        await bus.broker.receiver(queue, prefetch=5) as receiver,
    ):
        await sender.send(OutgoingMessage(b"first", "1"))
        assert await receiver.receive(10) is not None  # there is credit for four more
        written: list[bytes] = []
        send = server._AmqpWire.send

        def note(wire: server._AmqpWire, data: bytes, **options: Any) -> None:
            written.append(data)
            send(wire, data, **options)

        monkeypatch.setattr(server._AmqpWire, "send", note)
        waiting = asyncio.create_task(receiver.receive(10))
        await sender.send(OutgoingMessage(b"second", "2"))
        assert await waiting is not None
    holding = [number for number, data in enumerate(written) if b"second" in data]
    assert holding == [0]
    assert len(written) > 1

"""Links that are being opened while the rest of the agent is still being imported.

Opening one is mostly waiting, for some ten answers of the broker, and the first task needs two of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from batchflow.broker import Broker, Mailbox, QueueRef, Receiver, Sender


class OpenedAhead:
    """A broker that already opens the first receiver of each of `receive`, and sender to each of `send`.

    What goes wrong with one is told to who asks for it; who asks again gets a new one. To be made in the
    event loop.
    """

    def __init__(self, broker: Broker, *, receive: Iterable[QueueRef], send: Iterable[QueueRef]) -> None:
        self._broker = broker
        self._receivers = {
            queue: asyncio.ensure_future(broker.receiver(queue)) for queue in dict.fromkeys(receive)
        }
        self._senders = {queue: asyncio.ensure_future(broker.sender(queue)) for queue in dict.fromkeys(send)}

    async def sender(self, queue: QueueRef) -> Sender:
        opening = self._senders.pop(queue, None)
        return await (opening or self._broker.sender(queue))

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> Receiver:
        opening = None if prefetch or dead_letters else self._receivers.pop(queue, None)
        return await (opening or self._broker.receiver(queue, prefetch=prefetch, dead_letters=dead_letters))

    async def mailbox(self, queue: QueueRef, session_id: str, *, prefetch: int = 50) -> Mailbox:
        return await self._broker.mailbox(queue, session_id, prefetch=prefetch)

    async def aclose(self) -> None:
        await _drop([*self._receivers.values(), *self._senders.values()])
        await self._broker.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _drop(openings: list[asyncio.Future[Sender] | asyncio.Future[Receiver]]) -> None:
    """Nobody asked for them: what is open already the broker closes."""
    for opening in openings:
        opening.cancel()
    await asyncio.gather(*openings, return_exceptions=True)

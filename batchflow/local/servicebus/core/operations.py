"""What Service Bus charges for: the operations on one queue, counted (pure).

Two measures, for Azure has two (https://learn.microsoft.com/azure/service-bus-messaging/service-bus-throttling,
https://azure.microsoft.com/pricing/details/service-bus):

* Credits limit the Standard tier to 1,000 a second in a namespace: one for each message that is sent,
  received or peeked; settling and renewing cost none.
* Billed operations are all interactions: each message sent and each received, one for every 64 KB of it;
  each settlement; each request to the queue's management (renewing, scheduling, the state of a session).

Invariant: numbers only grow, for as long as the queue exists.
"""

from __future__ import annotations

from dataclasses import dataclass

BILLED_BYTES = 65_536
"""A larger message counts once for every such part of it."""


@dataclass(slots=True)
class Operations:
    """Operations on one queue and its dead-letter queue since it was created."""

    sent: int = 0
    """Messages that came in, also those that were scheduled or dropped as duplicates."""
    received: int = 0
    """Messages that went out, also those that were peeked at."""
    settled: int = 0
    requests: int = 0
    """To the queue's management."""
    more_parts: int = 0
    """Parts of 64 KB after the first, of messages in and out."""
    bytes: int = 0
    """Of messages, in and out."""

    @property
    def credits(self) -> int:
        return self.sent + self.received

    @property
    def billed(self) -> int:
        return self.sent + self.received + self.more_parts + self.settled + self.requests

    def came(self, size: int) -> None:
        """Count a message of so many bytes that was sent to the queue."""
        self.sent += 1
        self._weigh(size)

    def went(self, size: int) -> None:
        """Count a message of so many bytes that left the queue."""
        self.received += 1
        self._weigh(size)

    def _weigh(self, size: int) -> None:
        self.bytes += size
        self.more_parts += max(0, -(-size // BILLED_BYTES) - 1)

    def __sub__(self, earlier: Operations) -> Operations:
        """Return the operations between two counts."""
        return Operations(
            self.sent - earlier.sent,
            self.received - earlier.received,
            self.settled - earlier.settled,
            self.requests - earlier.requests,
            self.more_parts - earlier.more_parts,
            self.bytes - earlier.bytes,
        )

    def __add__(self, other: Operations) -> Operations:
        return self - (Operations() - other)

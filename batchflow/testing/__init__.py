"""Test doubles of the ports to the queues and to the blobs: in memory, in this process, without Azure.

They pass the same conformance tests as the adaptors to Azure. `MemoryBroker` is a thin shell over the core
that the local cloud's Service Bus is made of, so locks expire, deliveries are counted, duplicates dropped and
sessions held as there; it knows no keys, and access rules are kept but not enforced.

Both take a `clock` (seconds since the epoch). With one that a test moves by hand, call `MemoryBroker.tick`
after moving it, so that waiting receivers look again.
"""

from batchflow.testing.broker import MemoryBroker
from batchflow.testing.storage import MemoryContainer, MemoryStorage

__all__ = ["MemoryBroker", "MemoryContainer", "MemoryStorage"]

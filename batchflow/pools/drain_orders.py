"""The order to drain of a pool: one document, of which agents see only the last version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.errors import BlobConflict, BlobNotFound, ProtocolError
from batchflow.protocol import layout
from batchflow.protocol.documents import DrainOrder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import Heartbeat


async def read_order(ctl: Container, job: str) -> tuple[DrainOrder | None, str | None]:
    """Return the last order to agents of the job, if there is one, and the ETag of the document.

    Raises `StorageError`.
    """
    try:
        blob = await ctl.get(layout.DRAIN_BLOB)
    except BlobNotFound:
        return None, None
    try:
        order = DrainOrder.decode(blob.data)
    except ProtocolError:
        return None, blob.etag
    return order if order.job == job else None, blob.etag


def is_named(beat: Heartbeat, order: DrainOrder | None) -> bool:
    """Return whether an order means this agent."""
    if order is None:
        return False
    return (not order.nodes or beat.node in order.nodes) and (not order.agents or beat.agent in order.agents)


async def write_order(
    ctl: Container, job: str, grace: float, beats: Iterable[Heartbeat], etag: str | None
) -> bool:
    """Order these agents to drain, in place of the document with that ETag (None: there is none).

    Returns False when another client has written an order meanwhile. Raises `StorageError`.
    """
    named = {beat.agent: beat.node for beat in beats}
    order = DrainOrder(job, grace, nodes=tuple(named.values()), agents=tuple(named))
    try:
        await ctl.put(layout.DRAIN_BLOB, order.encode(), create=etag is None, if_match=etag)
    except (BlobConflict, BlobNotFound):
        return False
    return True


async def drain(
    ctl: Container, job: str, grace: float, leaving: Iterable[Heartbeat], alive: Iterable[Heartbeat]
) -> None:
    """Order agents to drain; those among `alive` that have not read an earlier order stay named.

    An order with a longer grace is an elastic pool's, which names its agents again. So it is replaced, and no
    task gets less time than it was promised. Raises `StorageError`.
    """
    while True:
        earlier, etag = await read_order(ctl, job)
        if earlier is not None and not earlier.nodes and not earlier.agents:
            return  # all agents of the job drain
        kept = alive if earlier is not None and earlier.grace <= grace else ()
        told = [beat for beat in kept if beat.state != "draining" and is_named(beat, earlier)]
        if await write_order(ctl, job, grace, [*leaving, *told], etag):
            return

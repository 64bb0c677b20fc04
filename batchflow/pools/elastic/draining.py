"""Orders to drain: the agents that an elastic pool could do without for long finish their tasks and leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchflow.pools.drain_orders import is_named, read_order, write_order
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import Heartbeat

logger = event_logger(__name__)

_UNTIL_DONE: Final = 30 * 86400.0
"""Seconds that the tasks of a draining agent may still run: longer than any does, so that none is stopped."""


def least_busy(
    beats: Sequence[Heartbeat], count: int, dedicated: Collection[str], kept: int
) -> list[Heartbeat]:
    """Choose so many agents at most: those with the fewest running tasks, spot nodes first.

    `dedicated`: the ids of dedicated nodes, of which `kept` stay.
    """
    to_spare = sum(beat.node in dedicated for beat in beats) - kept
    chosen: list[Heartbeat] = []
    for beat in sorted(beats, key=lambda beat: (len(beat.running), beat.node in dedicated, beat.agent)):
        if len(chosen) >= count:
            break
        if beat.node in dedicated:
            if to_spare <= 0:
                continue
            to_spare -= 1
        chosen.append(beat)
    return chosen


async def order_to_drain(
    ctl: Container, job: str, beats: Sequence[Heartbeat], count: int, dedicated: Collection[str], kept: int
) -> list[str]:
    """Tell agents of the job to drain until `count` are told; return those that are told anew.

    `beats`: of the agents that take tasks. Those among them that an earlier order names have not read it yet,
    and count. The order goes on to name them, because agents see only the last one. When another client
    writes an order meanwhile, this one is left out. Raises `StorageError`.
    """
    earlier, etag = await read_order(ctl, job)
    told = [beat for beat in beats if is_named(beat, earlier)]
    others = [beat for beat in beats if not is_named(beat, earlier)]
    new = least_busy(others, count - len(told), dedicated, kept)
    if not new or not await write_order(ctl, job, _UNTIL_DONE, [*told, *new], etag):
        return []  # the next look sees what another client wrote
    logger.info("agents_drain", extra={"job": job, "count": len(new)})
    return [beat.agent for beat in new]

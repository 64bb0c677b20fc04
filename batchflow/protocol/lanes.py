"""The lanes of a pool that shares its slots fairly: task queues, each for sessions of one priority. Pure.

Service Bus has no selective receive, so tasks of which some go before others are in queues of their own. The
lanes are made with the pool, because a client that may only send can make none. A session sends to one lane.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

from batchflow.errors import ConfigurationError

Priority = Literal["interactive", "normal", "bulk"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)
"""What goes first stands first."""

_LANES: Final[Mapping[Priority, int]] = {"interactive": 2, "normal": 8, "bulk": 2}
"""Sessions of a priority that have lanes of their own; what is more shares lanes."""
_WEIGHTS: Final[Mapping[Priority, float]] = {"interactive": 16.0, "normal": 4.0, "bulk": 1.0}
"""Shares of the slots, while lanes of all priorities have work: so none of them starves."""


def layout() -> tuple[Priority, ...]:
    """Return the priorities of a pool's lanes, in the order of its task queues."""
    return tuple(priority for priority in PRIORITIES for _ in range(_LANES[priority]))


def check_priority(priority: object) -> Priority:
    """Return the priority; None stands for "normal". Raises `ConfigurationError`."""
    for known in PRIORITIES:
        if priority == known:
            return known
    if priority is None:
        return "normal"
    raise ConfigurationError(f'priority is {priority!r}; "interactive", "normal" or "bulk" is needed')


def lane_for(lanes: Sequence[str], priority: Priority, mailbox: str, used: Mapping[int, int]) -> int:
    """Return the lane of a new session: that with the fewest sessions, of these one by the session's name.

    `used`: the numbers of sessions in the lanes, as far as they are known.
    """
    own = [lane for lane, each in enumerate(lanes) if each == priority] or list(range(len(lanes)))
    fewest = min(used.get(lane, 0) for lane in own)
    free = [lane for lane in own if used.get(lane, 0) == fewest]
    return free[zlib.crc32(mailbox.encode()) % len(free)]


def weight(priority: str) -> float:
    """Return the share of a lane of this priority; that of "normal" where it is not known."""
    return _WEIGHTS[check_priority(priority if priority in PRIORITIES else None)]


def rank(priority: str) -> int:
    """Return the place of a priority among all, from 0 on: what is lower goes first in an agent's hands."""
    return PRIORITIES.index(check_priority(priority if priority in PRIORITIES else None))

"""Times at which the periodic work of a process is due together, so that an idle process wakes seldom.

All work of one interval has the same times, and so has work of intervals that are multiples of each other.
The times of two processes differ, so that many agents do not ask a service at once.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Final

_SHIFT: Final = random.uniform(0.0, 60.0)
"""Seconds by which this process's times differ from the whole multiples of an interval."""


def next_turn(interval: float, now: float, shift: float = _SHIFT) -> float:
    """Return the next time that work of this interval is due: half an interval from now at the earliest.

    All in seconds, by the clock of `now`. A timer that fires a little early does not find its own turn again.
    """
    return (math.floor((now - shift) / interval + 0.5) + 1) * interval + shift


def until_turn(interval: float) -> float:
    """Return the seconds until work of this interval is due: between a half and one and a half intervals.

    Requires a running event loop.
    """
    now = asyncio.get_running_loop().time()
    return next_turn(interval, now) - now


async def sleep_until_turn(interval: float) -> None:
    """Sleep until work of this interval is due, between a half and one and a half intervals from now."""
    await asyncio.sleep(until_turn(interval))

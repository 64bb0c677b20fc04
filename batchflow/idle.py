"""What a process of batchflow's own gives back when it has worked and is idle again.

The C library keeps memory that was freed between what is still in use; after some hundred values of 100 KB
that is 10 MB of the local cloud and 4 of an agent. It keeps it for what comes next, so it is not asked for it
while there is work. A client's process is its user's, and left alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK: Final = 1.0
"""Seconds from one look at what was done to the next."""
_WORTH_IT: Final = 0.2
"""Seconds of CPU after which there may be something to give back."""
_IDLE: Final = 0.05
"""Of a processor: whoever uses less is idle."""


@dataclass(slots=True)
class Exertion:
    """How much was done since memory was given back last."""

    spent: float
    """Seconds of CPU at the last look."""
    done: float = 0.0

    def is_over(self, spent: float, passed: float) -> bool:
        """Whether this is the moment to give back. `spent`: seconds of CPU until now; `passed`: seconds since
        the last look."""
        used, self.spent = spent - self.spent, spent
        self.done += used
        if used > _IDLE * passed or self.done < _WORTH_IT:
            return False
        self.done = 0.0
        return True


async def give_back(look: float = LOOK) -> None:
    """For ever; where the C library cannot, for a moment."""
    trim = _trimming()
    if trim is None:
        return
    exertion = Exertion(0.0)
    while True:
        looked = time.monotonic()
        await asyncio.sleep(look)
        if exertion.is_over(time.process_time(), time.monotonic() - looked):
            trim(0)


def _trimming() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
    return trim

"""What a process gives back when it has worked and is idle again.

The C library keeps memory that was freed between what is still in use; after some hundred values of 100 KB
that is 40 MB of a client, 10 of the local cloud and 4 of an agent. It keeps it for what comes next, so it is
not asked for it while there is work.

Our own processes look every second (`give_back`). A client's process is its user's: it is woken for nothing,
asked only after much has come or gone in messages, and not at all when it is so large that looking through it
would hold it up (`Relief`).
"""

from __future__ import annotations

import asyncio
import os
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
MUCH: Final = 8 << 20
"""Bytes of messages after which a client may have something to give back."""
LARGEST: Final = 192 << 20
"""Resident bytes of a client's process: with so many it takes 5 ms, 20 at worst, and more with more."""


@dataclass(slots=True)
class ActivitySinceTrim:
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


async def trim(look: float = LOOK) -> None:
    """For ever; where the C library cannot, for a moment."""
    trim = _trimming()
    if trim is None:
        return
    exertion = ActivitySinceTrim(0.0)
    while True:
        looked = time.monotonic()
        await asyncio.sleep(look)
        if exertion.is_over(time.process_time(), time.monotonic() - looked):
            trim(0)


class HeapTrimmer:
    """Has a client's process give back what messages took, once it is idle. Belongs to one event loop."""

    def __init__(
        self, is_idle: Callable[[], bool], *, much: int = MUCH, largest: int = LARGEST, look: float = LOOK
    ) -> None:
        self._is_idle = is_idle
        self._much, self._largest, self._look = much, largest, look
        self._moved = 0
        self._timer: asyncio.TimerHandle | None = None

    def moved(self, size: int) -> None:
        """A message of `size` bytes came or went."""
        self._moved += size
        if self._moved >= self._much and self._timer is None:
            self._wait()

    def close(self) -> None:
        """Idempotent. What is due is given back now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._give_back()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look, self._at_look)

    def _at_look(self) -> None:
        if self._is_idle():
            self._timer = None
            self._give_back()
        else:
            self._wait()

    def _give_back(self) -> None:
        self._moved = 0
        trim = _trimming()
        if trim is not None and _resident() <= self._largest:
            trim(0)


def _resident() -> int:
    """Bytes. Only asked for where there is glibc, and so `/proc`."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trimming() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`."""
    import ctypes  # which a client needs for nothing else

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
    return trim

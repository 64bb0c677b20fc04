"""Waiting between tries."""

from __future__ import annotations

import random
from typing import Final

import anyio

FIRST: Final = 0.2
LONGEST: Final = 10.0


class Backoff:
    """Ever longer waits, by chance a little shorter, so that agents do not come back all at once."""

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        """Seconds."""
        self.tries = 0
        self._first = first
        self._longest = longest

    async def wait(self) -> None:
        delay = min(self._longest, self._first * 2 ** min(self.tries, 16))
        self.tries += 1
        await anyio.sleep(delay * random.uniform(0.5, 1.0))

    def reset(self) -> None:
        self.tries = 0

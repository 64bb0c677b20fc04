"""Warnings that come again and again, told less and less often. Pure."""

from __future__ import annotations

import re
from typing import Final

FIRST_PAUSE: Final = 10.0
"""Seconds for which the same warning is not told again; each further pause is twice as long."""
LONGEST_PAUSE: Final = 600.0
MOST_KINDS: Final = 1_000
"""Warnings that are remembered."""


class RepeatFilter:
    """Lets a warning that comes again and again through less and less often.

    Warnings that differ in numbers alone are the same. One that has not come for a while is a new one.
    """

    def __init__(self) -> None:
        self._next: dict[str, tuple[float, float]] = {}
        """When the warning is due again, and the pause after that."""

    def passes(self, message: str, now: float) -> bool:
        """Return whether the warning is to be told. `now`: seconds, of any clock."""
        kind = re.sub(r"\d+", "0", message)
        due, pause = self._next.get(kind, (now, FIRST_PAUSE))
        if now < due:
            return False
        if now >= due + LONGEST_PAUSE:
            pause = FIRST_PAUSE
        if len(self._next) >= MOST_KINDS:
            self._next.clear()
        self._next[kind] = (now + pause, min(2 * pause, LONGEST_PAUSE))
        return True

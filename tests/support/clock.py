"""The time that doubles of services tell."""

from __future__ import annotations

import time


class Clock:
    """The real time, and the seconds that a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

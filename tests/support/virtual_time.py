"""An event loop whose clock goes on to the next timer at once, for what lasts minutes on doubles."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

_REAL: float = 0.0005
"""Real seconds in which threads may answer before the clock goes on."""


class _Selector(selectors.DefaultSelector):
    """Waits for no timer: it moves the clock."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if ready := super().select(_REAL):
            return ready
        self._advance(timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Callable[[], float], advance: Callable[[float], None]) -> None:
        super().__init__(_Selector(advance))
        self._virtual = clock

    def time(self) -> float:
        return self._virtual()


def run(main: Callable[[], Coroutine[Any, Any, T]], monkeypatch: pytest.MonkeyPatch) -> T:
    """Run a coroutine function whose sleeps take no time. `time.time` and `time.monotonic` go with them.

    Nothing in it may wait for a socket or a process: these would answer late by that clock.
    """
    wall, passed = time.time(), 0.0

    def advance(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    def clock() -> float:
        return passed

    monkeypatch.setattr(time, "time", lambda: wall + passed)
    monkeypatch.setattr(time, "monotonic", clock)
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock, advance)) as runner:
        return runner.run(main())

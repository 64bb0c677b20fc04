"""Bounded waiting: a test that waits in vain fails, and says what it saw last."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

BOUND = 40.0
"""Seconds that anything may take on a busy machine before its test fails."""


async def within(work: Awaitable[T], seconds: float = BOUND) -> T:
    """Await work for a bounded time."""
    async with asyncio.timeout(seconds):
        return await work


async def eventually(
    condition: Callable[[], object], seconds: float = BOUND, *, pause: float = 0.001
) -> None:
    """Return when the condition holds. A condition may be a coroutine function.

    `pause`: seconds between two looks, more for a look that costs something."""
    async with asyncio.timeout(seconds):
        while not await _seen(condition):  # noqa: ASYNC110 - what is looked at has no event of its own
            await asyncio.sleep(pause)


async def eventually_equal(
    look: Callable[[], Awaitable[object]], wanted: object, seconds: float = BOUND, *, pause: float = 0.05
) -> None:
    """Return when a look shows what is wanted."""
    seen: object = None
    try:
        async with asyncio.timeout(seconds):
            while (seen := await look()) != wanted:  # noqa: ASYNC110 - a service can only be asked
                await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"expected {wanted!r}, still {seen!r}") from None


def eventually_blocking(
    condition: Callable[[], object], seconds: float = BOUND, *, pause: float = 0.01
) -> None:
    """Return when the condition holds; for tests without an event loop."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(pause)


async def _seen(condition: Callable[[], object]) -> object:
    seen = condition()
    return await seen if inspect.isawaitable(seen) else seen

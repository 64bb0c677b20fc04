"""What an input may cost: so much for its size, and a little for having come at all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tests.support.work import peak

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

SECONDS: Final = 0.1
SECONDS_FOR_BYTE: Final = 20e-6
BYTES: Final = 4_000_000
BYTES_FOR_BYTE: Final = 400
_TRIES: Final = 3
"""A machine that is busy is slow now and then; an input that is expensive is so each time."""


class OverBudget(Exception):
    """An input took more time or memory than its size allows."""


def check(target: Target, data: bytes) -> None:
    """Give an input to a target. Raises what the target raises, or :class:`OverBudget`."""
    allowed = SECONDS + SECONDS_FOR_BYTE * len(data)
    spent = _seconds(target, data)
    if spent > allowed:
        spent = min(spent, *(_seconds(target, data) for _ in range(_TRIES)))
        if spent > allowed:
            raise OverBudget(f"{len(data)} bytes took {spent:.3f} s of processor, {allowed:.3f} are allowed")


def check_memory(target: Target, data: bytes) -> None:
    """Give an input to a target and measure its memory, which takes several times as long."""
    allowed = BYTES + BYTES_FOR_BYTE * len(data)
    most = peak(lambda: target.read(data))
    if most > allowed:
        raise OverBudget(f"{len(data)} bytes took {most} bytes of memory, {allowed} are allowed")


def _seconds(target: Target, data: bytes) -> float:
    started = time.thread_time()
    target.read(data)
    return time.thread_time() - started

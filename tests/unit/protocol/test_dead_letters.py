"""Looking at dead letters without taking them."""

from __future__ import annotations

from typing import Any

import pytest

from batchflow.errors import BrokerError
from batchflow.protocol.dead_letters import seen


class Letters:
    """A receiver of two letters, and then of what a test says."""

    def __init__(self, then: BrokerError | None) -> None:
        self._letters: list[Any] = ["one", "two", then]
        self.abandoned: list[Any] = []

    async def receive(self, timeout: float) -> Any:
        letter = self._letters.pop(0)
        if isinstance(letter, BrokerError):
            raise letter
        return letter

    async def abandon(self, letter: Any) -> None:
        self.abandoned.append(letter)


async def test_letters_that_are_looked_at_stay_in_the_queue() -> None:
    """All at the end, or one would come again at the same look."""
    receiver = Letters(None)
    assert await seen(receiver) == ["one", "two"]  # type: ignore[arg-type, comparison-overlap]
    assert receiver.abandoned == ["one", "two"]


async def test_a_look_that_fails_midway_hands_back_what_it_has() -> None:
    """Else they would be locked for minutes, and no reader would find them."""
    receiver = Letters(BrokerError("the link is gone"))
    with pytest.raises(BrokerError):
        await seen(receiver)  # type: ignore[arg-type]
    assert receiver.abandoned == ["one", "two"]

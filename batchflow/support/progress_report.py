"""Reports the progress of a wait: each state as a line of text, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str], object]
"""A callback that gets each line."""


class Reporter:
    """Passes a line on when it differs from the last one, if a callback was given."""

    __slots__ = ("_progress", "_told")

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._told = ""

    def __call__(self, text: str) -> None:
        if self._progress is not None and text != self._told:
            self._told = text
            self._progress(text)


def counted(number: int, what: str) -> str:
    """Return a number with its noun, in the singular or the plural."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

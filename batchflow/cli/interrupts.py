"""Ctrl-C: the first asks for an end in order, the second is the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from batchflow.cli import terminal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = "\x1b[?25h"


class Interrupts:
    """The signals of one command. The first cancels the command, unless a handler answers it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first that came."""
        self.farewell = ""
        """The message that is shown when the user leaves at once."""
        self._task: asyncio.Task[Any] | None = None
        self._answer: Callable[[], None] | None = None

    def install(self) -> None:
        """Handle the signals for the calling task."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the command is to outlive its terminal
            loop.add_signal_handler(number, self._arrived, number)

    @contextlib.contextmanager
    def answered_by(self, answer: Callable[[], None]) -> Iterator[None]:
        """Call `answer` at the first signal within the block, instead of cancelling."""
        before, self._answer = self._answer, answer
        try:
            yield
        finally:
            self._answer = before

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGINT)

    def _arrived(self, number: int) -> None:
        if self.signal is not None:
            leave(128 + number, self.farewell)
        self.signal = number
        if self._answer is not None:
            self._answer()
        elif self._task is not None:
            self._task.cancel()


def leave(code: int, farewell: str) -> None:
    """End the process at once. Child processes see their lifeline end."""
    if terminal.is_live(sys.stderr):
        sys.stderr.write(f"{_SHOW_CURSOR}\n")
    terminal.note("\n".join(part for part in ("batchflow: left at once", farewell) if part))
    os._exit(code)

"""How far a run is, on stderr: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

from batchflow.cli import terminal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_LINE_EVERY: Final = 10.0
"""Seconds between two plain lines, at least."""
_NARROW: Final = 60
"""Columns below which a terminal has room for the numbers alone."""


class Progress(Protocol):
    """Told of each result; closed in the end."""

    def advance(self, done: int, failed: int) -> None: ...

    def note(self, text: str) -> None:
        """A line above it."""

    def line(self, text: str) -> None:
        """A result for stdout."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress(total: int, quiet: bool = False) -> Progress:
    """The fitting one."""
    if quiet or not terminal.is_live(sys.stderr):
        return Lines(total, quiet)
    return Bar(total)


class Lines:
    """Plain lines: at the start, every ten seconds, at the end."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._next = time.monotonic() + _LINE_EVERY

    def advance(self, done: int, failed: int) -> None:
        if not self._quiet and time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY
            terminal.note(f"{done} of {self._total} done, {failed} failed")

    def note(self, text: str) -> None:
        terminal.note(text)

    def line(self, text: str) -> None:
        terminal.write(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Bar:
    """A bar at the bottom of the terminal, which results and notes pass above."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        columns: list[ProgressColumn] = [TextColumn("{task.completed:.0f}/{task.total:.0f}")]
        if console.width >= _NARROW:
            columns = [BarColumn(), *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
        columns.append(TextColumn("{task.fields[failed]}", style="red"))
        self._bar = RichProgress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self._bar.add_task("", total=total, rate="", failed="")
        self._began = time.monotonic()
        self._at_start: int | None = None

    def advance(self, done: int, failed: int) -> None:
        if self._at_start is None:
            self._at_start = done
        seconds = time.monotonic() - self._began
        rate = (done - self._at_start) / seconds if seconds > 1 else 0.0
        failures = f"{failed} failed" if failed else ""
        self._bar.update(self._task, completed=done, rate=f"{rate:,.0f}/s" if rate else "", failed=failures)

    def note(self, text: str) -> None:
        self._above(text)

    def line(self, text: str) -> None:
        if sys.stdout is not None and sys.stdout.isatty():
            self._above(text)
        else:
            terminal.write(text)

    def _above(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

"""How far a run is, on stderr: a bar on a terminal, plain lines now and then elsewhere. `Meter` says it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

from batchflow.cli import terminal
from batchflow.display.meter import Meter, fitting
from batchflow.printable import printable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.text import Text

_LINE_EVERY: Final = 10.0
"""Seconds between two plain lines, at least."""
_BAR: Final = 20
"""Columns of the bar."""
_BESIDE: Final = 56
"""Columns that the counts and the time left may take beside it."""


class Progress(Protocol):
    """Told of each result; closed in the end."""

    def advance(self) -> None:
        """Show what the meter has counted."""

    def note(self, text: str) -> None:
        """Write a line above the display."""

    def line(self, text: str) -> None:
        """Write the line of a result to stdout."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress(meter: Meter, quiet: bool = False) -> Progress:
    """Return the progress display for this terminal."""
    if quiet or not terminal.is_live(sys.stderr):
        return Lines(meter, quiet)
    return Bar(meter)


class Lines:
    """A plain line every ten seconds."""

    def __init__(self, meter: Meter, quiet: bool = False) -> None:
        self._meter = meter
        self._quiet = quiet
        self._next = time.monotonic() + _LINE_EVERY

    def advance(self) -> None:
        now = time.monotonic()
        self._meter.start(now)
        if not self._quiet and now >= self._next:
            self._next = now + _LINE_EVERY
            terminal.note(fitting(self._meter.facts(now), 0))

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


class Silent(Lines):
    """Nothing of the results: they go into the record alone."""

    def line(self, text: str) -> None:
        return None


class Bar:
    """A bar at the bottom of the terminal, which results and notes pass above."""

    def __init__(self, meter: Meter) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, Task
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        wide = console.width >= _BAR + _BESIDE

        class Facts(ProgressColumn):
            def render(self, task: Task) -> Text:
                return _drawn(meter, console.width - (_BAR + 1 if wide else 0))

        columns = (BarColumn(_BAR), Facts()) if wide else (Facts(),)
        self._meter = meter
        self._bar = RichProgress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self._bar.add_task("", total=meter.total, completed=meter.done)

    def advance(self) -> None:
        self._meter.start(time.monotonic())
        self._bar.update(self._task, completed=self._meter.done)

    def note(self, text: str) -> None:
        self._above(text)

    def line(self, text: str) -> None:
        if sys.stdout is not None and sys.stdout.isatty():
            self._above(text)
        else:
            terminal.write(text)

    def _above(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True, emoji=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _drawn(meter: Meter, width: int) -> Text:
    from rich.text import Text

    text = Text(fitting(meter.facts(time.monotonic()), width), no_wrap=True)
    text.highlight_regex(r"[\d,]+ (failed|cancelled)", "red")
    return text

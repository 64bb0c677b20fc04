"""Displays of a stream's progress: in a notebook, on a terminal, in a log.

In a notebook (Jupyter, VS Code, Colab: any front end of an IPython kernel) it is one output that changes,
HTML with text beside it, without widgets. On a terminal it is one line of stderr that changes. Elsewhere it
is a line of stderr for each tenth, or each half a minute.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any, Final, Protocol, TextIO

from batchflow.display.meter import Meter

_PAUSE: Final = 0.1
"""Seconds between two changes of what is shown."""
_STEPS: Final = 10
_SILENCE: Final = 30.0
"""Seconds after which a log gets a line in any case."""


class Display(Protocol):
    """A place where progress is shown."""

    pause: float
    """Seconds between two calls of `show`."""

    def show(self, meter: Meter, now: float) -> None:
        """Show the present state."""

    def finish(self, meter: Meter, now: float) -> None:
        """Show the last state and leave it there."""


def choose_display() -> Display:
    """Return the display that fits the environment of this program."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:
        return Notebook()
    return Terminal(sys.stderr) if sys.stderr.isatty() else Log(sys.stderr)


class Notebook:
    """One output of a notebook's cell, updated in place."""

    pause = _PAUSE

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, meter: Meter, now: float) -> None:
        from IPython.display import DisplayHandle

        bundle = {"text/html": str(meter.view(now)), "text/plain": meter.line(now)}
        if self._handle is None:
            self._handle = DisplayHandle()  # type: ignore[no-untyped-call]
            self._handle.display(bundle, raw=True)
        else:
            self._handle.update(bundle, raw=True)

    def finish(self, meter: Meter, now: float) -> None:
        self.show(meter, now)


class Terminal:
    """One line of a terminal, updated in place."""

    pause = _PAUSE

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, meter: Meter, now: float) -> None:
        width = max(1, shutil.get_terminal_size().columns - 1)
        self._stream.write(f"\r\x1b[K{meter.line(now, width)}")
        self._stream.flush()

    def finish(self, meter: Meter, now: float) -> None:
        self.show(meter, now)
        self._stream.write("\n")
        self._stream.flush()


class Log:
    """A line of a log for each tenth of the work, or each half a minute."""

    pause = 0.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step = 0
        self._at: float | None = None

    def show(self, meter: Meter, now: float) -> None:
        step = meter.done * _STEPS // meter.total if meter.total else 0
        if self._at is None:
            self._at = now
        if step != self._step or now - self._at >= _SILENCE:
            self._write(meter, now)
            self._step, self._at = step, now

    def finish(self, meter: Meter, now: float) -> None:
        self._write(meter, now)

    def _write(self, meter: Meter, now: float) -> None:
        self._stream.write(f"{meter.line(now)}\n")
        self._stream.flush()

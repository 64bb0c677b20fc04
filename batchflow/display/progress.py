"""Shows how far a stream of results is, where somebody looks: a notebook, a terminal, a log.

In a notebook (Jupyter, VS Code, Colab: whatever runs an IPython kernel) it is one output that changes, HTML
with text beside it, without widgets. On a terminal it is one line of stderr that changes. Elsewhere it is a
line of stderr for each tenth, or each half a minute.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from batchflow.display.meter import Meter
from batchflow.streams import ResultStream

if TYPE_CHECKING:
    from batchflow.model import Result

_PAUSE: Final = 0.1
"""Seconds between two changes of what is shown."""
_STEPS: Final = 10
_SILENCE: Final = 30.0
"""Seconds after which a log gets a line, however little has come."""


class Display(Protocol):
    """Somewhere to show it."""

    pause: float
    """Seconds between two calls of `show`."""

    def show(self, meter: Meter, now: float) -> None: ...

    def finish(self, meter: Meter, now: float) -> None:
        """Show the last state, and leave it there."""


class ProgressStream(ResultStream):
    """`stream.progress()`: the same results, shown as they are read."""

    def __init__(
        self, stream: ResultStream, total: int | None, label: str, display: Display | None = None
    ) -> None:
        self._stream = stream
        self._total = total
        self._meter = Meter(label, total)
        self._display = display or where_somebody_looks()
        self._shown = -float("inf")
        self._finished = False

    async def __anext__(self) -> Result:
        """Safe to cancel. Raises what the stream raises."""
        self._meter.start(time.monotonic())
        self._show()
        try:
            result = await anext(self._stream)
        except StopAsyncIteration:
            self._finish()
            raise
        self._meter.add(result, time.monotonic())
        return result

    @property
    def left(self) -> int | None:
        return self._stream.left

    async def aclose(self) -> None:
        """Close the stream, too. Idempotent."""
        self._finish()
        await self._stream.aclose()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown >= self._display.pause:
            self._shown = now
            self._guess()
            self._display.show(self._meter, now)

    def _finish(self) -> None:
        if not self._finished and self._meter.started is not None:
            self._finished = True
            self._guess()
            self._display.finish(self._meter, time.monotonic())

    def _guess(self) -> None:
        """The total, where nobody said it and the stream can tell."""
        if self._total is None:
            left = self._stream.left
            self._meter.total = None if left is None else self._meter.done + left


def where_somebody_looks() -> Display:
    """The display that fits what this program runs in."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:
        return Notebook()
    return Terminal(sys.stderr) if sys.stderr.isatty() else Log(sys.stderr)


class Notebook:
    """One output of a cell, which changes."""

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
    """One line, which changes."""

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
    """A line now and then."""

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

"""What is written where: results to stdout, everything else to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

from batchflow.cli.exits import CommandError, Exit, StdoutClosed
from batchflow.printable import printable, printable_json


def fill_standard_streams() -> None:
    """Open the null device where one is closed, so that no socket becomes one; write UTF-8."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # JSON is UTF-8 in every locale; a lone surrogate becomes the escape that JSON has for it.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def write(line: str, file: IO[str] | None = None) -> None:
    """Write a line to stdout or to a file of results, and flush it. A terminal gets no control characters.

    Raises `StdoutClosed`, and `CommandError` when it cannot be written for another reason.
    """
    out = file or sys.stdout
    try:
        if out is None:
            raise BrokenPipeError
        out.write(f"{printable(line) if out.isatty() else line}\n")
        out.flush()
    except BrokenPipeError:
        _drop(file)
        raise StdoutClosed from None
    except OSError as error:
        _drop(file)
        raise _unwritten(file, error) from error


def close(file: IO[str]) -> None:
    """Close an output file. Raises `CommandError` when its data could not be written."""
    try:
        file.close()
    except OSError as error:
        raise _unwritten(file, error) from error


def _drop(file: IO[str] | None) -> None:
    """Let what could not be written, which a last flush tries again, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1 if file is None else file.fileno())
    os.close(null)


def _unwritten(file: IO[str] | None, error: OSError) -> CommandError:
    name = "stdout" if file is None else file.name
    return CommandError(f"cannot write to {name}: {error.strerror}", Exit.OUTPUT)


def encode(value: Any) -> str:
    """Return a line of JSON, without control characters."""
    return printable_json(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def write_json(value: Any) -> None:
    write(encode(value))


def note(text: str) -> None:
    """Write a line to stderr, without control characters; a closed stderr does not stop the command."""
    try:
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()
    except OSError:
        return


def write_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write columns as wide as they must be; on a terminal that is too narrow, the last one is cut."""
    lines = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        write(_fit("  ".join(cells).rstrip()))


def _fit(line: str) -> str:
    if sys.stdout is None or not sys.stdout.isatty():
        return line
    width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
    return line if len(line) <= width else f"{line[: max(1, width - 1)]}…"


def is_live(stream: IO[str] | None) -> bool:
    """Tell whether a stream is a terminal on which lines can be updated."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")

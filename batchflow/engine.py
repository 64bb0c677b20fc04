"""The engine that `do_action(engine, args)` gets: its public interface.

::

    from batchflow.engine import Engine

    def do_action(engine: Engine, args: list[Any]) -> Any:
        lines = engine.java_runner(args)
        return lines, "no error"

Importing this loads nothing but the standard library; a task's file needs it for annotations only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class JavaError(Exception):
    """`engine.java_runner` could not start Java, or Java ended with an exit code other than 0.

    Raised inside `do_action`; left alone, it makes the task fail with this text.
    """

    def __init__(self, message: str, *, exit_code: int | None = None, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """None: Java did not start. Negative: the number of the signal that ended it."""
        self.lines = lines
        """What it printed: the lines of stdout, then those of stderr."""


class Engine(Protocol):
    """A task's view of the node that runs it. Usable from any thread of the task, while the task runs."""

    @property
    def task_id(self) -> str:
        """The label that the task was submitted with."""

    @property
    def job_id(self) -> str: ...

    @property
    def client(self) -> str:
        """The name of the session that submitted the task."""

    @property
    def attempt(self) -> int:
        """1 at the first try."""

    @property
    def node(self) -> str:
        """The host name of this node."""

    @property
    def working_dir(self) -> Path:
        """The current directory: holds the bundle's files by name; emptied of everything else afterwards."""

    @property
    def bundle_dir(self) -> Path:
        """The folder of the bundle's files, to be read: the working directory."""

    @property
    def outputs(self) -> Path:
        """The folder whose files are kept, and listed in the result: `working_dir / "outputs"`."""

    @property
    def cancelled(self) -> bool:
        """Whether the task has to end, because it was cancelled or its time is up.

        Code that looks at this has a moment to stop by itself before its process is told to (SIGTERM) and
        then made to (SIGKILL).
        """

    def log(self, message: object) -> None:
        """Send a line to the session's events at once. Lines above a maximum rate are only counted."""

    def progress(self, done: float, total: float | None = None) -> None:
        """Report how far the task is to the session's events; same rate as `log`."""

    @property
    def traceparent(self) -> str | None:
        """The W3C `traceparent` of the task's trace, for libraries that trace by themselves.

        None for a task that is not traced.
        """

    def span(self, name: str, **attributes: str | bool | int | float) -> AbstractContextManager[Any]:
        """Add a span to the task's trace: the time that the block takes. Spans in a block are its children.

        An exception in the block marks it as failed. Does nothing in a task that is not traced. A task adds
        at most 64 spans.
        """

    def upload(self, path: str | Path, name: str | None = None) -> str:
        """Keep a file as it is now: copied to `outputs` under its base name, or under `name`.

        Returns the name that the result will list. Raises OSError as copying does, ValueError for a name
        that does not stay in the folder.
        """

    def java_runner(self, *command: Any, check: bool = True) -> list[str]:
        """Run Java in the working directory; returns the lines of stdout followed by those of stderr.

        Either a jar and its arguments, `java_runner("pi.jar", "100")`, or a whole command line, as one list
        or as several arguments: `java_runner(["java", "-Xmx64m", "-jar", "pi.jar", "100"])`.

        Raises `JavaError` when there is no Java, or, unless `check=False`, for an exit code other than 0.
        """

    async def run_java(self, *command: Any, check: bool = True) -> list[str]:
        """Run Java as `java_runner` does, for an async `do_action`: several at once with `asyncio.gather`."""


class _Running:
    """The task that this process runs."""

    engine: Engine | None = None


def current_engine() -> Engine:
    """Return the engine of the task that runs, for functions, which are not given one.

    Usable from any thread of the task. Raises RuntimeError where no task runs, as in the user's own program.
    """
    if _Running.engine is None:
        raise RuntimeError("current_engine: no task runs in this process")
    return _Running.engine


def enter(engine: Engine | None) -> None:
    """Let `current_engine` return this engine; None: no task runs any more. For what runs tasks."""
    _Running.engine = engine

"""The engine: what `do_action` is given, in the child. See `batchflow.engine` for what each part promises."""

from __future__ import annotations

import os
from pathlib import Path

from node_agent.child import java
from node_agent.system import file_stamps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from node_agent.child.spans import TaskSpan

    class Line(Protocol):
        """What an engine needs of what runs the task."""

        def cancelled(self) -> bool: ...

        def note(self, kind: str, message: str, data: Any) -> None:
            """Send a log line or progress."""

        def run(self, command: list[str]) -> dict[str, Any]:
            """Run a program to its end: `exit_code`, `stdout`, `stderr`, or `error` when it did not start."""

        async def run_async(self, command: list[str]) -> dict[str, Any]: ...


_LONGEST_NOTE = 16 * 1024


class TaskEngine:
    """The engine of one task; it refuses to work after the task's end, and in forks of its process."""

    def __init__(
        self,
        line: Line,
        *,
        task_id: str,
        job_id: str,
        client: str,
        attempt: int,
        node: str,
        working_dir: str,
        trace: str | None = None,
    ) -> None:
        self._line: Line | None = line
        self._pid = os.getpid()
        self.task_id = task_id
        self.job_id = job_id
        self.client = client
        self.attempt = attempt
        self.node = node
        self._working_dir = working_dir
        self.traceparent = trace

    def __repr__(self) -> str:
        return f"<engine of task {self.task_id!r}, attempt {self.attempt}>"

    @property
    def working_dir(self) -> Path:
        return Path(self._working_dir)

    @property
    def bundle_dir(self) -> Path:
        return Path(self._working_dir)

    @property
    def outputs(self) -> Path:
        return Path(self._working_dir, "outputs")

    @property
    def cancelled(self) -> bool:
        return self._open_line().cancelled()

    def log(self, message: object) -> None:
        self._open_line().note("log", str(message)[:_LONGEST_NOTE], None)

    def progress(self, done: float, total: float | None = None) -> None:
        text = f"{done}" if total is None else f"{done}/{total}"
        self._open_line().note("progress", text, {"done": done, "total": total})

    def span(self, name: str, **attributes: Any) -> TaskSpan:
        from node_agent.child.spans import TaskSpan

        line = self._open_line()
        note = None if self.traceparent is None else lambda data: line.note("span", data["name"], data)
        return TaskSpan(note, name, attributes)

    def upload(self, path: str | Path, name: str | None = None) -> str:
        self._open_line()
        name = Path(path).name if name is None else name
        target = Path(os.path.normpath(self.outputs / name))
        if name.startswith("/") or self.outputs not in target.parents:
            raise ValueError(f"upload: the name {name!r} does not stay in the output folder")
        if os.path.realpath(path) != os.path.realpath(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file_stamps.copy(os.fspath(path), os.fspath(target))
        return str(target.relative_to(self.outputs))

    def java_runner(self, *command: Any, check: bool = True) -> list[str]:
        argv = java.command_line(command)
        return java.lines_of(argv, self._open_line().run(argv), check=check)

    async def run_java(self, *command: Any, check: bool = True) -> list[str]:
        argv = java.command_line(command)
        return java.lines_of(argv, await self._open_line().run_async(argv), check=check)

    def close(self) -> None:
        """End what the task may use, for it is over."""
        self._line = None

    def _open_line(self) -> Line:
        if self._line is None:
            raise RuntimeError(f"task {self.task_id!r} is over: its engine does nothing any more")
        if os.getpid() != self._pid:
            raise RuntimeError("the engine works in the task's own process only, not in a fork of it")
        return self._line

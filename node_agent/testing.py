"""An engine for tests: call a `do_action` directly, in the test's own process.

::

    from node_agent.testing import engine

    def test_my_task(tmp_path):
        assert do_action(engine(tmp_path), [20]) == 400

Programs really run (in `folder`, which is also the working directory as far as the engine says; the current
directory is left alone); logs and progress are recorded; nothing is limited, and nothing is killed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node_agent.child import java
from node_agent.child.engine import TaskEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.engine import Engine

__all__ = ["RecordingEngine", "engine"]


class _Recorder:
    """What an agent does for an engine, done on the spot."""

    def __init__(self, folder: Path) -> None:
        self.is_cancelled = False
        self.notes: list[tuple[str, str, Any]] = []
        self._folder = folder

    def cancelled(self) -> bool:
        return self.is_cancelled

    def note(self, kind: str, message: str, data: Any) -> None:
        self.notes.append((kind, message, data))

    def run(self, command: list[str]) -> dict[str, Any]:
        if (argv := _found(command)) is None:
            return {"error": java.MISSING}
        ended = subprocess.run(
            argv, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return _reply(ended.returncode, ended.stdout, ended.stderr)

    async def run_async(self, command: list[str]) -> dict[str, Any]:
        if (argv := _found(command)) is None:
            return {"error": java.MISSING}
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        return _reply(process.returncode or 0, stdout, stderr)


class RecordingEngine(TaskEngine):
    """The engine that tasks get, with what they said to be looked at."""

    def __init__(self, recorder: _Recorder, **labels: Any) -> None:
        super().__init__(recorder, **labels)
        self._recorder = recorder

    def cancel(self) -> None:
        """Let `cancelled` be true from now on."""
        self._recorder.is_cancelled = True

    @property
    def logs(self) -> list[str]:
        """The lines given to `log`."""
        return [message for kind, message, _ in self._recorder.notes if kind == "log"]

    @property
    def steps(self) -> list[tuple[float, float | None]]:
        """What `progress` was called with."""
        return [(data["done"], data["total"]) for kind, _, data in self._recorder.notes if kind == "progress"]

    @property
    def uploaded(self) -> list[str]:
        """The names of the files in `outputs`, sorted."""
        found = (path for path in self.outputs.rglob("*") if path.is_file() and not path.is_symlink())
        return sorted(path.relative_to(self.outputs).as_posix() for path in found)


def engine(
    folder: str | os.PathLike[str],
    *,
    task_id: str = "0",
    job_id: str = "test",
    client: str = "test",
    attempt: int = 1,
    node: str = "localhost",
) -> RecordingEngine:
    """Return an engine whose working directory is `folder`, where the task's files should lie."""
    path = Path(folder).absolute()
    (path / "outputs").mkdir(parents=True, exist_ok=True)
    return RecordingEngine(
        _Recorder(path),
        task_id=task_id,
        job_id=job_id,
        client=client,
        attempt=attempt,
        node=node,
        working_dir=str(path),
    )


def _found(command: Sequence[str]) -> list[str] | None:
    """Return the command with `java` where it really is; None when it is nowhere."""
    first, *rest = command
    found = java.find() if first == "java" else first
    return None if found is None else [found, *rest]


def _reply(exit_code: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    return {
        "exit_code": exit_code,
        "stdout": stdout.decode("utf-8", "replace"),
        "stderr": stderr.decode("utf-8", "replace"),
    }


def _is_an_engine(made: RecordingEngine) -> Engine:
    """Let the type checker prove that what tests get has all that tasks may use."""
    return made

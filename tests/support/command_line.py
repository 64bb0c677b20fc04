"""Starts the program, in pipes and on terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "batchflow")
PATIENCE = 120.0
"""Seconds that a command may take before it counts as hung."""

TASKS = {
    "square.py": "def do_action(engine, args):\n    return args[0] ** 2\n",
    "echo.py": "def do_action(engine, args):\n    print('echo', args)\n    return args\n",
    "talk.py": "import time\ndef do_action(engine, args):\n    print(args[0])\n    time.sleep(0.5)\n",
    "nap.py": "import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n    return args[0]\n",
    "gate.py": (
        "import os, time\n"
        "def do_action(engine, args):\n"
        "    path, number = args\n"
        "    with open(os.path.join(path, 'began'), 'a') as file:\n"
        "        file.write(f'{number}\\n')\n"
        "    while not os.path.exists(os.path.join(path, 'open')):\n"
        "        time.sleep(0.01)\n"
        "    return number\n"
    ),
    "flaky.py": (
        "import os\n"
        "def do_action(engine, args):\n"
        "    try:\n"
        "        os.close(os.open(args[0], os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError:\n"
        "        return 'second'\n"
        "    raise ValueError('the first attempt')\n"
    ),
}


Inside = Callable[..., subprocess.CompletedProcess[str]]
"""Called with the `Cli` and its arguments."""


@dataclass(frozen=True)
class Cli:
    """The program, started in a folder, with runtime and state folders of its own."""

    folder: Path
    runtime: Path | None = None
    inside: Inside | None = None
    """Runs what is called and waited for, instead of a process for each, which takes a second to import."""

    @property
    def environment(self) -> dict[str, str]:
        runtime = self.runtime or self.folder / "runtime"
        runtime.mkdir(exist_ok=True)
        own = ("BATCHFLOW_", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        state = self.folder / "state"
        return {**kept, "XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(state), "TERM": "xterm"}

    def elsewhere(self, folder: Path) -> Cli:
        return replace(self, folder=folder, runtime=self.runtime or self.folder / "runtime")

    def outside(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the program in a process of its own, as its users do."""
        return replace(self, inside=None)(*arguments, **options)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def __call__(
        self, *arguments: str, text: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        if self.inside is not None and text is None and env is None:
            return self.inside(self, *arguments)
        return subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        return subprocess.Popen(
            [*PROGRAM, *arguments], cwd=self.folder, env=self.environment, text=True, **pipes
        )

    def rows(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """Return the JSON lines that a command prints, in the order of their index."""
        ended = self(*arguments)
        assert ended.returncode == code, ended.stderr
        return parsed(ended.stdout)

    def on_terminal(self, *arguments: str, columns: int = 80, lines: int = 24) -> Terminal:
        return Terminal(self, arguments, columns, lines)


def parsed(text: str) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda row: row.get("index", 0))


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, cli: Cli, arguments: tuple[str, ...], columns: int, lines: int) -> None:
        self.said = ""
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:  # pragma: no cover - the child
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
                os.chdir(cli.folder)
                os.execvpe(PROGRAM[0], [*PROGRAM, *arguments], cli.environment)
            finally:
                os._exit(127)

    def until(self, wanted: Callable[[str], bool] | str) -> str:
        """Read until the terminal shows it."""
        shown = (lambda text: wanted in text) if isinstance(wanted, str) else wanted
        end = time.monotonic() + PATIENCE
        while not shown(self.said):
            assert time.monotonic() < end, self.said
            if not self._read():
                assert shown(self.said), self.said
        return self.said

    def _read(self) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], PATIENCE)
        try:
            data = os.read(self._descriptor, 65536) if ready else b""
        except OSError:
            return False
        self.said += data.decode(errors="replace")
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self._pid, 0)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=PATIENCE)

"""A contender as a process: started, given its workloads, weighed, ended with all that it started."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from batchflow.support.linux import process_table
from tests.benchmarks.harness import MEGABYTE, process_tree
from tests.benchmarks.servers import Server

CONTENDERS = Path(__file__).parent / "contenders"
ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv" / "peers" / "bin" / "python"
MARK = "BATCHFLOW_BENCH_CONTENDER"
EXIT_SECONDS = 20.0


class Failed(Exception):
    """A contender did not do what it was told to; the end of what it said about it."""


class ContenderProcess:
    """`start` returns at its first result; leaving the block ends it and whatever it has left behind."""

    def __init__(self, program: str, python: Path, server: Server) -> None:
        self._program = CONTENDERS / program
        self._python = python
        self._mark = uuid.uuid4().hex
        self._server = server.pids
        self._environment = {**server.environment, MARK: self._mark, "PYTHONPATH": f"{CONTENDERS}:{ROOT}"}
        self._environment["PATH"] = f"{python.parent}:{os.environ['PATH']}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving the block
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        for pid in self._marked():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, limit: float) -> float:
        """Seconds from the start of the program to its first result."""
        started = time.perf_counter()
        self._process: Any = subprocess.Popen(
            [str(self._python), str(self._program)],
            env={**os.environ, **self._environment},
            cwd=CONTENDERS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._read(limit)
        return time.perf_counter() - started

    def measure(self, workload: str, count: int, limit: float) -> Any:
        """What the contender measured: seconds, one or many."""
        order = json.dumps({"workload": workload, "count": count})
        self._process.stdin.write(order.encode() + b"\n")
        self._process.stdin.flush()
        answer = self._read(limit)
        if "error" in answer:
            raise Failed(f"{workload}: {answer['error'].strip().splitlines()[-1]}")
        return answer["value"]

    def resident(self) -> float:
        """MB of all its processes and of its broker's."""
        tree = process_tree(*self._server, *self._marked())
        return sum(process.resident for process in tree) / MEGABYTE

    def _marked(self) -> list[int]:
        """All that inherited the mark, also those whose parents have ended."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for pid in process_table():
            with suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def _read(self, limit: float) -> dict[str, Any]:
        until = time.monotonic() + limit
        stdout = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise Failed(f"no answer in {limit:.0f} s")
            piece = os.read(stdout, 1 << 20)
            if not piece:
                raise Failed(f"ended: {self._last_words()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


OWN_PYTHON = Path(sys.executable)

"""A program that is run to its end: its output, its failure, its cancellation."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from batchflow.environments.commands import CommandFailed, run_command
from batchflow.errors import ConfigurationError
from tests.support.processes import is_alive
from tests.support.waiting import eventually


async def test_output_of_a_program_is_returned() -> None:
    assert await run_command([sys.executable, "-c", "print('done')"]) == "done\n"


async def test_failure_repeats_the_end_of_stderr() -> None:
    with pytest.raises(CommandFailed, match=r"^x+ no such package$") as failed:
        await run_command([sys.executable, "-c", "import sys; sys.exit('x' * 9999 + ' no such package')"])
    assert len(str(failed.value)) == 4000


async def test_cancellation_kills_the_program(tmp_path: Path) -> None:
    written = tmp_path / "pid"
    script = f"import os, time; open({str(written)!r}, 'x').write(str(os.getpid())); time.sleep(600)"
    running = asyncio.create_task(run_command([sys.executable, "-c", script]))
    await eventually(lambda: written.exists() and bool(written.read_text()))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_alive(int(written.read_text()))


async def test_ignored_sigchld_is_named_instead_of_taken_for_success() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ConfigurationError, match=r"signal\.SIGCHLD, signal\.SIG_DFL"):
            await run_command([sys.executable, "-c", "raise SystemExit(3)"])
    finally:
        signal.signal(signal.SIGCHLD, before)

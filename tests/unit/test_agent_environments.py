"""The agent works where other packages have changed asyncio."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = ("tests/unit/test_agent_hand_back.py", "tests/unit/execution/test_slot_loop.py")


@pytest.mark.parametrize("patch", ["nested", "uvloop"])
def test_the_agents_tests_pass_where_asyncio_is_patched(patch: str) -> None:
    """With sniffio and trio imported: re-entrant loops as in notebooks, and loops that are not asyncio's."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-p", "tests.support.loop_patches", *TESTS]
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PATCH": patch},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]

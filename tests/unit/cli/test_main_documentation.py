"""The pages about the command line and the configuration are what the code makes of them, and what runs."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import PATIENCE, TASKS, Cli

DOCS = Path(__file__).parents[3] / "docs"
_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["cli.md", "configuration.md"])
def test_what_is_made_from_the_code_is_up_to_date(page: str) -> None:
    """`python docs/generate.py` would change nothing."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "<!-- made:" in text
    assert generate.made(text) == text, "run: python docs/generate.py"


def test_the_command_of_the_readme_runs(alone: Cli) -> None:
    """With the task of the program above it in a file, as it says."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    task = re.search(r'^TASK = b"""\n(.*?)^"""$', text, re.MULTILINE | re.DOTALL)
    command = re.search(r"^batchflow (run --local .*)$", text, re.MULTILINE)
    assert task is not None
    assert command is not None
    alone.write("square.py", task[1])
    values = [row["value"] for row in alone.rows(*command[1].split())]
    assert values == ["1 squared is 1", "2 squared is 4", "3 squared is 9"]


def test_the_commands_of_the_page_run(alone: Cli) -> None:
    """Every line of shell of the page, in its order, beside a cloud that is up."""
    blocks = _SHELL.findall((DOCS / "cli.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 3
    alone.write("tasks/square.py", TASKS["square.py"])
    with alone.start("up") as up:
        try:
            assert up.stdout is not None
            up.stdout.readline()
            program = f'batchflow() {{ "{sys.executable}" -m batchflow "$@"; }}\n'
            ended = subprocess.run(
                ["bash", "-euc", program + "".join(blocks)],
                cwd=alone.folder,
                env=alone.environment,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert ended.returncode == 0, ended.stderr
            values = re.findall(r'"value":(\d+)', ended.stdout)
            assert sorted(values) == sorted(["1", "4", "9", "25", "36"])
        finally:
            up.send_signal(signal.SIGINT)
            up.communicate(timeout=PATIENCE)
    assert (alone.folder / "squares.jsonl").read_text().count('"value":16') == 1

"""The README and the docs say what is true: their Python runs, their settings and links are there.

A block of Python that follows ``<!-- file: NAME -->`` is that file. A block with `asyncio.run(` is a program
and is run as one. The others of a page run in one namespace, one after another, as in `python -m asyncio`;
where a line ends in ``# -> X``, X is the repr of its value. Files named ``test_...`` are run by pytest.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from batchflow import PoolSpec
from batchflow.config.loader import load_settings
from batchflow.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *DOCS]
TEN_SQUARES = sorted(f"{number} squared is {number**2}" for number in range(10))
"""What the first program of the README prints, after a number in each line."""
PI_JAR = ROOT / "examples" / "02_pi" / "tasks" / "pi.jar"

_BLOCK = re.compile(
    r"(?:^<!-- file: (?P<name>\S+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")
_EXPECTED = re.compile(r"  # -> (.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str
    line: int
    file: str | None

    @property
    def is_program(self) -> bool:
        return "asyncio.run(" in self.text

    @property
    def is_test(self) -> bool:
        return self.file is not None and self.file.startswith("test_")


def blocks(page: Path, kind: str | None = None) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["kind"], match["text"], text.count("\n", 0, match.start("text")), match["name"])
        for match in _BLOCK.finditer(text)
        if kind in (None, match["kind"])
    ]


def pages_with(kind: str) -> list[Any]:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, kind)]


def run_program(text: str, folder: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-"],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


async def run_piece(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Run a block's statements in turn; compare the values of those that say what they are."""
    lines = block.text.splitlines()
    for statement in ast.parse(block.text).body:
        where = f"{page.name}:{block.line + statement.lineno}"
        expected = _EXPECTED.search(lines[(statement.end_lineno or statement.lineno) - 1])
        value = await evaluate(statement, where, namespace)
        if expected is not None:
            assert repr(value) == expected[1], where


async def evaluate(statement: ast.stmt, where: str, namespace: dict[str, Any]) -> Any:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    if isinstance(statement, ast.Expr):
        code = compile(ast.Expression(statement.value), where, "eval", flags)
    else:
        code = compile(ast.Module([statement], []), where, "exec", flags)
    value = eval(code, namespace)
    return await value if inspect.iscoroutine(value) else value


@pytest.mark.parametrize("page", pages_with("python"))
async def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python in a page does what the page says."""
    shutil.copy(PI_JAR, tmp_path)
    found = blocks(page, "python")
    for block in blocks(page):
        if block.file is not None:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m asyncio` has it
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    try:
        for block in found:
            if block.is_program:
                said = run_program(block.text, tmp_path)
                assert said
                if block == blocks(ROOT / "README.md", "python")[0]:
                    assert sorted(line.partition(" ")[2] for line in said.splitlines()) == TEN_SQUARES
            elif block.file is None:
                await run_piece(block, page, namespace)
    finally:
        if "client" in namespace:
            await namespace["client"].aclose()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name) for page in PAGES if any(block.is_test for block in blocks(page))],
)
def test_tests_pass(page: Path, tmp_path: Path) -> None:
    """The tests that a page shows pass, with the options that it shows, as warnings are errors."""
    for block in blocks(page):
        name = block.file or ("pytest.ini" if block.kind == "ini" else None)
        if name is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(block.text, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
    ]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("page", pages_with("toml"))
def test_configuration_files_are_valid(page: Path, tmp_path: Path) -> None:
    """Every configuration file that a page shows is read, with each of its profiles."""
    for number, block in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block.text, encoding="utf-8")
        assert load_settings(path, environment={})
        for profile in set(re.findall(r"^\[profiles\.(\w+)", block.text, re.MULTILINE)):
            assert load_settings(path, profile=profile, environment={})


def test_every_setting_is_documented() -> None:
    """The table of the configuration names each setting with its default, and nothing else."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)`)? ?\|", text, re.MULTILINE))
    settings = Settings()
    expected = {"target": settings.target}
    for group in fields(Settings):
        if group.name != "target":
            values = getattr(settings, group.name)
            expected |= {f"{group.name}.{item.name}": getattr(values, item.name) for item in fields(values)}
    shown = {
        name: "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in expected.items()
    }
    assert documented == shown


def test_every_field_of_a_pool_is_documented() -> None:
    """The page about pools names each field of a PoolSpec."""
    text = (ROOT / "docs" / "pools.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|", text.partition("What a new pool is made of")[2], re.MULTILINE
    )
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == {item.name for item in fields(PoolSpec)} - {"id"}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file of the repository."""
    for target, _ in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target

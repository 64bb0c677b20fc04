"""Every example, run as the program that a newcomer runs, and its output read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")


def jdk() -> int:
    """The version of the JDK on the PATH; 0 without one."""
    if shutil.which("javac") is None:
        return 0
    said = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=True)
    found = re.search(r"javac (\d+)", said.stdout + said.stderr)
    return int(found[1]) if found else 0


needs_jdk = pytest.mark.skipif(jdk() < 17, reason="there is no JDK of version 17 or newer on the PATH")


def run(program: str, *arguments: str, cwd: Path) -> list[str]:
    """The lines that an example prints. It runs outside the checkout, as it would anywhere."""
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    return finished.stdout.splitlines()


def test_hello_prints_its_one_result(tmp_path: Path) -> None:
    """It is the smallest program."""
    assert run("01_hello/hello.py", cwd=tmp_path) == ["Hello, world!"]


@needs_java
def test_pi_prints_a_line_for_each_count(tmp_path: Path) -> None:
    """Each estimate is as good as a hundred points a task allow."""
    head, *rows = run("02_pi/pi.py", "--tasks", "4", "10", cwd=tmp_path)
    assert head == "# tasks  value of pi"
    assert [int(row.split()[0]) for row in rows] == [4, 10]
    assert all(2.5 < float(row.split()[1]) < 3.8 for row in rows)


@needs_java
def test_two_waves_answer_under_ids_that_repeat(tmp_path: Path) -> None:
    """Two kinds of task answer in the first wave, the third kind in the second."""
    lines = run("03_two_waves/two_waves.py", cwd=tmp_path)
    border = lines.index("second wave")
    first, second = lines[1:border], lines[border + 1 :]
    squares = sorted(line for line in first if "square.py" in line)
    assert squares == [
        "task 0  square.py  [0, 1]",
        "task 1  square.py  [1, 4]",
        "task 2  square.py  [4, 9]",
    ]
    pies = sorted(line for line in first if "pi.jar" in line)
    assert [line.split()[1] for line in pies] == ["0", "1", "2"]
    assert all(re.fullmatch(r"task \d  pi\.jar     \['[23]\.\d+'\]", line) for line in pies)
    assert sorted(second) == [f"task {i}  shout.py   THIS IS AN INPUT PARAM LIST" for i in range(4)]


def test_input_files_are_found_by_name(tmp_path: Path) -> None:
    """Each task finds its own."""
    lines = run("04_input_files/input_files.py", cwd=tmp_path)
    assert lines == ["a.txt: 4 lines, 24 words", "b.txt: 2 lines, 11 words"]


def test_two_clients_get_their_own_results(tmp_path: Path) -> None:
    """Each client receives its own three results and none of the other's."""
    lines = run("05_two_clients/two_clients.py", cwd=tmp_path)
    expected = []
    for client in ("client_1", "client_2"):
        expected += [f"{client} received:", *(f"  task {i} of {client}" for i in range(3))]
    assert lines == expected


def test_a_workflow_counts_each_word_once(tmp_path: Path) -> None:
    """A hundred files, in pairs, reduced."""
    lines = run("10_workflow/workflow.py", cwd=tmp_path)
    assert lines == ["100 files, 50 pairs, 550 words", " 160 to", " 140 be", "  80 or"]


@needs_java
def test_demo_counts_results_and_nodes(tmp_path: Path) -> None:
    """It says how many distinct results there were and that both nodes worked."""
    lines = run("demo.py", "--tasks", "40", cwd=tmp_path)
    text = "\n".join(lines)
    assert "40 distinct results of 40 tasks" in text
    shares = re.findall(r"^ +(\d+) from \S+$", text, re.MULTILINE)
    assert len(shares) == 2
    assert sum(map(int, shares)) == 40
    assert "NOT" not in text


def test_demo_without_java_says_what_to_install(tmp_path: Path) -> None:
    """It starts nothing."""
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")],
        env={**os.environ, "PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert "no `java` on the PATH" in finished.stderr


def test_examples_share_a_running_local_cloud(tmp_path: Path) -> None:
    """With `--config` several programs, one after another, use one local cloud and its pool."""
    config = tmp_path / "cloud.toml"
    cloud = subprocess.Popen(
        [sys.executable, "-m", "batchflow.local", "--config", str(config), "--nodes", "2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert cloud.stdout is not None
    try:
        assert any(line.startswith("ready") for line in cloud.stdout)
        assert run("01_hello/hello.py", "--config", str(config), cwd=tmp_path) == ["Hello, world!"]
        lines = run("04_input_files/input_files.py", "--config", str(config), cwd=tmp_path)
        assert lines == ["a.txt: 4 lines, 24 words", "b.txt: 2 lines, 11 words"]
    finally:
        cloud.terminate()
        cloud.communicate(timeout=60)
    assert cloud.returncode == 0


def test_readme_of_the_examples_names_each_program() -> None:
    """No program is left out."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("[0-9]*/*.py"), *EXAMPLES.glob("[0-9]*/*.ipynb")]
    assert programs
    for program in programs:
        assert f"]({program.relative_to(EXAMPLES).as_posix()})" in text


@needs_jdk
def test_jar_is_built_from_its_source_to_the_byte(tmp_path: Path) -> None:
    """Building it again, as the Makefile does, gives the bytes that are in the repository."""
    root = EXAMPLES.parent
    java = root / "examples" / "02_pi" / "java"
    (tmp_path / "examples/02_pi/tasks").mkdir(parents=True)
    shutil.copytree(java, tmp_path / "examples/02_pi/java")
    subprocess.run(["make", "-s", "-f", str(root / "Makefile"), "jar"], cwd=tmp_path, check=True)
    built = (tmp_path / "examples/02_pi/tasks/pi.jar").read_bytes()
    assert built == (EXAMPLES / "02_pi/tasks/pi.jar").read_bytes()


def test_options_are_priced_into_a_table_and_a_plot(tmp_path: Path) -> None:
    """The package beside the program travels by itself; the prices are near those of Black and Scholes."""
    pytest.importorskip("matplotlib")
    lines = run("09_options/options.py", "--plot", "prices.png", cwd=tmp_path)
    assert lines[0].split() == ["strike", "volatility", "years", "price", "error"]
    table = {(float(row[0]), float(row[1])): float(row[3]) for row in map(str.split, lines[1:-1])}
    assert len(table) == 27
    assert abs(table[100.0, 0.2] - 8.916) < 0.2
    assert lines[-1] == "plot: prices.png"
    assert (tmp_path / "prices.png").read_bytes().startswith(b"\x89PNG")

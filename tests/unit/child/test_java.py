"""Java's command lines, and how its end is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchflow.engine import JavaError
from node_agent.child import java


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("pi.jar", "100"), ["java", "-jar", "pi.jar", "100"]),
        (("pi.jar", 100, 2.5), ["java", "-jar", "pi.jar", "100", "2.5"]),
        ((["pi.jar"],), ["java", "-jar", "pi.jar"]),
        ((Path("lib/pi.jar"),), ["java", "-jar", "lib/pi.jar"]),
        (
            (["java", "-Xmx4096m", "-jar", "pi.jar", "100"],),
            ["java", "-Xmx4096m", "-jar", "pi.jar", "100"],
        ),
        (("java", "-jar", "pi.jar"), ["java", "-jar", "pi.jar"]),
        (("java -Xmx1m -jar 'a b.jar'",), ["java", "-Xmx1m", "-jar", "a b.jar"]),
        (("/opt/jdk/bin/java", "-version"), ["/opt/jdk/bin/java", "-version"]),
        (("-cp", "a.jar", "Main"), ["java", "-cp", "a.jar", "Main"]),
        ((("java", "-version"),), ["java", "-version"]),
    ],
)
def test_both_forms_of_a_command_line_are_understood(command: tuple[Any, ...], expected: list[str]) -> None:
    """A jar with arguments, a whole command line, as a list or not; nothing is added to it."""
    assert java.command_line(command) == expected


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ((), "needs a jar"),
        (([],), "needs a jar"),
        (("python", "x.py"), "not 'python'"),
        (("pi.jar", None), "not None"),
        (("pi.jar", "a\0b"), "without NUL"),
        (("pi.jar", b"x"), "not b'x'"),
    ],
)
def test_what_is_no_command_line_of_java_is_refused(command: tuple[Any, ...], why: str) -> None:
    """The refusal says what was found."""
    with pytest.raises(ValueError, match=why):
        java.command_line(command)


def test_lines_are_those_that_newlines_end() -> None:
    """No line for the last newline, carriage returns dropped, other separators left alone."""
    assert java.lines("") == []
    assert java.lines("a\r\nb\n\nc\u2028d") == ["a", "b", "", "c\u2028d"]


def test_stdout_comes_before_stderr() -> None:
    """As the original's java_runner had it."""
    end = {"exit_code": 0, "stdout": "3.2\n", "stderr": "warning\n"}
    assert java.lines_of(["java"], end, check=True) == ["3.2", "warning"]


@pytest.mark.parametrize(
    ("exit_code", "how"), [(3, "ended with exit code 3: no luck"), (-9, "was killed by signal 9: no luck")]
)
def test_another_exit_code_than_0_is_an_error_with_what_was_said(exit_code: int, how: str) -> None:
    """Exit code, lines and the tail of stderr are in it; `check=False` returns the lines instead."""
    end = {"exit_code": exit_code, "stdout": "half\n", "stderr": "no luck\n"}
    with pytest.raises(JavaError, match=how) as caught:
        java.lines_of(["java", "-jar", "pi.jar"], end, check=True)
    assert (caught.value.exit_code, caught.value.lines) == (exit_code, ("half", "no luck"))
    assert java.lines_of(["java"], end, check=False) == ["half", "no luck"]


def test_java_is_looked_for_in_java_home_and_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAVA_HOME comes first; what is not executable does not count."""
    for name in ("home/bin", "path"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    (tmp_path / "path/java").touch(mode=0o644)
    assert java.find() is None
    (tmp_path / "path/java").chmod(0o755)
    assert java.find() == str(tmp_path / "path/java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    (tmp_path / "home/bin/java").touch(mode=0o755)
    assert java.find() == str(tmp_path / "home/bin/java")

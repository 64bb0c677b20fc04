"""Java's command lines, and how Java's end is told: no I/O but looking for `java`.

`java_runner` takes both forms of azure_realtime_batch: a jar and its arguments, or a whole command line (as
one list, as several arguments, or as one text that is split as a shell would). No option is added to what
the caller wrote.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_TAIL = 4096
MISSING = (
    "there is no Java on this node: neither JAVA_HOME nor PATH leads to one; install it in the start task"
)


def command_line(command: Sequence[Any]) -> list[str]:
    """Return what to run, beginning with "java". Raises ValueError for what is neither of the two forms."""
    if len(command) == 1 and isinstance(command[0], (list, tuple)):
        command = command[0]
    if len(command) == 1 and isinstance(command[0], str) and " " in command[0]:
        import shlex

        command = shlex.split(command[0])
    words = [_word(part) for part in command]
    if not words:
        raise ValueError("java_runner needs a jar and its arguments, or a command line that begins with java")
    if words[0].endswith(".jar"):
        return ["java", "-jar", *words]
    if os.path.basename(words[0]) == "java":
        return words
    if words[0].startswith("-"):
        return ["java", *words]
    raise ValueError(f"java_runner takes a .jar or a command line that begins with java, not {words[0]!r}")


def _word(part: Any) -> str:
    if isinstance(part, (str, int, float, os.PathLike)) and not isinstance(part, bool):
        word = os.fspath(part) if isinstance(part, os.PathLike) else str(part)
        if isinstance(word, str) and "\0" not in word:
            return word
    raise ValueError(f"an argument of java is text, a number or a path without NUL, not {part!r:.80}")


def find(env: Mapping[str, str] | None = None) -> str | None:
    """Return where `java` is: JAVA_HOME's, else the first on PATH; None without one.

    `env`: the environment to look in; None: this process's.
    """
    env = os.environ if env is None else env
    home = env.get("JAVA_HOME")
    places = [os.path.join(home, "bin")] if home else []
    for place in places + env.get("PATH", os.defpath).split(os.pathsep):
        candidate = os.path.join(place, "java")
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def program(name: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return what to start: Java wherever it is, None without one; anything else as it is named."""
    return find(env) if name == "java" else name


def lines(text: str) -> list[str]:
    """Return the lines of an output; an unfinished last one is one too."""
    found = text.split("\n")
    if not found[-1]:
        found.pop()
    return [line.removesuffix("\r") for line in found]


def lines_of(argv: list[str], end: dict[str, Any], *, check: bool) -> list[str]:
    """Return what `java_runner` returns, from how the program ended. Raises `JavaError`."""
    if error := end.get("error"):
        raise _error()(f"java_runner: {error}")
    exit_code: int = end["exit_code"]
    printed = lines(end["stdout"]) + lines(end["stderr"])
    if exit_code and check:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        said = (end["stderr"] or end["stdout"])[-_TAIL:].strip()
        text = f"{' '.join(argv)[:300]} {how}" + (f": {said}" if said else "")
        raise _error()(text, exit_code=exit_code, lines=tuple(printed))
    return printed


def _error() -> Any:
    """Return a `JavaError`, loaded when it is needed: a child has to start quickly."""
    from batchflow.engine import JavaError

    return JavaError

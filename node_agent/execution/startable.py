"""Whether Linux can start a file as a program, told before it is tried.

The kernel answers "No such file or directory" for a file that is there when the interpreter of its `#!` line
is not, so its own answer leads astray. A shell even takes another machine's program for a script.
"""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING, Final

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from pathlib import Path

_HEAD: Final = 256
"""Bytes that the kernel reads of a `#!` line."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ELF: Final = b"\x7fELF"
_FOREIGN: Final = {b"MZ": "Windows", b"\xcf\xfa\xed\xfe": "macOS"}
"""How the programs of other systems begin."""
_MACHINES: Final = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""Names, as `uname` has them, by the number of the machine in an ELF header."""
_RUNS_ALSO: Final = {"x86_64": ("i686",), "aarch64": ("armv7l",)}
_BINFMT: Final = "/proc/sys/fs/binfmt_misc"
_INSTALL: Final = "install it on the nodes: PoolSpec(apt=[...]) or PoolSpec(start_command=...)"
_FAILED_EXECUTION: Final = "setpriv: failed to execute "
"""How `setpriv`, which starts the programs, says that the kernel refused one."""
_NOT_STARTED: Final = (126, 127)


@frozen
class Obstacle:
    """Why a file cannot be started, and what to do."""

    reason: str
    on_this_node: bool = False
    """Another node may be able to."""


def obstacle(file: Path, directory: Path, path: str | None = None) -> Obstacle | None:
    """Return what keeps a file from being started in a directory, if anything is seen. Raises OSError.

    `path`: the PATH that it will have; None: that of this process.
    """
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if head.startswith(b"#!"):
        return _script_obstacle(head[2:], directory, path)
    if head.startswith(_BYTE_ORDER_MARK + b"#!"):
        return Obstacle("a byte order mark is before its '#!', so Linux does not see it: save it without one")
    if head.startswith(_ELF):
        return _machine_obstacle(head)
    if _has_emulators():
        return None
    for beginning, system in _FOREIGN.items():
        if head.startswith(beginning):
            return Obstacle(f"it is a program for {system}, and the nodes run Linux: build it for Linux")
    if b"\0" in head:
        return Obstacle(
            "it is neither a program for Linux nor a script: it begins neither as one nor with '#!'"
        )
    return None


def failed_start(exit_code: int, stderr: str) -> str | None:
    """Return why a program that ended with this was never started; None when it was."""
    if exit_code not in _NOT_STARTED or not stderr.startswith(_FAILED_EXECUTION):
        return None
    reason = stderr.strip().rpartition(": ")[2]
    if reason == os.strerror(2):
        reason += "; the file is there, so its interpreter or loader is not: see its '#!' line, or `ldd`"
    return reason


def _script_obstacle(head: bytes, directory: Path, path: str | None) -> Obstacle | None:
    line = head.partition(b"\n")[0].decode(errors="replace")
    if line.endswith("\r"):
        return Obstacle(
            f"its first line ends with a carriage return, so Linux looks for {line.strip(' ')!r}: "
            "convert the file to Unix line endings (sed -i 's/\\r$//' FILE)"
        )
    interpreter, _, rest = line.strip(" \t").partition(" ")
    if not interpreter:
        return None
    if not _is_executable(directory / interpreter):
        return Obstacle(
            f"its first line wants {interpreter!r}, which this node does not have: {_INSTALL}", True
        )
    return _env_obstacle(rest.strip(), path) if os.path.basename(interpreter) == "env" else None


def _env_obstacle(rest: str, path: str | None) -> Obstacle | None:
    """`rest`: what follows `/usr/bin/env`. The kernel hands it over as one word, which -S splits."""
    if rest.startswith("-S"):
        words = [word for word in _split(rest[2:]) if "=" not in word]
        name = words[0] if words else ""
    elif len(rest.split()) > 1 and not rest.startswith("-"):
        return Obstacle(f"Linux hands {rest!r} to env as one word: write '#!/usr/bin/env -S {rest}'")
    else:
        name = rest
    if not name or name.startswith("-") or shutil.which(name, path=path) is not None:
        return None
    return Obstacle(f"its first line wants {name!r}, which is not on this node's PATH: {_INSTALL}", True)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _machine_obstacle(head: bytes) -> Obstacle | None:
    number = int.from_bytes(head[18:20], "big" if head[5:6] == b"\x02" else "little")
    built, here = _MACHINES.get(number), os.uname().machine
    if built is None or here not in _MACHINES.values() or built in (here, *_RUNS_ALSO.get(here, ())):
        return None
    if _has_emulators():
        return None
    return Obstacle(f"it is built for {built}, and this node is {here}: build it for {here}", True)


def _has_emulators() -> bool:
    """Return whether the kernel hands other formats to an emulator: it lists one beside its two own files."""
    try:
        return len(os.listdir(_BINFMT)) > len(("register", "status"))
    except OSError:
        return False


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)

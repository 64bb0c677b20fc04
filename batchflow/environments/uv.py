"""Runs uv, which resolves and installs packages for another Python and another platform than ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio

from batchflow.environments.commands import CommandFailed, run_command
from batchflow.environments.requirements import RequirementSet
from batchflow.errors import ConfigurationError, EnvironmentFailed
from batchflow.support.frozen import frozen

_MANYLINUX: Final = "manylinux"
_YANKED: Final = re.compile(r"warning: (.+ is yanked.*)")
_NO_INDEX: Final = re.compile(r"^--no-index\s*$", re.MULTILINE)
_NO_WHEEL: Final = re.compile(r"Because ([\w.-]+==[^\s,]+) has no (?:usable )?wheels")
_DOWNLOADING: Final = re.compile(r"\s*Downloading \S+ \(([0-9.]+)([KMG]iB)\)")
_UNITS: Final = {"KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3}


@frozen
class TargetPython:
    """What an environment is for: a minor version of Python (`3.12`), and a platform as wheels name it."""

    python: str
    platform: str

    @property
    def options(self) -> tuple[str, ...]:
        return ("--python-version", self.python, "--python-platform", uv_platform(self.platform))


def uv_platform(platform: str) -> str:
    """Return a wheel's platform (`manylinux_2_28_x86_64`) as uv has it (`x86_64-manylinux_2_28`).

    Raises `ConfigurationError` for a platform that is no Linux.
    """
    parts = platform.split("_", 3)
    if len(parts) != 4 or parts[0] != _MANYLINUX:
        raise ConfigurationError(
            f"agent.node_platform: {platform!r}: a platform such as manylinux_2_28_x86_64 is needed"
        )
    _, major, minor, machine = parts
    return f"{machine}-{_MANYLINUX}_{major}_{minor}"


async def lock(requirements: RequirementSet, target: TargetPython, scratch: Path) -> str:
    """Resolve requirements; return every package at its version, with hashes, one to a line.

    Raises `EnvironmentFailed` with the resolver's words, also for a yanked version unless all versions were
    chosen before: in a `uv.lock`, or by what is installed here. Safe to cancel. `scratch`: a folder.
    """
    compile_ = (
        *("pip", "compile", "--no-header", "--no-annotate", "--generate-hashes"),
        *("--emit-index-url", "--emit-find-links"),
    )
    if requirements.kind == "locked project":
        assert requirements.path is not None
        export = ("export", "--frozen", "--no-emit-project", "--no-dev", "--no-header")
        return await run_uv((*export, "--project", str(requirements.path.parent)))
    yanked: list[str] = []

    def heard(line: str) -> None:
        if (match := _YANKED.match(line)) is not None:
            yanked.append(match[1])

    file = requirements.path
    if file is None:
        file = scratch / "requirements.in"
        await anyio.Path(file).write_text(requirements.text, encoding="utf-8")
    alone = ("--no-deps",) if requirements.pinned else ()
    text = await run_uv((*compile_, *alone, *target.options, str(file)), heard)
    if yanked and not requirements.pinned:
        raise EnvironmentFailed(f"{'; '.join(yanked)}; require another version, or lock it in a uv.lock")
    if requirements.path is not None and _NO_INDEX.search(requirements.text):
        return f"--no-index\n{text}"  # uv leaves this out, and would ask an index for the wheels
    return text


async def lock_file(requirements: str, target: TargetPython, scratch: Path) -> str:
    """Return the files of these packages alone, as `pylock.toml` (PEP 751) has them.

    Raises `EnvironmentFailed`. Safe to cancel. `scratch`: a folder.
    """
    file = scratch / "source.in"
    await anyio.Path(file).write_text(requirements, encoding="utf-8")
    return await run_uv(
        (
            *("pip", "compile", "--no-deps", "--no-header", "--format", "pylock.toml"),
            *(*target.options, str(file)),
        )
    )


class NoWheel(EnvironmentFailed):
    """Locked packages that have no wheel for the nodes."""

    def __init__(self, text: str, packages: tuple[str, ...]) -> None:
        super().__init__(text)
        self.packages = packages
        """Each as `name==version`."""


async def install(locked: str, target: TargetPython, site: Path, heard: Callable[[str], object]) -> None:
    """Install what was locked into a folder, from wheels alone. `heard` gets each line that uv says.

    Raises `NoWheel`, which names what has none, `EnvironmentFailed`. Safe to cancel.
    """
    file = site.with_name("requirements.txt")
    await anyio.Path(file).write_text(locked, encoding="utf-8")
    try:
        await run_uv(
            (
                *("pip", "install", "--no-deps", "--only-binary", ":all:", "--link-mode", "copy"),
                *("--target", str(site), *target.options, "--requirement", str(file)),
            ),
            heard,
        )
    except EnvironmentFailed as error:
        if packages := tuple(dict.fromkeys(_NO_WHEEL.findall(str(error)))):
            raise NoWheel(str(error), packages) from error
        raise


def downloaded(line: str) -> float | None:
    """Return the bytes of the download that uv says it begins; None when the line says something else."""
    match = _DOWNLOADING.match(line)
    return None if match is None else float(match[1]) * _UNITS[match[2]]


async def run_uv(arguments: Sequence[str], heard: Callable[[str], object] | None = None) -> str:
    """Run uv and return what it printed. `heard` gets each line that it says beside that.

    Raises `EnvironmentFailed` with what it said. Safe to cancel.
    """
    try:
        return await run_command((_program(), *arguments), heard)
    except CommandFailed as error:
        told = str(error)
        raise EnvironmentFailed(told[max(0, told.find("error: ")) :]) from error


def _program() -> str:
    from uv import find_uv_bin

    return find_uv_bin()

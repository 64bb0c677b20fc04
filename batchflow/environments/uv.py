"""Runs uv, which resolves and installs packages for another Python and another platform than ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio

from batchflow.environments.commands import CommandFailed, run_command
from batchflow.environments.requirements import RequirementSet
from batchflow.errors import ConfigurationError, EnvironmentFailed
from batchflow.support.frozen import frozen

_MANYLINUX: Final = "manylinux"


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

    Raises `EnvironmentFailed` with the resolver's words. Safe to cancel. `scratch`: a folder for files.
    """
    compile_ = (
        *("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"),
        *("--emit-index-url", "--emit-find-links"),
    )
    if requirements.kind == "locked project":
        assert requirements.path is not None
        export = ("export", "--quiet", "--frozen", "--no-emit-project", "--no-dev", "--no-header")
        return await run_uv((*export, "--project", str(requirements.path.parent)))
    if requirements.path is not None:
        return await run_uv((*compile_, *target.options, str(requirements.path)))
    listed = scratch / "requirements.in"
    await anyio.Path(listed).write_text(requirements.text, encoding="utf-8")
    alone = ("--no-deps",) if requirements.pinned else ()
    return await run_uv((*compile_, *alone, *target.options, str(listed)))


async def install(locked: str, target: TargetPython, site: Path) -> None:
    """Install what was locked into a folder, from wheels alone.

    Raises `EnvironmentFailed`, which names what has no wheel. Safe to cancel.
    """
    file = site.with_name("requirements.txt")
    await anyio.Path(file).write_text(locked, encoding="utf-8")
    await run_uv(
        (
            *("pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--link-mode", "copy"),
            *("--target", str(site), *target.options, "--requirement", str(file)),
        )
    )


async def run_uv(arguments: Sequence[str]) -> str:
    """Run uv and return what it printed. Raises `EnvironmentFailed` with what it said. Safe to cancel."""
    try:
        return await run_command((_program(), *arguments))
    except CommandFailed as error:
        raise EnvironmentFailed(str(error)) from error


def _program() -> str:
    from uv import find_uv_bin

    return find_uv_bin()

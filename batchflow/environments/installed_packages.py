"""The files of installed packages, and of all that they need: what a copy of them is made of."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Final

from batchflow.support.distributions import is_local

_REQUIREMENT: Final = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA: Final = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


class NotPortable(Exception):
    """An installed package that cannot be copied to another machine; the text says which, and why."""


def installed_for(python: str, machine_platform: str) -> bool:
    """Return whether what is installed here fits a Python (`3.12`) and platform (`manylinux_2_28_x86_64`)."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return python == here and sys.platform == "linux" and machine_platform.endswith(platform.machine())


def pins(*, local: bool = True) -> Iterator[str]:
    """Return every distribution that is installed here, at its version (`numpy==2.1.0`), without batchflow.

    `local`: with those that were installed from a folder here, and so have no wheel elsewhere.
    """
    for package in distributions():
        name = package.metadata["Name"]
        if name and not name.lower().startswith("batchflow") and (local or not is_local(package)):
            yield f"{name.lower()}=={package.version}"


def files_of(requirements: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of these packages and of what they need, by their places in a folder of packages.

    Raises `NotPortable` for a package that is not installed, was built on this machine, or is editable.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = list(requirements)
    while waiting:
        name, extras = _parsed(waiting.pop())
        key = f"{name}{sorted(extras)}"
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name in map(_name, requirements):
                raise NotPortable(f"{name} is not installed") from None
            continue  # needed elsewhere: on other systems, or by older versions of Python
        waiting += _needs(package, extras)
        found |= _files(name, package)
    return found


def _parsed(requirement: str) -> tuple[str, set[str]]:
    match = _REQUIREMENT.match(requirement)
    assert match is not None, requirement
    return match[1].lower(), {extra.strip() for extra in (match[2] or "").split(",")}


def _name(requirement: str) -> str:
    return _parsed(requirement)[0]


def _needs(package: Distribution, extras: set[str]) -> list[str]:
    """Return the requirements of a package, with those of the extras that are wanted."""
    wanted = []
    for requirement in package.requires or ():
        text, _, condition = requirement.partition(";")
        only_for = set(_EXTRA.findall(condition))
        if not only_for or only_for & extras:
            wanted.append(text)
    return wanted


def _files(name: str, package: Distribution) -> dict[str, Path]:
    tags = re.findall(r"^Tag: (.+)$", package.read_text("WHEEL") or "", re.MULTILINE)
    if not any("manylinux" in tag or tag.endswith("-any") for tag in tags):
        raise NotPortable(f"{name} was built on this machine")
    found = {
        file.as_posix(): Path(str(package.locate_file(file)))
        for file in package.files or ()
        if ".." not in file.parts and "__pycache__" not in file.parts
    }
    if not any(path.endswith(".py") for path in found):
        raise NotPortable(f"{name} is installed without its files (an editable installation?)")
    return {place: path for place, path in found.items() if path.is_file()}

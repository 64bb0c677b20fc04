"""What a user may give as requirements, and what they amount to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from batchflow.environments.installed_packages import pins
from batchflow.errors import ConfigurationError
from batchflow.support.frozen import frozen

Requirements = str | os.PathLike[str] | Iterable[str]
"""A list of requirements, the path of a requirements file or of a pyproject.toml, or `"current"`."""

CURRENT: Final = "current"
_FILES: Final = (".txt", ".toml", ".in")
"""How the names of files end on a command line."""
_LOCK_FILE: Final = "uv.lock"


@frozen
class RequirementSet:
    """Requirements, ready to be locked."""

    kind: Literal["list", "file", "project", "locked project"]
    text: str
    """The requirements one to a line, or what is in the files. A lock of the same text is used again."""
    path: Path | None = None
    """The file, where uv reads it itself."""
    pinned: bool = False
    """Whether every package that is needed stands in the list, at its version."""

    @property
    def digest(self) -> str:
        where = "" if self.path is None else str(self.path.absolute())
        return hashlib.sha256("\0".join((self.kind, where, self.text, str(self.pinned))).encode()).hexdigest()


def named_requirements(words: Sequence[str]) -> str | list[str] | None:
    """Return what the words of a command line name; None: nothing.

    They are packages, or one file, whose absolute path is returned, or `current`. Raises `ConfigurationError`
    for a file among others.
    """
    named = [word for word in words if word == CURRENT or (word.endswith(_FILES) and "@" not in word)]
    if not named:
        return list(words) or None
    if len(words) > 1:
        raise ConfigurationError(f"--requirements {named[0]} names all packages; give it alone")
    return CURRENT if named[0] == CURRENT else str(Path(named[0]).absolute())


def read_requirements(requirements: Requirements) -> RequirementSet | None:
    """Return what is required; None when it is nothing. Reads files.

    Raises `ConfigurationError` for what is no requirement, and for a file that cannot be read.
    """
    if isinstance(requirements, str) and requirements == CURRENT:
        text = "\n".join(sorted(pins(local=False)))
        return RequirementSet("list", text, pinned=True) if text else None
    if isinstance(requirements, str | os.PathLike):
        return _read_file(Path(requirements))
    if not isinstance(requirements, Iterable) or isinstance(requirements, bytes):
        raise ConfigurationError(
            f'requirements: {requirements!r}: a list of requirements, a file, or "current" is needed'
        )
    lines = []
    for requirement in requirements:
        if not isinstance(requirement, str) or not requirement.strip() or "\n" in requirement:
            raise ConfigurationError(
                f'requirements: {requirement!r}: a requirement such as "numpy>=2" is needed in each place'
            )
        if requirement.strip().startswith("-"):
            raise ConfigurationError(
                f"requirements: {requirement!r} is an option; options belong into a requirements file"
            )
        lines.append(requirement.strip())
    return RequirementSet("list", "\n".join(sorted(set(lines)))) if lines else None


def _read_file(path: Path) -> RequirementSet | None:
    try:
        text = path.read_text(encoding="utf-8")
        if path.name != "pyproject.toml":
            return RequirementSet("file", text, path)
        lock = path.with_name(_LOCK_FILE)
        if lock.is_file():
            return RequirementSet("locked project", text + lock.read_text(encoding="utf-8"), path)
        return RequirementSet("project", text, path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        hint = "" if os.sep in str(path) or path.suffix else '; for one package write a list: ["numpy"]'
        raise ConfigurationError(f"requirements: {str(path)!r} cannot be read: {reason}{hint}") from error

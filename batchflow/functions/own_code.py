"""The files of the user's own project that a function needs on a node.

Rules:

- A module stands for its top: the file of a top-level module, or the whole folder of a top-level package.
- What its files import of the user's own project comes along, by the `import` statements in them, wherever
  they stand. Nothing is imported to find out.
- Names in the bundle are those that an import from the bundle's top finds.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from batchflow.errors import ConfigurationError
from batchflow.files import walk
from batchflow.functions.origin import is_installed
from batchflow.support.frozen import frozen

Stamp = tuple[int, int, int]
"""Size, time of the last change in ns, inode."""
_SOURCE: Final = ".py"
_HERE_AND_THERE: Final = "batchflow"
"""Each node has it."""
_AGENT: Final = "node_agent"
"""What runs tasks on a node."""


@frozen
class OwnFile:
    """A file of the project, and its name in a bundle."""

    name: str
    path: Path
    stamp: Stamp


class OwnCode:
    """The top-level modules of a project that tasks need, and what is known of their files."""

    def __init__(self) -> None:
        self._tops: dict[str, tuple[Path, ...]] = {}
        self._imports: dict[Path, tuple[Stamp, frozenset[str]]] = {}
        """Of each source file, as it was then: the top-level modules that it imports."""

    def add(self, module: str) -> bool:
        """Include a module of the project. Returns whether its top was not included before.

        Raises `ConfigurationError` for a module that shadows one of the standard library, or of the agent.
        """
        top = module.partition(".")[0]
        if top in self._tops or top == _HERE_AND_THERE:
            return False
        if top == _AGENT:
            raise ConfigurationError(
                f"the module {top} of your project has the name of a package that runs the tasks on a node, "
                "which would be imported instead: rename it"
            )
        if top in sys.stdlib_module_names:
            raise ConfigurationError(
                f"the module {top} of your project has the name of a module of the standard library, which a "
                "node would import instead: rename it"
            )
        self._tops[top] = _places(top)
        return True

    def files(self) -> list[OwnFile]:
        """Find the files as they are now. Reads the disk; `ConfigurationError` names what cannot be read."""
        found: dict[str, OwnFile] = {}
        seen: set[str] = set()
        while left := [top for top in self._tops if top not in seen]:
            for top in left:
                seen.add(top)
                for file in _files_of(top, self._tops[top]):
                    found[file.name] = file
                    for imported in self._imported_by(file) - self._tops.keys():
                        if places := _own_places(imported):
                            self._tops[imported] = places
        return [found[name] for name in sorted(found)]

    def _imported_by(self, file: OwnFile) -> frozenset[str]:
        if file.path.suffix != _SOURCE:
            return frozenset()
        known = self._imports.get(file.path)
        if known is None or known[0] != file.stamp:
            known = self._imports[file.path] = (file.stamp, imports_of(file.path))
        return known[1]


def _places(top: str) -> tuple[Path, ...]:
    """Return the file, or the folders, of a top-level module that is imported."""
    module: Any = sys.modules.get(top)
    folders = getattr(module, "__path__", None)
    if folders is not None:
        return tuple(Path(folder) for folder in folders)
    return (Path(module.__file__),)


def _own_places(top: str) -> tuple[Path, ...]:
    """Return where a top-level module of the project lies; nothing for all others, or none."""
    if top in sys.stdlib_module_names or top == _HERE_AND_THERE:
        return ()
    if (module := sys.modules.get(top)) is not None:
        found = tuple(Path(folder) for folder in getattr(module, "__path__", ())) or _file_of(module)
    else:
        found = _places_of_spec(top)
    return () if any(is_installed(str(place)) for place in found) else found


def _file_of(module: Any) -> tuple[Path, ...]:
    file = getattr(module, "__file__", None)
    return (Path(file),) if file else ()


def _places_of_spec(top: str) -> tuple[Path, ...]:
    """Return where an import would find a module. A folder without `__init__.py` is no answer.

    Such a folder may be anything, and only an import says that it is meant as a package.
    """
    try:
        spec = importlib.machinery.PathFinder.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None or spec.origin is None:
        return ()
    if spec.submodule_search_locations:
        return tuple(Path(folder) for folder in spec.submodule_search_locations)
    return (Path(spec.origin),)


def _files_of(top: str, places: Iterable[Path]) -> Iterator[OwnFile]:
    for place in places:
        try:
            if place.is_dir():
                for name, path in walk(place):
                    yield OwnFile(f"{top}/{name}", path, _stamp(path))
            else:
                yield OwnFile(place.name, place, _stamp(place))
        except OSError as error:
            raise ConfigurationError(
                f"the module {top} of your project cannot be read: {error.strerror}: {error.filename!r}"
            ) from error


def _stamp(path: Path) -> Stamp:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def imports_of(path: Path) -> frozenset[str]:
    """Return the top-level modules that a source file imports; none when it is not Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)

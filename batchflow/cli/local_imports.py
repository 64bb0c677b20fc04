"""A task's file on this machine, and what it imports from its folder: what a run takes along by itself."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def with_imports(task: Path) -> dict[str, str]:
    """Return the absolute paths of the file and of what it imports from its folder, by their names there.

    Imports of the imported files count as well. A file with the name of a module of the standard library is
    left out, because it would take that module's place.
    """
    folder = task.absolute().parent
    found = {task.name: folder / task.name}
    waiting = list(found.values())
    while waiting:
        for name in _imported(waiting.pop()) - sys.stdlib_module_names:
            for path in _files_of(folder, name):
                inside = path.relative_to(folder).as_posix()
                if inside not in found:
                    found[inside] = path
                    waiting.append(path)
    return {name: str(path) for name, path in sorted(found.items())}


def has_others(task: Path, taken: dict[str, str]) -> bool:
    """Return whether the folder of a task has visible files that are not taken along."""
    return any(
        path.is_file() and not path.name.startswith(".") and path.name not in taken
        for path in task.absolute().parent.iterdir()
    )


def _imported(path: Path) -> set[str]:
    """Return the names at the top of what a file imports; none of a file that is no Python source."""
    if path.suffix != ".py":
        return set()
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()  # the node tells, when it imports it
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _files_of(folder: Path, name: str) -> Iterator[Path]:
    """Return the files of the module or package of that name in a folder."""
    if (module := folder / f"{name}.py").is_file():
        yield module
    elif (package := folder / name).is_dir():
        for path in sorted(package.rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
                yield path

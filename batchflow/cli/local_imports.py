"""A task's file on this machine, and what it imports from its folder: what a run takes along by itself."""

from __future__ import annotations

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


def _imported(path: Path) -> frozenset[str]:
    """Return the names at the top of what a file imports; none of a file that is no Python source."""
    from batchflow.functions.own_code import imports_of

    if path.suffix != ".py":
        return frozenset()
    try:
        return imports_of(path)
    except OSError:
        return frozenset()  # the node tells, when it imports it


def _files_of(folder: Path, name: str) -> Iterator[Path]:
    """Return the files of the module or package of that name, as a bundle takes them from a directory."""
    from batchflow.files import walk

    if (module := folder / f"{name}.py").is_file():
        yield module
    elif (package := folder / name).is_dir():
        yield from sorted(path for _, path in walk(package))

"""The classes of a session's own files, by the names that the nodes know them by.

On a node the file `shapes.py` of a bundle is the module `shapes`. In the client's program it may be that, or
`tasks.shapes` where the program imports it as part of a package.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from batchflow.protocol.values.misfits import Unencodable

if TYPE_CHECKING:
    from collections.abc import Iterable

_MODEL: Final = "batchflow.model"
"""The module of `Result`, which agents have."""
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")


class BundleClasses:
    """Finds classes in modules that are imported already. Imports nothing."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._packages: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Take in the names of a bundle's files; those of earlier bundles stay."""
        self._files.update(names)

    def add_modules(self, names: Iterable[str]) -> None:
        """Take in modules that join the files under the names that they have here, with their packages."""
        self._packages.update(name.partition(".")[0] for name in names)

    def name_of(self, kind: type) -> str:
        """Return a class's name on the nodes, as `module:name`. Raises `Unencodable` when they lack it."""
        module = kind.__module__
        parts = module.split(".")
        if module == _MODEL:
            return f"{module}:{kind.__qualname__}"
        if parts[0] in self._packages:
            return f"{module}:{kind.__qualname__}"
        for start in range(len(parts)):
            if self._file_of(parts[start:]) is not None:
                return f"{'.'.join(parts[start:])}:{kind.__qualname__}"
        if module == "__main__" or "<locals>" in kind.__qualname__ or not _is_installed(module):
            raise Unencodable(
                f"is of the class {kind.__qualname__} of {module}, which is not in the session's files",
                "define it in a file of the bundle, or pass a dict",
            )
        return f"{module}:{kind.__qualname__}"

    def find(self, name: str) -> Any:
        """Return the class of that name on the nodes; None unless it is of a file of the session."""
        if type(name) is not str:
            return None
        module, _, qualname = name.partition(":")
        file = self._file_of(module.split("."))
        if module.partition(".")[0] in self._packages and module in sys.modules:
            candidates: list[Any] = [sys.modules[module]]
        elif file is not None:
            candidates = self._imported(module, file)
        else:
            return None
        for candidate in candidates:
            found: Any = candidate
            for part in qualname.split("."):
                found = getattr(found, "__dict__", {}).get(part)
            if isinstance(found, type) and found.__module__ == candidate.__name__:
                return found
        return None

    def _file_of(self, parts: list[str]) -> str | None:
        path = "/".join(parts)
        return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in self._files), None)

    @staticmethod
    def _imported(module: str, file: str) -> list[Any]:
        """Return the modules that may be this file: those of its name first."""
        found = []
        for name, imported in list(sys.modules.items()):
            if name == module or name.endswith(f".{module}"):
                path = str(getattr(imported, "__file__", None) or "").replace("\\", "/")
                if path.endswith(f"/{file}"):
                    found.append((name != module, imported))
        return [imported for _, imported in sorted(found, key=lambda each: each[0])]


def _is_installed(module: str) -> bool:
    """Return whether a module is of the standard library, or of an installed package."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return True
    path = str(getattr(sys.modules.get(module), "__file__", None) or "").replace("\\", "/")
    return any(part in path for part in _INSTALLED)

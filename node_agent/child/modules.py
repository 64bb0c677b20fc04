"""How a child imports the files of a bundle, and never mixes two bundles.

Rules:

- While a bundle is in use its working directory stands first on `sys.path`, so that its files import each
  other by plain `import x`, as scripts in one folder do.
- A module stays imported as long as the bundle stays. When another bundle comes, every module that came
  from the old one's directory is dropped. Directories are named by the bundle's hash, so neither byte code
  nor source lines nor finders can be those of another version.
- A command whose name is also that of a module of the standard library or of one that is already loaded
  (`json.py`) is imported under a private name: it takes nothing away from anybody.
- Modules of the interpreter's own library and of installed packages stay loaded for the child's life.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_PRIVATE = "_task_file_"
_OWN = ("batchflow", "node_agent")
"""What runs tasks, which no environment replaces."""
_KEPT_FUNCTIONS = 100
"""Functions that stay loaded for the tasks after them, those by value most of all."""


class NoAction(Exception):
    """The file was imported, and has no `do_action` that can be called."""


class Modules:
    """The modules of the bundle in use."""

    def __init__(self) -> None:
        self._bundle: str | None = None
        self.directory = ""
        """The working directory of the bundle in use."""
        self._actions: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._base = list(sys.path)
        self._path: list[str] = []
        self._loaded = False
        self._packages: str | None = None
        """The folder of the environment."""

    def use(self, bundle: str, directory: str) -> bool:
        """Switch to a bundle, unless it is in use already; return whether another one was in use."""
        if bundle == self._bundle and directory == self.directory:
            if sys.path != self._path:
                sys.path[:] = self._path
            return False
        switches = self._bundle is not None
        self._drop()
        sys.path[:] = [directory, *self._base]
        self._path = list(sys.path)
        self._bundle, self.directory = bundle, directory
        importlib.invalidate_caches()
        return switches

    def has_loaded(self) -> bool:
        """Return whether a file was imported since the last call. What it added to `sys.path` stays then."""
        loaded, self._loaded = self._loaded, False
        if loaded:
            self._path = list(sys.path)
        return loaded

    def add_packages(self, folder: str) -> None:
        """Let imports find an environment's packages before those of the node. Nothing happens again.

        What this process has loaded of packages that the environment brings as well is forgotten by name: the
        next import finds the environment's.
        """
        if folder == self._packages:
            return
        self._packages = folder
        before = list(sys.path)
        site = self.own_import("site")
        site.addsitedir(folder)
        added = [entry for entry in sys.path if entry not in before]
        sys.path[:] = before
        self._base = [*added, *self._base]
        brought = {entry.partition(".")[0] for entry in os.listdir(folder)}
        for name in list(sys.modules):
            top = name.partition(".")[0]
            if top in brought and top not in sys.stdlib_module_names and top not in _OWN:
                del sys.modules[name]
        self._bundle = None  # the next `use` lays the path out

    def action(self, command: str) -> Any:
        """Return the `do_action` of a file. Raises `NoAction`, and whatever the file raises when imported."""
        if (action := self._actions.get(command)) is None:
            action = self._actions[command] = _action_of(self._load(command), command)
            self._loaded = True
        return action

    def function(self, command: str, pickle: str | None) -> Any:
        """Return the function `module:qualname`. Raises whatever its module raises when it is imported.

        `pickle`: the file that has it by value; None: its name leads to it. A module whose file is in the
        bundle is that one and no other: `ImportError` says what was found in its place.
        """
        key = command if pickle is None else pickle
        if (found := self._functions.get(key)) is None:
            while len(self._functions) >= _KEPT_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
            found = self._functions[key] = self._import(command) if pickle is None else self._unpickle(pickle)
            self._loaded = True
        return found

    def _unpickle(self, path: str) -> Any:
        pickle = self.own_import("pickle")
        with open(path, "rb") as file:
            return pickle.load(file)

    def _import(self, command: str) -> Any:
        name, _, qualname = command.partition(":")
        module = importlib.import_module(name)
        top = sys.modules[name.partition(".")[0]]
        if self._present(top.__name__) and not _lies_in(top, self.directory + os.sep):
            raise ImportError(
                f"the module {top.__name__} of the bundle has the name of a module that is here already, "
                f"{getattr(top, '__file__', None) or 'one of the interpreter'}: rename yours"
            )
        return attrgetter(qualname)(module)

    def missing(self, command: str, error: BaseException) -> str:
        """Return what to do about a module that a task did not find; nothing for any other error."""
        if type(error) is not ModuleNotFoundError or not error.name:
            return ""
        name = error.name.partition(".")[0]
        folder = os.path.dirname(command)
        if folder and (beside := self._present(f"{folder}/{name}")):
            parent = folder.replace("/", ".")
            if all(part.isidentifier() for part in parent.split(".")):
                way = f"write `from {parent} import {name}`"
            else:
                way = f"have the files of {folder}/ at the top (files=['.../{folder}/'])"
            return f"; {beside} is in the bundle, but imports begin at its top: {way}"
        if self._present(name):
            return ""
        return (
            f"; the bundle has no {name}.py, and the node no package {name}: add the file (files=, --file) "
            "or the package (PoolSpec(pip=[...]))"
        )

    def _present(self, name: str) -> str | None:
        for path in (f"{name}.py", f"{name}/"):
            if os.path.exists(os.path.join(self.directory, path)):
                return path
        return None

    def _drop(self) -> None:
        self._actions.clear()
        self._functions.clear()
        if not self.directory:
            return
        inside = self.directory + os.sep
        doomed = [
            name
            for name, module in list(sys.modules.items())
            if name.startswith(_PRIVATE) or _lies_in(module, inside)
        ]
        for name in doomed:
            del sys.modules[name]
        for entry in [entry for entry in sys.path_importer_cache if _within(entry, inside)]:
            del sys.path_importer_cache[entry]

    def _load(self, command: str) -> ModuleType:
        path = os.path.join(self.directory, command)
        name = command.removesuffix(".py").replace("/", ".")
        if self._can_be(name):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name not in _parents(name):
                    raise
            else:
                if getattr(module, "__file__", None) == path:
                    return module
        return self._load_privately(command, path)

    def _can_be(self, name: str) -> bool:
        """Return whether a plain import of that name may find the bundle's file."""
        top = name.partition(".")[0]
        if not all(part.isidentifier() for part in name.split(".")) or top in sys.stdlib_module_names:
            return False
        present = sys.modules.get(top)
        return present is None or _lies_in(present, self.directory + os.sep)

    def _load_privately(self, command: str, path: str) -> ModuleType:
        name = _PRIVATE + "".join(char if char.isalnum() else "_" for char in command)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{command} is not Python source")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    def own_import(self, name: str) -> Any:
        """Return a module of the standard library for the child itself, whatever the bundle's files are
        called."""
        if name in sys.modules:
            return sys.modules[name]
        path = sys.path[:]
        sys.path[:] = [entry for entry in path if entry != self.directory]
        try:
            return importlib.import_module(name)
        finally:
            sys.path[:] = path


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[: count + 1]) for count in range(len(parts))}


def _within(path: object, inside: str) -> bool:
    return isinstance(path, str) and (path + os.sep).startswith(inside)


def _lies_in(module: object, inside: str) -> bool:
    attributes = getattr(module, "__dict__", {})
    if _within(attributes.get("__file__"), inside):
        return True
    try:
        return any(_within(entry, inside) for entry in attributes.get("__path__") or ())
    except (KeyError, TypeError):
        return False


def _action_of(module: ModuleType, command: str) -> Any:
    action = getattr(module, "do_action", None)
    if action is None:
        there = [name for name, value in vars(module).items() if callable(value) and name[:1] != "_"]
        defines = f"; it defines {', '.join(sorted(there)[:8])}" if there else ""
        raise NoAction(f"{command} has no do_action(engine, args){defines}")
    if not callable(action):
        raise NoAction(f"do_action in {command} is {type(action).__name__}, not a function (engine, args)")
    return action

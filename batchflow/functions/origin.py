"""Where a function comes from, which decides how it travels.

| the function | travels |
|---|---|
| of an installed distribution, or of the standard library | by name; the node's environment has it |
| of a module of the user's own project | by name; its files join the session's bundle |
| without a module that can be imported (`__main__`, a cell, a lambda, a closure) | by value, as a pickle |

Only modules that are imported already are looked at. Nothing is imported to find out.
"""

from __future__ import annotations

import enum
import functools
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from batchflow.errors import ConfigurationError
from batchflow.support.distributions import local_places
from batchflow.support.frozen import frozen

_BY_VALUE_ONLY: Final = ("__main__", "__mp_main__")
"""Modules that another process has under the same name with other content."""


class Home(enum.Enum):
    """What kind of code a module is."""

    INSTALLED = "installed"
    """Part of an installed distribution, of the standard library, or built into the interpreter."""
    OWN = "own"
    """A file or a package of the user's own project, also one that was installed from its folder."""
    NOWHERE = "nowhere"
    """Made while the program runs: no file that another process could import."""


@frozen
class Call:
    """A function, and the arguments that a `functools.partial` around it has already."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]


@frozen
class FunctionOrigin:
    """Where a function is found by name."""

    module: str
    qualname: str
    home: Home

    @property
    def by_name(self) -> bool:
        return self.home is not Home.NOWHERE

    @property
    def label(self) -> str:
        """The function as errors, views and the wire name it: `module:qualname`."""
        return f"{self.module}:{self.qualname}"


def unwrap(function: Callable[..., Any]) -> Call:
    """Take the `functools.partial`s off a function."""
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        args = function.args + args
        keywords = {**function.keywords, **keywords}
        function = function.func
    return Call(function, args, keywords)


def origin_of(function: Callable[..., Any]) -> FunctionOrigin:
    """Return where a function comes from. Raises `ConfigurationError` for what is no function to run.

    A name counts only if it leads to this very object. A decorated function whose name leads to something
    else has no name of its own, so it travels by value.
    """
    if not callable(function):
        raise ConfigurationError(f"{function!r} cannot be called: a function or the name of a file is needed")
    module_name = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not isinstance(qualname, str):  # an object with __call__
        kind = type(function)
        return FunctionOrigin(kind.__module__, kind.__qualname__, Home.NOWHERE)
    if not isinstance(module_name, str):
        module_name = _module_with(function, qualname) or "__main__"
    if module_name in _BY_VALUE_ONLY or found_by_name(module_name, qualname) is not function:
        return FunctionOrigin(module_name, qualname, Home.NOWHERE)
    return FunctionOrigin(module_name, qualname, home_of(sys.modules[module_name]))


def home_of(module: ModuleType) -> Home:
    """Return what kind of code a module is."""
    top = module.__name__.partition(".")[0]
    if top in _BY_VALUE_ONLY:
        return Home.NOWHERE
    if top in sys.stdlib_module_names:
        file = getattr(module, "__file__", None)
        return Home.INSTALLED if file is None or is_installed(file) else Home.OWN
    paths = [file] if (file := getattr(module, "__file__", None)) else list(getattr(module, "__path__", ()))
    if not paths:
        spec = getattr(module, "__spec__", None)
        return Home.NOWHERE if spec is None or spec.origin is None else Home.INSTALLED
    if any(is_installed(path) for path in paths):
        return Home.INSTALLED
    return Home.OWN if all(os.path.exists(path) for path in paths) else Home.NOWHERE


def found_by_name(module_name: str, qualname: str) -> Any:
    """Return the object that a name leads to; None when it leads nowhere. Imports nothing."""
    found: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        if found is None or part == "<locals>":
            return None
        found = getattr(found, part, None)
    return found


@functools.lru_cache(maxsize=4096)
def is_installed(path: str) -> bool:
    """Return whether a path belongs to the interpreter or to its installed distributions.

    A distribution that was installed from a folder here is the user's own project: no index has it.
    """
    real = os.path.realpath(path)
    within = [folder for folder in _installed_folders() if real.startswith(folder)]
    if not within:
        return False
    place = real.removeprefix(max(within, key=len)).partition(os.sep)[0]
    return place not in local_places()


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    found = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found.update(site.getsitepackages())
    found.add(site.getusersitepackages())
    return tuple(os.path.realpath(folder) + os.sep for folder in found if folder)


def _module_with(function: Callable[..., Any], qualname: str) -> str | None:
    """Return the module that holds a function which does not say; C functions of some packages do not."""
    for name, module in list(sys.modules.items()):
        if name not in _BY_VALUE_ONLY and getattr(module, "__dict__", {}).get(qualname) is function:
            return name
    return None

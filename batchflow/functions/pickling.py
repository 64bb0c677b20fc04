"""Functions that travel by value: a pickle, and what of the project it refers to by name.

The pickle is opened in the process of the task alone. It is cloudpickle's, which puts the byte code of a
function into it: only the same minor version of Python can open it.
"""

from __future__ import annotations

import io
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import cloudpickle

from batchflow.errors import ConfigurationError
from batchflow.functions.origin import Home, found_by_name, home_of
from batchflow.support.frozen import frozen

_STEPS: Final = 10_000
"""Maximum number of objects that are looked at to find what could not be pickled."""
_KEPT_HERE: Final = frozenset(
    {
        "batchflow.client",
        "batchflow.pool",
        "batchflow.job",
        "batchflow.session",
        "batchflow.task",
        "batchflow.streams",
        "batchflow.settings",
    }
)
"""Modules whose objects hold connections or keys. They stay in the process that made them."""
_registry: Final = threading.Lock()
"""Held while cloudpickle is told of modules that travel by value, which it keeps for the whole process."""


@frozen
class PickledFunction:
    """A function by value."""

    data: bytes
    modules: frozenset[str]
    """The modules of the user's project that it refers to by name."""


class _Refused(Exception):
    """An object that stays in this process."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Notes the modules that the pickle refers to, and the object that it was at when it failed."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()
        self.last: Any = None

    def reducer_override(self, obj: Any) -> Any:
        self.last = obj
        if type(obj).__module__ in _KEPT_HERE:
            raise _Refused
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        elif isinstance(obj, types.FunctionType | types.BuiltinFunctionType | type):
            module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
            if isinstance(module, str) and found_by_name(module, qualname) is obj:
                self.modules.add(module)
        return super().reducer_override(obj)


def pickle_function(function: Callable[..., Any], name: str) -> PickledFunction:
    """Pickle a function with what it closes over. `name`: as errors call it.

    Raises `ConfigurationError` for a function that holds what cannot travel; it names the variable.
    """
    by_value: set[str] = set()
    while True:
        data, modules = _dump(function, name, by_value)
        homes = {module: home_of(sys.modules[module]) for module in modules if module in sys.modules}
        made_here = {module for module, home in homes.items() if home is Home.NOWHERE} - _own_mains()
        if made_here <= by_value:
            return PickledFunction(
                data, frozenset(module for module, home in homes.items() if home is Home.OWN)
            )
        by_value |= made_here


def _own_mains() -> set[str]:
    """Return the modules that cloudpickle takes by value without being told."""
    return {"__main__", "__mp_main__"}


def _dump(function: Callable[..., Any], name: str, by_value: set[str]) -> tuple[bytes, set[str]]:
    """Pickle; `by_value`: modules whose functions and classes go into the pickle."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    with _registry:
        added = [
            sys.modules[module]
            for module in by_value
            if module not in cloudpickle.list_registry_pickle_by_value()
        ]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            pickler.dump(function)
        except Exception as error:
            raise ConfigurationError(_refusal(function, name, pickler.last, error)) from error
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue(), pickler.modules


def _refusal(function: Callable[..., Any], name: str, culprit: Any, error: Exception) -> str:
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    if (path := _path_to(culprit, function)) is not None:
        found = f"{path} is of type {kind}"
    else:
        found = f"{_failing_part(function) or 'it'} holds an object of type {kind}"
    if isinstance(error, _Refused):
        reason = "it holds connections or keys, which stay in this process"
    else:
        reason = str(error)
    return (
        f"the function {name} cannot travel to a node: {found} ({reason}); make it inside "
        "the function, or pass what it was made from as an argument"
    )


def _failing_part(function: Callable[..., Any]) -> str | None:
    """Return the variable that cannot be pickled, where its parts cannot be looked at."""
    for path, value in _parts("", function):
        try:
            _Pickler(io.BytesIO()).dump(value)
        except Exception:
            return path
    return None


def _path_to(culprit: Any, function: Callable[..., Any]) -> str | None:
    """Return the variable that leads to an object, as a reader of the function would write it."""
    queue: deque[tuple[str, Any]] = deque(_parts("", function))
    seen: set[int] = {id(function)}
    for _ in range(_STEPS):
        if not queue:
            return None
        path, value = queue.popleft()
        if value is culprit:
            return path
        if id(value) not in seen:
            seen.add(id(value))
            queue.extend(_parts(path, value))
    return None


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Return what an object holds that a pickle of it would hold, too."""
    if isinstance(value, types.FunctionType):
        yield from _variables(value)
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
        yield from _parts(path, value.__func__)
    elif isinstance(value, dict):
        yield from ((f"{path}[{_short(key)}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{path}[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f"an item of {path}", part) for part in value)
    elif not isinstance(value, type | types.ModuleType):
        prefix = path or "self"
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            yield from ((f"{prefix}.{name}", part) for name, part in attributes.items())


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Return the variables that a function takes from around it, and its default arguments."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the variable {name}", cell.cell_contents
        except ValueError:
            continue  # not bound yet
    for name in _global_names(code):
        if name in function.__globals__:
            yield f"the variable {name}", function.__globals__[name]
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    for name, value in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        yield f"the default of {name}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"the default of {name}", value


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Return the names that code may look up among the globals, nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."

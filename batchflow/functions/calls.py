"""Makes a command of what a user calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchflow.functions.command import FunctionCommand
from batchflow.functions.origin import Home, origin_of, unwrap


def function_command(function: Callable[..., Any]) -> FunctionCommand:
    """Look where a function comes from, and pickle it if no name leads to it.

    Raises `ConfigurationError` for what cannot be called, or holds what cannot travel.
    """
    call = unwrap(function)
    origin = origin_of(call.function)
    modules, pickled = frozenset[str](), None
    if not origin.by_name:
        from batchflow.functions.pickling import pickle_function  # takes some 20 ms, and few need it

        by_value = pickle_function(call.function, origin.qualname)
        modules, pickled = by_value.modules, by_value.data
    elif origin.home is Home.OWN:
        modules = frozenset({origin.module})
    return FunctionCommand(
        label=origin.label, args=call.args, keywords=call.keywords, modules=modules, pickled=pickled
    )


def as_command(command: str | Callable[..., Any]) -> str | FunctionCommand:
    """Return what a session runs: the name of a file, or a function. Raises as `function_command` does."""
    return function_command(command) if callable(command) else command

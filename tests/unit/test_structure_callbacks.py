"""anyio is asked for scopes, timeouts and tasks in coroutines only.

Where sniffio is installed, anyio refuses them in a callback of the event loop, which is in no task. Whether a
function that is no coroutine is called in one is not to be seen from the source, so none of them may ask.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchflow
import node_agent

SOURCES = [path for package in (batchflow, node_agent) for path in Path(package.__path__[0]).rglob("*.py")]
LATE = {"Lock", "CapacityLimiter"}
"""Look for their loop when they are first waited for."""


def misuses(source: str) -> list[int]:
    """The lines outside of coroutines where something of anyio's is used, or a task is begun in a group that
    was kept. A group that is handed over comes from a coroutine."""
    if "anyio" not in source and "start_soon" not in source:
        return []
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "anyio"
        for alias in node.names
    }
    outside = _outside_of_coroutines(tree)
    return [node.lineno for node in outside if isinstance(node, ast.expr) and _asks(node, names)]


def _asks(node: ast.expr, names: set[str]) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="anyio"), attr=name):
            return name not in LATE
        case ast.Attribute(value=ast.Attribute(), attr="start_soon"):
            return True
        case ast.Name(id=name):
            return name in names - LATE
    return False


def _outside_of_coroutines(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that is not in the body of a coroutine itself, annotations left out."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or (isinstance(node, ast.AsyncFunctionDef) and field == "body"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _outside_of_coroutines(child)
    if isinstance(node, ast.AsyncFunctionDef):
        yield from _functions_in(node)


def _functions_in(node: ast.AST) -> Iterator[ast.AST]:
    """What the functions are made of that are defined in a coroutine and are none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.AsyncFunctionDef):
            yield from _outside_of_coroutines(child)
        else:
            yield from _functions_in(child)


def test_only_coroutines_ask_anyio() -> None:
    """Everywhere in batchflow and in the agent."""
    found = {str(path): lines for path in SOURCES if (lines := misuses(path.read_text("utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    anyio.Event()",
        "def f():\n    with anyio.move_on_after(1): pass",
        "def f(self):\n    self._group.start_soon(g)",
        "async def f():\n    loop.call_soon(lambda: anyio.current_time())",
        "async def f():\n    def g():\n        return anyio.CancelScope()",
        "from anyio import CancelScope\nclass A:\n    scope: Any = field(default_factory=CancelScope)",
        "from anyio import CancelScope as Scope\nx = Scope()",
    ],
)
def test_what_the_look_at_the_sources_finds(source: str) -> None:
    """Calls, and what is handed over to be called."""
    assert misuses(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "import anyio\nasync def f(x: anyio.Event) -> anyio.Event:\n    with anyio.CancelScope(): pass",
        "def f(x: anyio.Event | None) -> anyio.Event:\n    y: anyio.Event",
        "def f():\n    return anyio.Lock()",
        "def f(group):\n    group.start_soon(g)",
        "async def f(self):\n    def g():\n        async def h():\n            await anyio.sleep(1)",
    ],
)
def test_what_the_look_at_the_sources_lets_pass(source: str) -> None:
    """Annotations, coroutines, and what needs no loop yet."""
    assert misuses(source) == []

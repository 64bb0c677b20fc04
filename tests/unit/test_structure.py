"""The structure of the two packages, read from their sources: private members, names, sizes.

Which layer may import which is import-linter's matter: see `pyproject.toml`.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("batchflow", "node_agent")
SDK_PATCHES = ("batchflow/azure/sdk_patches.py",)
"""The files that may use private members of the SDKs."""
MOST_FILES, MOST_LINES, MOST_CLASS_LINES = 20, 3_500, 400
LARGE_CLASSES = {"Connection", "Queue"}
"""One state machine each, which would not be clearer in two: AMQP 1.0's, and that of a Service Bus queue."""
MOST_IN_TESTS = 56
"""Private members of other objects that the tests use: the SDKs' own, which have no public view, and
places where a fault is let in. The limit only goes down."""


def defined_in(tree: ast.Module) -> set[str]:
    """The names that a module gives to functions, classes, variables and members of its own."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(ctx=ast.Store(), value=ast.Name(id="self" | "cls"), attr=name):
                names.add(name)
            case ast.Name(ctx=ast.Store(), id=name):
                names.add(name)
    return names


def foreign_private_members(tree: ast.Module) -> list[str]:
    """Uses of `other._name` where this module does not define `_name` itself."""
    own = defined_in(tree)
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                continue
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit"):
                continue
            case ast.Attribute(attr="_repr_html_"):  # a notebook's public protocol
                continue
            case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                if name not in own:
                    found.append(f"line {node.lineno}: {ast.unparse(node)[:60]}")
    return found


@cache
def room_of(module: str) -> str | None:
    """Return the folder that a module is in; the module itself at the top of a package. None: not ours."""
    path = ROOT / module.replace(".", "/")
    if path.with_suffix(".py").exists():
        return module if "." not in (folder := module.rpartition(".")[0]) else folder
    return module if "." in module and path.is_dir() else None


def imported_by(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield what a module imports, also within functions and for annotations alone."""
    for node in nodes:
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                for alias in names:
                    name = f"{module}.{alias.name}"
                    yield name if room_of(name) else module
            case ast.Import(names=names):
                yield from (alias.name for alias in names)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tests below want to know of a file. The tree itself is large, and not kept."""

    private: list[str]
    """Uses of private members of other modules."""
    imports: frozenset[str]
    classes: list[tuple[str, int]]
    """Names and lines of all classes."""
    loggers: list[int]
    """Lines that get a logger."""


@cache
def facts(top: str) -> dict[str, Facts]:
    """Read each file below a folder once."""
    found = {}
    for path in sorted((ROOT / top).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        nodes = list(ast.walk(tree))
        found[str(path.relative_to(ROOT))] = Facts(
            private=foreign_private_members(tree),
            imports=frozenset(imported_by(nodes)),
            classes=[
                (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
                for node in nodes
                if isinstance(node, ast.ClassDef)
            ],
            loggers=[
                node.lineno for node in nodes if isinstance(node, ast.Attribute) and node.attr == "getLogger"
            ],
        )
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_uses_private_members_of_another(package: str) -> None:
    """What is shared is handed over."""
    found = {
        name: each.private
        for name, each in facts(package).items()
        if each.private and name not in SDK_PATCHES
    }
    assert found == {}


def test_tests_use_few_private_members() -> None:
    """The SDKs' own in tests of their patches, and some that no public name leads to."""
    found = {name: each.private for name, each in facts("tests").items() if each.private}
    assert sum(map(len, found.values())) <= MOST_IN_TESTS, found


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_do_not_import_each_other_in_a_circle(package: str) -> None:
    """Only an error carries the outcome that it tells of, which in turn raises it."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, each in facts(package).items():
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if (own := room_of(module)) is not None:
            found = {room for imported in each.imports if (room := room_of(imported)) is not None}
            rooms[own] |= {room for room in found if room.startswith(package)} - {own}
    rooms["batchflow.errors"].discard("batchflow.model")
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tour_names_each_folder(package: str) -> None:
    """Those of the local cloud have a page of their own."""
    tour = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## What is where")[2]
    rows = [line for line in tour.splitlines() if line.startswith("|")]
    unnamed = []
    for path in (ROOT / package).rglob("__init__.py"):
        folder = path.parent.relative_to(ROOT)
        if len(folder.parts) == 1 or (folder.parts[1] == "local" and len(folder.parts) > 2):
            continue
        own = any(f"`{folder}`" in row for row in rows)
        if not own and not any(f"`{folder.parent}`" in row and f"`{folder.name}`" in row for row in rows):
            unnamed.append(str(folder))
    assert unnamed == []


@pytest.mark.parametrize("package", PACKAGES)
def test_each_class_name_is_used_once(package: str) -> None:
    """So that a name in a traceback or in a conversation means one thing."""
    names = Counter(name for each in facts(package).values() for name, _ in each.classes)
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def test_unit_tests_are_named_after_the_file_that_they_test() -> None:
    """`tests/unit/sessions/test_sender.py` and `test_sender_limits.py` test `sessions/sender.py`."""
    astray = []
    for path in (ROOT / "tests/unit").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests/unit")
        files = [each.stem for package in PACKAGES for each in (ROOT / package / folder).glob("*.py")]
        name = path.stem.removeprefix("test_")
        if not any(name == each or name.startswith(f"{each}_") for each in ("structure", *files)):
            astray.append(str(folder / path.name))
    assert astray == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_has_outgrown_its_purpose(package: str) -> None:
    """The local cloud is three services, and larger."""
    lines: dict[str, list[int]] = defaultdict(list)
    for path in (ROOT / package).rglob("*.py"):
        lines[str(path.parent.relative_to(ROOT))].append(len(path.read_text("utf-8").splitlines()))
    large = {
        folder: (len(counts), sum(counts))
        for folder, counts in lines.items()
        if not folder.startswith("batchflow/local")
        and (len(counts) > MOST_FILES + 1 or sum(counts) > MOST_LINES)
    }
    assert large == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_class_has_outgrown_its_purpose(package: str) -> None:
    """A class that does one thing is short."""
    large = {
        f"{path}: {name}": lines
        for path, each in facts(package).items()
        for name, lines in each.classes
        if lines > MOST_CLASS_LINES and name not in LARGE_CLASSES
    }
    assert large == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("other._member", 1),
        ("self.part._member = 1", 1),
        ("def f(self): return self._member", 0),
        ("class A:\n    def __init__(self): self._x = 1\n    def __eq__(self, other): return other._x", 0),
        ("import os\nos._exit(1)", 0),
        ("super()._member", 0),
        ("other.__dict__", 0),
    ],
)
def test_what_counts_as_a_foreign_private_member(source: str, count: int) -> None:
    """A module may use the private members that it defines itself."""
    assert len(foreign_private_members(ast.parse(source))) == count


def test_log_lines_of_the_client_carry_their_fields() -> None:
    """A line that says `session_warning` alone helps nobody: each logger is an `EventLogger`."""
    own = ("batchflow/support/event_log.py", "batchflow/cli/", "batchflow/local/")
    found = [
        f"{name} line {line}"
        for name, each in facts("batchflow").items()
        if not name.startswith(own)
        for line in each.loggers
    ]
    assert found == []

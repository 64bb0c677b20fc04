"""The structure of the two packages, read from their sources: private members, names, sizes.

Which folder may import which is import-linter's matter: see `pyproject.toml`.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
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


def sources(*tops: str) -> Iterator[tuple[str, ast.Module]]:
    for top in tops:
        for path in sorted((ROOT / top).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))


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


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_uses_private_members_of_another(package: str) -> None:
    """What is shared is handed over."""
    found = {
        name: uses
        for name, tree in sources(package)
        if name not in SDK_PATCHES and (uses := foreign_private_members(tree))
    }
    assert found == {}


def test_tests_use_few_private_members() -> None:
    """The SDKs' own in tests of their patches, and some that no public name leads to."""
    found = {name: uses for name, tree in sources("tests") if (uses := foreign_private_members(tree))}
    assert sum(map(len, found.values())) <= MOST_IN_TESTS, found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_class_name_is_used_once(package: str) -> None:
    """So that a name in a traceback or in a conversation means one thing."""
    names = Counter(
        node.name
        for _, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


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
        f"{name}: {node.name}": node.end_lineno - node.lineno + 1
        for name, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MOST_CLASS_LINES
        and node.name not in LARGE_CLASSES
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
        f"{name} line {node.lineno}"
        for name, tree in sources("batchflow")
        if not name.startswith(own)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "getLogger"
    ]
    assert found == []

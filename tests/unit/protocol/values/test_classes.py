"""Classes of a session's own files are found where they are imported already, and no others."""

from __future__ import annotations

import dataclasses
import http
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchflow.protocol.values.classes import BundleClasses
from batchflow.protocol.values.misfits import Unencodable


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of the file `shapes.py`, which a program imports as part of the package `tasks`."""
    module = ModuleType("tasks.shapes")
    module.__file__ = str(tmp_path / "tasks" / "shapes.py")
    kind = dataclasses.make_dataclass("Point", ["x"], namespace={"__module__": "tasks.shapes"})
    kind.__module__ = "tasks.shapes"
    module.__dict__["Point"] = kind
    monkeypatch.setitem(sys.modules, "tasks.shapes", module)
    return kind


def made(*files: str) -> BundleClasses:
    classes = BundleClasses()
    classes.add(files)
    return classes


def test_a_class_has_the_name_that_the_nodes_know(shapes: type) -> None:
    """Its file's name in the bundle, in whatever folder it lies here."""
    assert made("shapes.py").name_of(shapes) == "shapes:Point"
    assert made("tasks/shapes.py").name_of(shapes) == "tasks.shapes:Point"
    assert made("tasks/shapes/__init__.py").name_of(shapes) == "tasks.shapes:Point"


@pytest.mark.parametrize("file", ["shapes.py", "tasks/shapes.py"])
def test_a_class_of_the_files_is_found_again(shapes: type, file: str) -> None:
    """By the name that it came with."""
    classes = made(file)
    assert classes.find(classes.name_of(shapes)) is shapes


@pytest.mark.parametrize(
    "name",
    ["http:HTTPStatus", "shapes:Other", "shapes:Point.x", "other:Point", "shapes", "", ":", "os:system", 5],
)
def test_what_is_not_a_class_of_the_files_is_not_found(shapes: type, name: Any) -> None:
    """Though it is imported."""
    assert made("shapes.py").find(name) is None


def test_a_module_that_is_not_imported_is_not_found() -> None:
    """Nor is it imported."""
    assert made("tabnanny.py").find("tabnanny:NannyNag") is None


def test_a_file_that_only_has_the_name_is_not_the_module() -> None:
    """The module must be of a file of that name."""
    assert made("http.py").find("http:HTTPStatus") is None
    assert made("http/__init__.py").find("http:HTTPStatus") is http.HTTPStatus


class Local:
    pass


@pytest.mark.parametrize("kind", [Local, type("Made", (), {"__module__": "__main__"})])
def test_a_class_that_the_nodes_lack_is_refused(kind: type) -> None:
    """With what to do."""
    with pytest.raises(Unencodable, match="not in the session's files"):
        made("shapes.py").name_of(kind)


def test_an_installed_class_goes_by_its_name() -> None:
    """The nodes may have it installed as well."""
    assert made().name_of(http.HTTPStatus) == "http:HTTPStatus"
    assert made().name_of(pytest.ExceptionInfo) == "_pytest._code.code:ExceptionInfo"

"""The files of a project that a function needs."""

from __future__ import annotations

import importlib
import sys

import pytest

from batchflow.errors import ConfigurationError
from batchflow.functions.own_code import OwnCode
from tests.unit.functions.conftest import Project


def _names(code: OwnCode) -> list[str]:
    return [file.name for file in code.files()]


def _code_of(module: str) -> OwnCode:
    importlib.import_module(module)
    code = OwnCode()
    code.add(module)
    return code


def test_a_module_stands_for_its_file_and_a_package_for_its_folder(project: Project) -> None:
    project(
        {
            "single_d.py": "",
            "package_d/__init__.py": "",
            "package_d/deep/part.py": "",
            "package_d/data.csv": "1",
            "other_d.py": "",
        }
    )
    code = _code_of("single_d")
    importlib.import_module("package_d")
    code.add("package_d.deep.part")

    assert _names(code) == [
        "package_d/__init__.py",
        "package_d/data.csv",
        "package_d/deep/part.py",
        "single_d.py",
    ]


def test_what_a_file_imports_of_the_project_comes_along_wherever_the_import_stands(project: Project) -> None:
    project(
        {
            "first_e.py": "import json, orjson\ndef f():\n    from second_e import x\n",
            "second_e.py": "import third_e.part\n",
            "third_e/__init__.py": "",
            "third_e/part.py": "",
            "unused_e.py": "",
        }
    )

    assert _names(_code_of("first_e")) == [
        "first_e.py",
        "second_e.py",
        "third_e/__init__.py",
        "third_e/part.py",
    ]
    assert "second_e" not in sys.modules  # nothing was imported to find out


def test_a_folder_without_init_comes_along_only_when_it_was_imported_as_a_package(project: Project) -> None:
    project({"first_f.py": "def f():\n    import docker_f\n", "docker_f/image": "large"})
    code = _code_of("first_f")
    assert _names(code) == ["first_f.py"]

    importlib.import_module("docker_f")
    try:
        assert _names(code) == ["docker_f/image", "first_f.py"]
    finally:
        del sys.modules["docker_f"]


def test_a_changed_file_is_seen_with_its_new_imports(project: Project) -> None:
    project({"first_g.py": "", "second_g.py": ""})
    code = _code_of("first_g")
    before = code.files()

    project({"first_g.py": "import second_g  # now it does"})

    assert [file.name for file in code.files()] == ["first_g.py", "second_g.py"]
    assert code.files()[0].stamp != before[0].stamp


def test_a_file_that_is_no_python_comes_along_without_imports(project: Project) -> None:
    project({"first_h/__init__.py": "", "first_h/broken.py": "def (", "first_h/nul.py": "\0"})

    assert _names(_code_of("first_h")) == ["first_h/__init__.py", "first_h/broken.py", "first_h/nul.py"]


def test_a_module_that_shadows_the_standard_library_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="module statistics of your project"):
        OwnCode().add("statistics")

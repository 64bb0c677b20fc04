"""What a task's file imports from its folder."""

from __future__ import annotations

from pathlib import Path

from batchflow.cli.local_imports import has_others, with_imports


def test_a_task_takes_along_what_it_imports(tmp_path: Path) -> None:
    """Directly and through what it imports, modules and packages; nothing of the standard library."""
    files = {
        "task.py": "import helper, numpy, json\nfrom pack.core import x\nfrom . import odd\n",
        "helper.py": "def f():\n    import lazy\n",
        "lazy.py": "import task\n",
        "pack/__init__.py": "",
        "pack/core.py": "import third\nx = 1\n",
        "pack/data.txt": "",
        "pack/__pycache__/core.pyc": "",
        "third.py": "def broken(:\n",
        "json.py": "",
        "odd.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    taken = with_imports(tmp_path / "task.py")
    wanted = [
        "helper.py",
        "lazy.py",
        "pack/__init__.py",
        "pack/core.py",
        "pack/data.txt",
        "task.py",
        "third.py",
    ]
    assert taken == {name: str(tmp_path / name) for name in wanted}
    assert has_others(tmp_path / "task.py", taken)


def test_a_program_is_taken_alone(tmp_path: Path) -> None:
    """What is no Python source is not read."""
    (tmp_path / "tool.sh").write_text("import x\n")
    assert with_imports(tmp_path / "tool.sh") == {"tool.sh": str(tmp_path / "tool.sh")}
    assert not has_others(tmp_path / "tool.sh", {"tool.sh": ""})


def test_a_package_leaves_its_credentials_and_its_environment_here(tmp_path: Path) -> None:
    """As a directory of a bundle does: these files are for this machine."""
    for name in ("core.py", "service.pem", "id_rsa", "credentials.json", "venv/pyvenv.cfg", "venv/lib.py"):
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "task.py").write_text("import pack.core\n")

    assert sorted(with_imports(tmp_path / "task.py")) == ["pack/core.py", "task.py"]

"""What a user may give as requirements."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchflow import ConfigurationError
from batchflow.environments.requirements import named_requirements


def test_a_command_line_names_packages_a_file_or_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "a @ https://x.test/a.toml"
    assert named_requirements(()) is None
    assert named_requirements(("numpy>=2", url)) == ["numpy>=2", url]
    assert named_requirements(("requirements.txt",)) == str(tmp_path / "requirements.txt")
    assert named_requirements(("current",)) == "current"
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml names all packages; give it alone"):
        named_requirements(("numpy", "pyproject.toml"))

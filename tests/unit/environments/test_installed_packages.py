"""Copies of installed packages, where no installer is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from batchflow.environments.installed_packages import NotPortable, files_of, installed_for
from batchflow.errors import ConfigurationError
from batchflow.pools import agent_archive

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_packages_come_with_what_they_need() -> None:
    """Extras that were asked for included, others not; no byte code."""
    files = files_of(("anyio", "azure-storage-blob[aio]"))
    assert {"anyio/__init__.py", "idna/__init__.py", "aiohttp/__init__.py"} <= files.keys()
    assert not any("__pycache__" in place or place.startswith(("pytest", "trio/")) for place in files)
    assert all(path.is_file() for path in files.values())


@pytest.mark.parametrize(
    ("package", "reason"), [("no-such-package", "is not installed"), ("batchflow-azure", "batchflow-azure")]
)
def test_packages_that_cannot_be_copied_are_named(package: str, reason: str) -> None:
    """One that is not there, and an editable installation."""
    with pytest.raises(NotPortable, match=reason):
        files_of((package,))


def test_an_environment_fits_its_own_python_alone() -> None:
    """And its machine's platform."""
    assert not installed_for("3.9", "manylinux_2_28_x86_64")
    assert not installed_for(HERE, "manylinux_2_28_other")


async def test_an_environment_without_installer_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`uv` makes environments without pip; here neither is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(agent_archive, "find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"neither pip nor uv: install one: uv pip install pip"):
        await agent_archive.build("3.9", "manylinux_2_28_x86_64")

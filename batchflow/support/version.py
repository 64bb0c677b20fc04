"""The version of the batchflow that is installed here."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def own_version() -> str:
    """Return the installed version; "unknown" where batchflow was not installed as a package."""
    try:
        return version("batchflow-azure")
    except PackageNotFoundError:
        return "unknown"

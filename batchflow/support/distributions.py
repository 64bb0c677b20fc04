"""The installed distributions that no index has, because they were installed from a file or folder here."""

from __future__ import annotations

import functools
import json
from importlib.metadata import Distribution, distributions
from typing import Final

_OWN: Final = "batchflow"
"""What the nodes' agents bring themselves, wherever it was installed from."""


def is_local(package: Distribution) -> bool:
    """Return whether a distribution was installed from a file or folder, editable or copied."""
    told = package.read_text("direct_url.json")
    if not told:
        return False
    try:
        return str(json.loads(told).get("url", "")).startswith("file:")
    except (json.JSONDecodeError, AttributeError):
        return False


@functools.cache
def local_places() -> frozenset[str]:
    """Return the files and folders of local distributions that lie at the top of `site-packages`."""
    found = set[str]()
    for package in distributions():
        if is_local(package) and not (package.metadata["Name"] or "").lower().startswith(_OWN):
            found.update(file.parts[0] for file in package.files or () if ".." not in file.parts)
    return frozenset(found)

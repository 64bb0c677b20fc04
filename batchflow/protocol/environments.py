"""What client and agent agree on about environments: the Python packages that tasks run with. Pure."""

from __future__ import annotations

from typing import ClassVar, Final

from batchflow.protocol.documents import Document
from batchflow.support.frozen import frozen

ARCHIVE: Final = "environment.tar.gz"
"""The one file of an environment's bundle: regular files, as they lie in `site-packages`."""


@frozen
class EnvironmentDocument(Document):
    """An environment that was built for a pool, found by what it was locked to."""

    VERSION: ClassVar[int] = 1

    bundle: str
    """The hash of the bundle that has the archive."""
    python: str
    """The minor version of Python that it was built for."""
    platform: str
    """The platform, as wheels name it."""
    packages: tuple[str, ...]
    """Each as `name==version`."""
    size: int
    """Bytes of the archive."""


def environment_blob(key: str) -> str:
    """Return the blob of an environment's document in the control container."""
    return f"environments/{key}.json"

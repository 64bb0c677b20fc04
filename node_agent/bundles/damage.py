"""What the cache of an agent holds, and is no more what its hash says."""

from __future__ import annotations

from batchflow.errors import StorageError


class ArchiveDamaged(StorageError):
    """A file in the cache is not what its hash says. It was so when it was fetched."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the cached file {name} was changed on disk", retryable=True)

"""Turns the files that a user names into a bundle in the pool's control container, and fetches files back."""

from __future__ import annotations

from batchflow.files.collecting import BundleSource, Files, collect, read, source_of, walk, write_files
from batchflow.files.storing import fetch, is_young, stored, upload

__all__ = (
    "BundleSource",
    "Files",
    "collect",
    "fetch",
    "is_young",
    "read",
    "source_of",
    "stored",
    "upload",
    "walk",
    "write_files",
)

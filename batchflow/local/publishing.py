"""A local cloud's settings in a file, for as long as it lives."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def published(path: Path, text: str) -> Iterator[None]:
    """Keep `text` in a file that only its owner may read.

    The file is removed in the end, unless another process rewrote it.

    Raises OSError when it cannot be written.
    """
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
        draft.write(text)
    os.replace(draft.name, path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == text:
                path.unlink()

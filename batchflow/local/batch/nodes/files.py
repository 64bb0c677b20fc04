"""The files of nodes and tasks, as the Batch data plane lists and serves them."""

from __future__ import annotations

import os
import re
import shutil
import stat
from typing import TYPE_CHECKING
from urllib.parse import quote

from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.rest.values import iso_time
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchflow.local.batch.core.entities import Document

CONTENT_TYPE = "application/octet-stream"

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


@frozen
class FileSlice:
    """The part of a file that was asked for: `length` bytes from `start`."""

    path: Path
    start: int
    length: int


def locate(root: Path, name: str) -> Path:
    """Find a file or directory below `root`. Raises Refused when it is not there, or not below."""
    path = root / name.replace("\\", "/").strip("/")
    inside = os.path.normpath(path).startswith(f"{root}{os.sep}")
    if not inside or not os.path.exists(path):
        raise Refused("FileNotFound", FilePath=name)
    return path


def list_files(root: Path, url: str, *, recursive: bool) -> Iterator[tuple[int, Document]]:
    """Return the numbered documents of what is below `root`, in the order of their names."""
    names = sorted(_walk(root, "", recursive=recursive))
    for number, name in enumerate(names):
        document = _document(root / name, name, url)
        if document is not None:
            yield number, document


def delete(path: Path, *, recursive: bool) -> None:
    """Delete a file, or a directory: with all that it holds when `recursive`. Raises Refused."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
    elif recursive or not any(path.iterdir()):
        shutil.rmtree(path)
    else:
        raise Refused("OperationInvalidForCurrentState", Reason="the directory is not empty")


def headers(path: Path, url: str) -> dict[str, str]:
    """Return the properties of a file as the headers of an answer, but for its length and its dates."""
    status = path.stat()
    return {
        "ocp-batch-file-isdirectory": "true" if path.is_dir() else "false",
        "ocp-batch-file-url": url,
        "ocp-batch-file-mode": f"{stat.S_IFMT(status.st_mode) | stat.S_IMODE(status.st_mode):07o}",
    }


def slice_of(path: Path, wanted: str | None) -> FileSlice:
    """Return the part of a file that a range header asks for; all of it without one. Raises Refused."""
    if path.is_dir():
        raise Refused("OperationInvalidForCurrentState", Reason="the path is a directory")
    size = path.stat().st_size
    if not wanted:
        return FileSlice(path, 0, size)
    match = _RANGE.fullmatch(wanted.strip())
    start = int(match[1]) if match else size
    if match is None or start >= size:
        raise Refused("InvalidRange", Range=wanted, Length=size)
    end = min(int(match[2]), size - 1) if match[2] else size - 1
    return FileSlice(path, start, max(0, end - start + 1))


def _walk(root: Path, below: str, *, recursive: bool) -> Iterator[str]:
    try:
        entries = list(os.scandir(root / below))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        yield name
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name, recursive=True)


def _document(path: Path, name: str, url: str) -> Document | None:
    """Return the document of a file; None when it has gone meanwhile."""
    try:
        status = path.stat()
    except OSError:
        return None
    document: Document = {
        "name": name,
        "url": f"{url}/{quote(name)}",
        "isDirectory": stat.S_ISDIR(status.st_mode),
    }
    if not document["isDirectory"]:
        document["properties"] = {
            "creationTime": iso_time(status.st_ctime),
            "lastModified": iso_time(status.st_mtime),
            "contentLength": str(status.st_size),
            "contentType": CONTENT_TYPE,
            "fileMode": f"{status.st_mode:07o}",
        }
    return document

"""Unpack the agent's archive on a node, once for all that start there, and become the agent.

Runs with nothing but the node's own Python: ``python3 bootstrap.py ARCHIVE ARGUMENTS...``. With ``--python
ARCHIVE`` as the first arguments, the agent runs with the Python of that archive. Idempotent, and
safe against another start at the same moment: the archive appears whole under its name, or not at all. On a
full disk it says so, and waits for room.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

PAUSE = 10.0
"""Seconds between two tries on a full disk."""
AGENT = "node_agent/__main__.py"
PYTHON = "bin/python3"
"""The file of an archive without which it is not whole."""


def main() -> None:
    """Replace this process by the agent."""
    archive, arguments, python = Path(sys.argv[1]), sys.argv[2:], sys.executable
    shared = Path(os.environ.get("AZ_BATCH_NODE_SHARED_DIR") or Path.cwd())
    if arguments[:1] == ["--python"]:
        python = str(unpack_patiently(Path(arguments[1]), shared, PYTHON) / PYTHON)
        arguments = arguments[2:]
    os.environ["PYTHONPATH"] = str(unpack_patiently(archive, shared))
    os.execv(python, [python, "-m", "node_agent", *arguments])


def unpack_patiently(archive: Path, shared: Path, mark: str = AGENT) -> Path:
    """Return the folder with the archive's content, as `unpack` does; wait while the disk is full."""
    while True:
        try:
            return unpack(archive, shared, mark)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with suppress(OSError):  # the log may be on the same disk
                sys.stderr.write(f"the node's disk is full, the agent cannot be unpacked: {error}\n")
                sys.stderr.flush()
        time.sleep(PAUSE)


def unpack(archive: Path, shared: Path, mark: str = AGENT) -> Path:
    """Return the folder with the archive's content; made if it is not there. `mark`: a file of it."""
    site = shared / "batchflow" / archive.name.partition(".")[0]
    if not _is_whole(site, mark):
        site.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=site.parent))
        try:
            _extract(archive, scratch)
            scratch.chmod(0o755)
            _clear(site, mark)
            scratch.rename(site)
        except OSError:
            if not _is_whole(site, mark):  # else another start was quicker
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return site


def _extract(archive: Path, folder: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        return
    with tarfile.open(archive) as members:
        if hasattr(tarfile, "tar_filter"):
            members.extractall(folder, filter="tar")
        else:
            members.extractall(folder)


def _is_whole(site: Path, mark: str) -> bool:
    """Return whether the archive is there. A task may have removed what is in the folder."""
    return (site / mark).is_file()


def _clear(site: Path, mark: str) -> None:
    """Put what a task has left of the folder aside, and remove it."""
    if site.is_dir() and not _is_whole(site, mark):
        aside = Path(tempfile.mkdtemp(dir=site.parent))
        site.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    main()

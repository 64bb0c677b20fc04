"""Unpack the agent's archive on a node, once for all that start there, and become the agent.

Runs with nothing but the node's own Python: ``python3 bootstrap.py ARCHIVE ARGUMENTS...``. Idempotent, and
safe against another start at the same moment: the archive appears whole under its name, or not at all. On a
full disk it says so, and waits for room.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

PAUSE = 10.0
"""Seconds between two tries on a full disk."""


def main() -> None:
    """Replace this process by the agent."""
    archive, arguments = Path(sys.argv[1]), sys.argv[2:]
    site = unpack_patiently(archive, Path(os.environ.get("AZ_BATCH_NODE_SHARED_DIR") or Path.cwd()))
    os.environ["PYTHONPATH"] = str(site)
    os.execv(sys.executable, [sys.executable, "-m", "node_agent", *arguments])


def unpack_patiently(archive: Path, shared: Path) -> Path:
    """Return the folder with the archive's content, as `unpack` does; wait while the disk is full."""
    while True:
        try:
            return unpack(archive, shared)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with suppress(OSError):  # the log may be on the same disk
                sys.stderr.write(f"the node's disk is full, the agent cannot be unpacked: {error}\n")
                sys.stderr.flush()
        time.sleep(PAUSE)


def unpack(archive: Path, shared: Path) -> Path:
    """Return the folder with the archive's content; made if it is not there."""
    site = shared / "batchflow" / archive.stem
    if not _is_whole(site):
        site.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=site.parent))
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(scratch)
            scratch.chmod(0o755)
            _clear(site)
            scratch.rename(site)
        except OSError:
            if not _is_whole(site):  # else another start was quicker
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return site


def _is_whole(site: Path) -> bool:
    """Return whether the agent is there. A task may have removed what is in the folder."""
    return (site / "node_agent" / "__main__.py").is_file()


def _clear(site: Path) -> None:
    """Put what a task has left of the folder aside, and remove it."""
    if site.is_dir() and not _is_whole(site):
        aside = Path(tempfile.mkdtemp(dir=site.parent))
        site.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    main()

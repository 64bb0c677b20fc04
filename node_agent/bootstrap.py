"""Unpack the agent's archive on a node, once for all that start there, and become the agent.

Runs with nothing but the node's own Python: ``python3 bootstrap.py ARCHIVE ARGUMENTS...``. Idempotent, and
safe against another start at the same moment: the archive appears whole under its name, or not at all.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> None:
    """Replace this process by the agent."""
    archive, arguments = Path(sys.argv[1]), sys.argv[2:]
    site = unpack(archive, Path(os.environ.get("AZ_BATCH_NODE_SHARED_DIR") or Path.cwd()))
    os.environ["PYTHONPATH"] = str(site)
    os.execv(sys.executable, [sys.executable, "-m", "node_agent", *arguments])


def unpack(archive: Path, shared: Path) -> Path:
    """Return the folder with the archive's content; made if it is not there."""
    site = shared / "batchflow" / archive.stem
    if not site.is_dir():
        site.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=site.parent))
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(scratch)
            scratch.chmod(0o755)
            scratch.rename(site)
        except OSError:
            if not site.is_dir():  # else another start was quicker
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return site


if __name__ == "__main__":
    main()

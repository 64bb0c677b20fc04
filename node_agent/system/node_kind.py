"""What this node has, as far as tasks may require it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from batchflow.protocol.needs import KnownNode, are_tags

logger = logging.getLogger(__name__)

TAGS_FILE: Final = "batchflow-tags"
"""The file in Batch's shared folder of the node in which a start task says what the node is called."""
_GPU: Final = re.compile(r"nvidia\d+")


def node_kind(slots: int, tags: Iterable[str], *, dedicated: bool) -> KnownNode:
    """Return what the node has. `tags`: those of its pool."""
    own = "dedicated" if dedicated else "spot"
    return KnownNode(slots, memory_total(), gpu_count(), frozenset((*tags, own, *_written_tags())))


def memory_total(path: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes of memory that the machine has; None where the kernel does not tell."""
    try:
        found = re.search(r"^MemTotal:\s*(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return int(found[1]) * 1024 if found else None


def gpu_count(devices: Path = Path("/dev")) -> int:
    """Count the GPUs that NVIDIA's driver has made devices for."""
    try:
        return sum(_GPU.fullmatch(name) is not None for name in os.listdir(devices))
    except OSError:
        return 0


def _written_tags() -> list[str]:
    """Return the words of the node's file; none without one."""
    folder = os.environ.get("AZ_BATCH_NODE_SHARED_DIR")
    if folder is None:
        return []
    try:
        words = (Path(folder) / TAGS_FILE).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        logger.warning("tags_unread", extra={"error": str(error)})
        return []
    return words if are_tags(words) else []

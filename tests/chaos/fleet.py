"""The processes of a local cloud's nodes, found in /proc: supervisors, agents, warm children."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchflow.support.linux import process_table, read_stat

Kind = Literal["supervisor", "agent", "child"]

_AGENT = b"-m\0node_agent\0"


@dataclass(frozen=True, slots=True)
class Found:
    """A process, and what it is."""

    pid: int
    kind: Kind


def find(root: int) -> list[Found]:
    """Those below the process `root`, and no others."""
    parents = {pid: stat.parent for pid, stat in process_table().items()}
    kinds: dict[int, Kind] = {}
    for pid in _below(root, parents):
        above = kinds.get(parents[pid])
        if above is None and _AGENT in _command(pid):
            kinds[pid] = "supervisor"
        elif above == "supervisor":
            kinds[pid] = "agent"
        elif above == "agent":
            kinds[pid] = "child"
    return [Found(pid, kind) for pid, kind in kinds.items()]


def agent_of(pid: int, root: int) -> int | None:
    """The agent that a process descends from."""
    agents = {found.pid for found in find(root) if found.kind == "agent"}
    above: int | None = pid
    while above is not None and above not in agents:
        stat = read_stat(above)
        above = None if stat is None else stat.parent
    return above


def _below(root: int, parents: dict[int, int]) -> list[int]:
    """All that descend from it, parents before their children."""
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""

"""The records of running tasks, which outlive a killed agent, and of crashes.

`running` is a file mapped into memory. An agent records the tasks that a slot begins without a system call,
and the record stays when the agent is killed. `deaths.json` is written by the supervisor after a crash, and
by the agent when a task is settled. Both are in a directory of the node and belong to one boot of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Final

from node_agent.scheduling.crash_history import CrashCount, after_crash
from node_agent.supervision.mapped_record import MappedRecord
from node_agent.system.plain_log import say

_LOGGER: Final = "node_agent.supervision.crash_record"
_LENGTH: Final = 4
_ROOM: Final = 8192
"""Bytes of the record for each slot."""


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


class RunningRecord(MappedRecord):
    """The running tasks of each slot, by uid."""

    def __init__(self, path: Path, slots: int) -> None:
        """Create an empty record."""
        super().__init__(path, slots * _ROOM, lost="running_not_recorded")

    def begin(self, slot: int, uids: Sequence[str]) -> None:
        """Record that the slot runs these tasks. Of very many, only the first ones are kept."""
        text = " ".join(uids).encode()[: _ROOM - _LENGTH]
        start = slot * _ROOM
        self._map[start + _LENGTH : start + _LENGTH + len(text)] = text
        self._map[start : start + _LENGTH] = len(text).to_bytes(_LENGTH, "big")

    def end(self, slot: int) -> None:
        """Record that the slot runs nothing."""
        start = slot * _ROOM
        self._map[start : start + _LENGTH] = bytes(_LENGTH)


def read_running(path: Path) -> list[str]:
    """Read the uids in a record, also of an agent that was killed. Empty without a record."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    uids: list[str] = []
    for start in range(0, len(data) - _LENGTH + 1, _ROOM):
        length = int.from_bytes(data[start : start + _LENGTH], "big")
        text = data[start + _LENGTH : start + _LENGTH + min(length, _ROOM)]
        uids += text.decode(errors="replace").split()
    return uids


def read_crashes(path: Path, boot: str) -> dict[str, CrashCount]:
    """Read the crashes of this boot. A missing file, and one of another boot, has none."""
    try:
        document = json.loads(path.read_bytes())
        if document["boot_id"] != boot:
            return {}
        return {uid: CrashCount(*row) for uid, row in document["deaths"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_crashes(path: Path, boot: str, crashes: Mapping[str, CrashCount]) -> None:
    """Write the crashes of this boot, atomically. Raises OSError, for example on a full disk."""
    document = {"boot_id": boot, "deaths": {uid: astuple(each) for uid, each in crashes.items()}}
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(document), encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def record_crashes(directory: str | os.PathLike[str], at: float) -> list[str]:
    """Record the tasks that the agent ran when it crashed; return their uids. Raises OSError."""
    running, crashes, boot = (
        read_running(Path(directory, "running")),
        Path(directory, "deaths.json"),
        boot_id(),
    )
    if running:
        write_crashes(crashes, boot, after_crash(read_crashes(crashes, boot), running, at))
    return running


class CrashRecord:
    """The crashes of this boot of the node, as a running agent uses them."""

    def __init__(self, path: Path, boot: str) -> None:
        self._path = path
        self._boot = boot
        self.known = read_crashes(path, boot)

    def forget(self, uid: str) -> None:
        """Forget a task that is settled, or whose crashes are recorded elsewhere."""
        if self.known.pop(uid, None) is not None:
            try:
                write_crashes(self._path, self._boot, self.known)
            except OSError as error:  # the file tells of one death too many, at worst
                say("WARNING", _LOGGER, "deaths_not_recorded", error=str(error))

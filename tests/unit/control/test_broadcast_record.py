"""What a node remembers of broadcasts."""

from __future__ import annotations

import os
from pathlib import Path

from node_agent.control.broadcast_record import SETTLED, BroadcastRecord


def test_what_was_begun_outlives_the_agent(tmp_path: Path) -> None:
    """The next agent learns that a task has begun, its result, and that nothing is left to do."""
    BroadcastRecord(tmp_path / "b").begin("s:1")
    second = BroadcastRecord(tmp_path / "b")
    assert (second.read("s:1"), second.read("s:2")) == (b"", None)
    second.ended("s:1", b"{}")
    assert BroadcastRecord(tmp_path / "b").read("s:1") == b"{}"
    second.ended("s:1", SETTLED)
    assert BroadcastRecord(tmp_path / "b").read("s:1") == SETTLED


def test_files_of_old_broadcasts_are_removed(tmp_path: Path) -> None:
    record = BroadcastRecord(tmp_path)
    record.begin("s:1")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    record.begin("s:2")
    again = BroadcastRecord(tmp_path)
    assert (again.read("s:1"), again.read("s:2")) == (None, b"")

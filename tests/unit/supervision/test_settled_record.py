"""Which messages the agent before this one had settled, whatever became of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node_agent.supervision.settled_record import SettledRecord


def test_the_next_agent_knows_what_the_one_before_it_had_settled(tmp_path: Path) -> None:
    """Not that of an agent before that one."""
    first = SettledRecord(tmp_path / "settled")
    first.add("a-1")
    first.add("x" * 500)
    second = SettledRecord(tmp_path / "settled")  # the first one was killed: nothing closed its record
    assert [name in second for name in ("a-1", "x" * 500, "a-2", "")] == [True, True, False, False]
    with SettledRecord(tmp_path / "settled") as third:
        assert "a-1" not in third
    first.close()
    second.close()


def test_the_latest_messages_are_remembered(tmp_path: Path) -> None:
    with SettledRecord(tmp_path / "settled") as record:
        for number in range(5000):
            record.add(f"a-{number}")
    with SettledRecord(tmp_path / "settled") as following:
        assert all(f"a-{number}" in following for number in range(4500, 5000))
        assert "a-0" not in following
    assert (tmp_path / "settled").stat().st_size < 20_000


def test_a_full_disk_costs_the_record_and_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the agent before had settled is still known."""
    with SettledRecord(tmp_path / "settled") as record:
        record.add("a-1")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with SettledRecord(tmp_path / "settled") as following:
        following.add("a-2")
        assert "a-1" in following
    assert "settled_not_recorded" in "".join(capsys.readouterr())

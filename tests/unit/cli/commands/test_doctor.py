"""`batchflow doctor` reports what works and what does not."""

from __future__ import annotations

import json

from tests.support.command_line import Cli


def test_doctor_passes_a_working_cloud(cli: Cli) -> None:
    """All is well: exit code 0, with a line for each account and pool."""
    ended = cli("doctor")
    assert ended.returncode == 0, ended.stdout
    for what in ("Python", "Batch account", "Storage account", "Service Bus", "pool demo"):
        assert f"ok    {what}: " in ended.stdout


def test_doctor_reports_what_is_wrong(alone: Cli) -> None:
    """Exit code 1, and what to do."""
    ended = alone("doctor", "--json")
    assert ended.returncode == 1
    wrong = [check for check in json.loads(ended.stdout) if not check["ok"]]
    assert [check["what"] for check in wrong] == ["configuration"]
    assert "batchflow up" in wrong[0]["told"]

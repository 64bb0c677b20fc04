"""`batchflow init` writes a configuration file and tries its accounts."""

from __future__ import annotations

import json
import stat
import tomllib

from tests.support.command_line import Cli

CREDENTIALS = {
    "BATCH_ACCOUNT_NAME": "acc",
    "BATCH_ACCOUNT_KEY": "c2VjcmV0",
    "BATCH_ACCOUNT_URL": "http://127.0.0.1:9",
    "STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0;"
    "BlobEndpoint=http://127.0.0.1:9/a",
    "SERVICEBUS_CONNECTION_STRING": "Endpoint=sb://127.0.0.1:9/;SharedAccessKeyName=n;SharedAccessKey=c2VjcmV0",
}


def test_init_writes_a_file_for_its_owner_alone(alone: Cli) -> None:
    """It says what is missing and how to get it; what it wrote is a configuration."""
    ended = alone("init")
    assert ended.returncode == 0, ended.stderr
    path = alone.folder / "batchflow.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tomllib.loads(path.read_text())["target"] == "azure"
    assert "FAIL  batch.key: is not set" in ended.stdout
    assert "az batch account keys list" in ended.stdout


def test_init_from_the_original_tries_its_accounts(alone: Cli) -> None:
    """None of these answers: each is told, with what to do, and no secret is shown."""
    alone.write("old/credentials.json", json.dumps(CREDENTIALS))
    ended = alone("init", "--from", "old", "--json")
    assert ended.returncode == 0, ended.stderr
    checks = json.loads(ended.stdout)
    assert [check["what"] for check in checks] == [
        "Batch account",
        "Storage account",
        "Service Bus",
        "Service Bus messages",
    ]
    assert not any(check["ok"] for check in checks)
    assert all(check["remedy"] for check in checks)
    assert "c2VjcmV0" not in ended.stdout + ended.stderr

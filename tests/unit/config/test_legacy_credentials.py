"""The original's files become settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchflow import ConfigurationError
from batchflow.config.legacy_credentials import convert

CREDENTIALS = {
    "BATCH_ACCOUNT_NAME": "acc",
    "BATCH_ACCOUNT_KEY": "c2VjcmV0",
    "BATCH_ACCOUNT_URL": "http://127.0.0.1:9",
    "STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0;"
    "BlobEndpoint=http://127.0.0.1:9/a",
    "SERVICEBUS_CONNECTION_STRING": "Endpoint=sb://127.0.0.1:9/;SharedAccessKeyName=n;SharedAccessKey=c2VjcmV0",
}


BATCH = {
    "BATCH_NODE_COUNT": 3,
    "BATCH_VM_SIZE": "STANDARD_A1",
    "BATCH_OS_PUBLISHER": "OpenLogic",
    "BATCH_OS_TYPE": "CentOS",
    "BATCH_OS_VERSION": "7.7",
    "BATCH_ENGINE_NAME": "azbatchengine.py",
}


def test_the_original_files_are_converted(tmp_path: Path) -> None:
    """What has a counterpart is taken over, and the rest is told."""
    (tmp_path / "credentials.json").write_text(json.dumps(CREDENTIALS))
    (tmp_path / "batch.json").write_text(json.dumps(BATCH))
    converted = convert((tmp_path,))
    assert converted.values["batch.key"] == "c2VjcmV0"
    assert (converted.values["pool.nodes"], converted.values["pool.vm_size"]) == (3, "STANDARD_A1")
    assert any("OpenLogic:CentOS:7.7" in note for note in converted.notes)
    assert any("BATCH_ENGINE_NAME" in note for note in converted.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "an object"),
        ('{"BATCH_NODES": 1}', "did you mean"),
        ('{"BATCH_NODE_COUNT": "two"}', "a whole number"),
        ('{"BATCH_VM_SIZE": 1}', "a string"),
    ],
)
def test_an_original_file_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """The file and the key are named."""
    (tmp_path / "batch.json").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        convert((tmp_path,))

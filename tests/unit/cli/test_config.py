"""Pools and jobs that a file describes, the original's files, and what `init` and `doctor` make of them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from batchflow import ConfigurationError
from batchflow.config.legacy_credentials import convert
from batchflow.config.loader import load_settings
from batchflow.config.project_file import JobSpec, load_configuration
from batchflow.config.reference import groups, template
from batchflow.model import PoolSpec
from tests.support.command_line import Cli

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


def test_pools_and_jobs_of_a_file(tmp_path: Path) -> None:
    """Paths are relative to the file; a profile's keys go over the file's."""
    path = tmp_path / "batchflow.toml"
    path.write_text(
        '[pools.work]\nnodes = 4\nfiles = ["tasks/"]\njava = 17\nenvironment = {A = "b"}\n'
        '[jobs.night]\npool = "work"\ncommand = "x.py"\ntimeout = 5\nretries = 2\n'
        "[profiles.small.pools.work]\nnodes = 1\n[profiles.small.pools.more]\nspot = 2\n"
    )
    read = load_configuration(path, environment={})
    files = (str(tmp_path / "tasks"),)
    assert read.pools == {"work": PoolSpec("work", nodes=4, files=files, java=17, environment={"A": "b"})}
    assert read.job("night") == JobSpec("night", "work", "x.py", timeout=5, retries=2)
    assert read.job("other") == JobSpec("other")
    small = load_configuration(path, profile="small", environment={})
    assert {name: spec.nodes for name, spec in small.pools.items()} == {"work": 1, "more": None}
    assert small.pool("more").spot == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pools = 3", "pools is a table"),
        ("[pools]\na = 3", "pools.a is a table"),
        ("[pools.a]\nnodes = true", "pools.a.nodes must be a whole number, not bool"),
        ("[pools.a]\nfiles = [1]", "pools.a.files must be a list of strings"),
        ('[pools.a]\nid = "b"', "unknown key pools.a.id"),
        ('[jobs.a]\npol = "b"', "unknown key jobs.a.pol; did you mean 'pool'?"),
        ('[pools.a]\nvm_size = "-"', "pool 'a': vm_size is '-'"),
    ],
)
def test_a_description_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """The file, the key, and what is allowed."""
    path = tmp_path / "batchflow.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_configuration(path, environment={})
    assert str(path) in str(refused.value)
    assert said in str(refused.value)


def test_every_setting_is_described(tmp_path: Path) -> None:
    """No setting is without a meaning, and every number that is a duration or a size has its unit."""
    settings = [each for group in groups() for each in group.settings]
    assert [each.name for each in settings if not each.meaning] == []
    numbers = [each for each in settings if type(each.default) in (int, float)]
    assert [each.name for each in numbers if not each.unit] == []


def test_a_commented_file_reads_as_the_defaults(tmp_path: Path) -> None:
    """And as what it was given."""
    path = tmp_path / "batchflow.toml"
    path.write_text(template({}))
    assert load_settings(path, environment={}) == load_settings(environment={})
    path.write_text(template({"batch.key": 'a"\\b', "pool.nodes": 7}))
    settings = load_settings(path, environment={})
    assert (settings.batch.key, settings.pool.nodes) == ('a"\\b', 7)


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


def test_a_local_cloud_without_nodes(alone: Cli) -> None:
    """`pool.nodes = 0` is refused by name, before a cloud is started."""
    alone.write("batchflow.toml", 'target = "local"\n[pool]\nnodes = 0\n')
    program = (
        "import asyncio, batchflow\n"
        "async def main():\n"
        "    await batchflow.Client.from_config()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=alone.folder,
        env=alone.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ConfigurationError: pool.nodes is 0" in ended.stderr

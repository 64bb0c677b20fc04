"""Settings: read in layers, told apart from mistakes, never shown."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchflow.config.loader import load_settings
from batchflow.errors import ConfigurationError
from batchflow.settings import (
    AgentSettings,
    BatchSettings,
    PoolSettings,
    ServiceBusSettings,
    SessionSettings,
    Settings,
    StorageSettings,
)

SECRETS = ["batch-secret==", "AccountKey=storage-secret==", "SharedAccessKey=bus-secret=="]
CREDENTIALS = {
    "BATCH_ACCOUNT_NAME": "account",
    "BATCH_ACCOUNT_KEY": SECRETS[0],
    "BATCH_ACCOUNT_URL": "https://account.westeurope.batch.azure.com",
    "STORAGE_CONNECTION_STRING": SECRETS[1],
    "SERVICEBUS_CONNECTION_STRING": SECRETS[2],
}
FULL = Settings(
    batch=BatchSettings("account", SECRETS[0], "https://account.westeurope.batch.azure.com"),
    storage=StorageSettings(SECRETS[1]),
    servicebus=ServiceBusSettings(SECRETS[2]),
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a configuration that happens to lie about."""
    monkeypatch.chdir(tmp_path)


def write(text: str | dict[str, Any], name: str = "batchflow.toml") -> Path:
    path = Path(name)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def load(text: str | dict[str, Any], name: str = "batchflow.toml", **options: Any) -> Settings:
    return load_settings(write(text, name), **{"environment": {}, **options})


def refusal(text: str | dict[str, Any], name: str = "batchflow.toml", **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(text, name, **options)
    return str(caught.value)


def test_without_any_source_the_defaults_hold() -> None:
    """Nothing is connected, and nothing is missing that has a default."""
    assert load_settings(environment={}) == Settings()
    assert not Settings().connected


def test_a_file_is_read_over_the_defaults() -> None:
    """What it does not name stays as it was."""
    settings = load('target = "local"\n[pool]\nnodes = 7\n[agent]\nidle_exit = 60')
    assert settings.target == "local"
    assert settings.pool == replace(PoolSettings(), nodes=7)
    assert settings.agent == replace(AgentSettings(), idle_exit=60)


def test_a_profile_is_read_over_the_file() -> None:
    """And changes only what it names."""
    text = '[pool]\nnodes = 3\nslots = 4\n[profiles.big.pool]\nnodes = 50\n[profiles.here]\ntarget = "local"'
    assert load(text).pool == replace(PoolSettings(), nodes=3, slots=4)
    assert load(text, profile="big").pool == replace(PoolSettings(), nodes=50, slots=4)
    assert load(text, profile="here").target == "local"


def test_the_environment_is_read_over_file_and_profile() -> None:
    """By the names of group and key."""
    environment = {
        "BATCHFLOW_TARGET": "azure",
        "BATCHFLOW_POOL_NODES": "9",
        "BATCHFLOW_POOL_LOCK_DURATION": "45.5",
        "BATCHFLOW_BATCH_KEY": "from the environment",
        "BATCHFLOW_SERVICEBUS_WEBSOCKETS": "TRUE",
        "UNRELATED": "x",
    }
    text = 'target = "local"\n[pool]\nnodes = 3\n[profiles.p.pool]\nnodes = 4\n[profiles.p.batch]\nkey = "k"'
    settings = load(text, profile="p", environment=environment)
    assert settings.target == "azure"
    assert settings.pool == replace(PoolSettings(), nodes=9, lock_duration=45.5)
    assert settings.batch.key == "from the environment"
    assert settings.servicebus.websockets is True


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("yes", True), ("0", False), ("No", False), ("false", False)]
)
def test_booleans_of_the_environment_are_read(text: str, value: bool) -> None:
    """The usual words, in any case."""
    environment = {"BATCHFLOW_SERVICEBUS_WEBSOCKETS": text}
    assert load_settings(environment=environment).servicebus.websockets is value


def test_the_credentials_of_the_original_are_read() -> None:
    """Its file, with its five keys, works as it is."""
    assert load(CREDENTIALS, "credentials.json") == FULL
    assert load_settings(environment={}) == FULL


def test_configuration_file_is_found_in_the_documented_places() -> None:
    """The argument, then BATCHFLOW_CONFIG, then batchflow.toml, then credentials.json."""
    write(CREDENTIALS, "credentials.json")
    assert load_settings(environment={}).batch.account == "account"
    write('[batch]\naccount = "toml"')
    assert load_settings(environment={}).batch.account == "toml"
    other = write('[batch]\naccount = "other"', "other.toml")
    assert load_settings(environment={"BATCHFLOW_CONFIG": str(other)}).batch.account == "other"
    third = write('[batch]\naccount = "third"', "third.toml")
    assert load_settings(third, environment={"BATCHFLOW_CONFIG": str(other)}).batch.account == "third"


def test_without_an_environment_the_processes_own_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `Client.from_config` does."""
    monkeypatch.setenv("BATCHFLOW_POOL_NODES", "5")
    assert load_settings().pool.nodes == 5


MISTAKES = {
    "a group": ("[btach]", ["batchflow.toml", "'btach'", "'batch'"]),
    "a key": ('[batch]\nacount = "x"', ["batchflow.toml", "batch.acount", "'account'"]),
    "a key that is like none": ("[pool]\nxyz = 1", ["pool.xyz", "lock_duration", "vm_size"]),
    "a key in a profile": ("[profiles.p.pool]\nnode = 1", ["profiles.p", "pool.node", "'nodes'"]),
    "text for a number": ('[pool]\nnodes = "3"', ["pool.nodes", "a whole number", "str"]),
    "a number for text": ("[batch]\naccount = 3", ["batch.account", "a string", "int"]),
    "truth for a number": ("[pool]\nnodes = true", ["pool.nodes", "a whole number", "bool"]),
    "a fraction for a whole": ("[pool]\nnodes = 1.5", ["pool.nodes", "a whole number", "float"]),
    "a number for truth": ("[servicebus]\nwebsockets = 1", ["servicebus.websockets", "true or false"]),
    "a value for a group": ("pool = 3", ["pool is a table", "[pool]"]),
    "a value for a profile": ("profiles.p = 3", ["profiles.p", "a table"]),
    "a value for the profiles": ("profiles = 3", ["profiles is a table"]),
    "a target": ('target = "aws"', ["'aws'", '"local"', '"azure"']),
    "a target of another type": ("target = [1]", ["target", '"local"']),
    "a negative number": ("[pool]\nnodes = -1", ["pool.nodes", "-1"]),
    "no number at all": ("[agent]\nidle_exit = nan", ["agent.idle_exit", "nan"]),
    "an endless number": ("[agent]\nidle_exit = inf", ["agent.idle_exit", "inf"]),
    "a lock that Azure refuses": ("[pool]\nlock_duration = 301", ["pool.lock_duration", "301", "300"]),
    "a lock that cannot be held": ("[pool]\nlock_duration = 1", ["pool.lock_duration", "5"]),
    "an outbox without room": ("[session]\noutbox = 0", ["session.outbox", "1"]),
    "a heartbeat without pause": ("[agent]\nheartbeat_interval = 0", ["agent.heartbeat_interval"]),
    "a sign of life without pause": ("[session]\npresence_interval = 0", ["session.presence_interval"]),
    "no TOML": ("[batch", ["batchflow.toml", "not TOML"]),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(text: str, words: list[str]) -> None:
    """The file, the key and what is allowed."""
    message = refusal(text, profile="p" if "profiles" in text else None)
    for word in words:
        assert word in message


def test_a_profile_that_is_not_there_is_named_with_those_that_are() -> None:
    """None when there is no file."""
    assert "there are: a, b" in refusal("[profiles.a]\n[profiles.b]", profile="c")
    assert "there are: none" in refusal("", profile="c")
    Path("batchflow.toml").unlink()
    with pytest.raises(ConfigurationError, match="no configuration file"):
        load_settings(profile="c", environment={})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({**CREDENTIALS, "BATCH_ACOUNT_KEY": "x"}, ["'BATCH_ACOUNT_KEY'", "'BATCH_ACCOUNT_KEY'"]),
        ({**CREDENTIALS, "BATCH_ACCOUNT_KEY": 5}, ["batch.key", "a string"]),
        ({**CREDENTIALS, "BATCH_ACCOUNT_KEY": None}, ["batch.key", "a string"]),
        ("{", ["not JSON"]),
        ("[]", ["BATCH_ACCOUNT_NAME"]),
    ],
)
def test_a_mistake_in_the_credentials_is_named(document: Any, words: list[str]) -> None:
    """As in the TOML file."""
    message = refusal(document, "credentials.json")
    for word in ["credentials.json", *words]:
        assert word in message


def test_credentials_have_no_profiles() -> None:
    """Asking for one is a mistake."""
    assert "no profiles" in refusal(CREDENTIALS, "credentials.json", profile="p")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("BATCHFLOW_POOL_NODES", "many"), ("BATCHFLOW_POOL_NODES", "-1"), ("BATCHFLOW_AGENT_IDLE_EXIT", "x"),
     ("BATCHFLOW_SERVICEBUS_WEBSOCKETS", "perhaps"), ("BATCHFLOW_TARGET", "aws"),
     ("BATCHFLOW_AGENT_IDLE_EXIT", "nan"), ("BATCHFLOW_SESSION_OUTBOX", "0")],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_named(variable: str, value: str) -> None:
    """By the variable, or by the setting that it stands for."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environment={variable: value})
    key = variable.removeprefix("BATCHFLOW_").lower()
    assert variable in str(caught.value) or key in str(caught.value).replace(".", "_")


@pytest.mark.parametrize("kind", ["missing", "directory", "binary"])
def test_a_file_that_cannot_be_read_is_named(kind: str) -> None:
    """Missing, a directory, or no text."""
    path = Path("given.toml")
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"given\.toml.*cannot be read"):
        load_settings(path, environment={})


def test_secrets_are_in_no_repr_and_no_error() -> None:
    """Whatever is printed of settings, or goes wrong with them."""
    for some in (FULL, FULL.batch, FULL.storage, FULL.servicebus):
        assert not any(secret in repr(some) or secret in str(some) for secret in SECRETS)
    for secret in SECRETS:
        for name in ("key", "acount", "nodes"):
            assert secret not in refusal(f'[batch]\n{name} = ["{secret}"]')
        assert secret not in refusal(f'[batch]\nkey = "{secret}')


def test_all_missing_settings_are_named() -> None:
    """Every missing setting, in both of its spellings."""
    assert FULL.check() is FULL
    assert FULL.connected
    lacking = replace(FULL, storage=StorageSettings(), batch=replace(FULL.batch, key=""))
    assert not lacking.connected
    with pytest.raises(ConfigurationError) as caught:
        lacking.check()
    for name in (
        "batch.key",
        "storage.connection_string",
        "BATCHFLOW_BATCH_KEY",
        "BATCHFLOW_STORAGE_CONNECTION_STRING",
    ):
        assert name in str(caught.value)
    assert "servicebus" not in str(caught.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
AMOUNT = st.floats(5, 300) | st.integers(5, 300)
ANY_SETTINGS = st.builds(
    Settings,
    target=st.sampled_from(["local", "azure"]),
    batch=st.builds(BatchSettings, st.none() | TEXT, st.none() | TEXT, st.none() | TEXT),
    storage=st.builds(StorageSettings, st.none() | TEXT),
    servicebus=st.builds(ServiceBusSettings, st.none() | TEXT, st.none() | TEXT, st.booleans()),
    pool=st.builds(PoolSettings, st.integers(0, 10**6), st.integers(0, 64), TEXT, AMOUNT),
    agent=st.builds(AgentSettings, python=st.none() | TEXT, idle_exit=AMOUNT, drain_grace=st.floats(0, 1e9)),
    session=st.builds(SessionSettings, st.integers(1, 10**9), st.integers(0, 10**9), AMOUNT, AMOUNT),
)


@given(ANY_SETTINGS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_settings_written_are_settings_read(some: Settings) -> None:
    """`to_toml` keeps everything, whatever characters the values hold."""
    assert load(some.to_toml()) == some


def test_every_setting_can_be_set_from_the_environment() -> None:
    """No type of a field is unknown to the reader."""
    samples = {str: "5", int: "5", float: "5", bool: "true"}
    for group in fields(Settings):
        if group.name == "target":
            continue
        for item in fields(getattr(Settings(), group.name)):
            default = getattr(getattr(Settings(), group.name), item.name)
            text = samples[str if default is None else type(default)]
            loaded = load_settings(environment={f"BATCHFLOW_{group.name}_{item.name}".upper(): text})
            assert str(getattr(getattr(loaded, group.name), item.name)).lower().removesuffix(".0") == text

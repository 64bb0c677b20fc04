"""Reading the settings: the file, its profile, the environment, each layer over the one before.

The file is TOML (`[batch]`, `[storage]`, `[servicebus]`, `[pool]`, `[agent]`, `[session]`; a profile is
`[profiles.NAME.batch]` and so on) or the credentials.json of azure_realtime_batch. In the environment a
setting is `BATCHFLOW_<GROUP>_<KEY>`, for example `BATCHFLOW_BATCH_KEY`; `BATCHFLOW_TARGET` is the target and
`BATCHFLOW_CONFIG` the file. The profile `local` is there without being written: the local cloud that
`batchflow up` keeps.

The file may describe pools and jobs too (`[pools.NAME]`, `[jobs.NAME]`), which `config.project_file` reads.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import math
import os
import tempfile
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, get_args

from batchflow.errors import ConfigurationError
from batchflow.settings import (
    DESCRIPTIONS,
    GROUPS,
    PREFIX,
    RANGES,
    AgentSettings,
    PoolSettings,
    Settings,
    Target,
)

LOCAL_PROFILE: Final = "local"

_ORIGINAL_KEYS: Final = {
    "BATCH_ACCOUNT_NAME": ("batch", "account"),
    "BATCH_ACCOUNT_KEY": ("batch", "key"),
    "BATCH_ACCOUNT_URL": ("batch", "url"),
    "STORAGE_CONNECTION_STRING": ("storage", "connection_string"),
    "SERVICEBUS_CONNECTION_STRING": ("servicebus", "connection_string"),
}
"""The keys of azure_realtime_batch's credentials.json."""


def load_settings(
    path: str | os.PathLike[str] | None = None,
    *,
    profile: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read the layers. Raises `ConfigurationError`, which names the file, the key and what is allowed.

    Without `path`: the file that `BATCHFLOW_CONFIG` names, else `batchflow.toml` or `credentials.json` in the
    current directory, else no file.
    """
    environment = os.environ if environment is None else environment
    settings, profiles = Settings(), {}
    source = find_file(path, environment)
    if source is not None and source.suffix == ".json":
        settings = _apply(settings, _read_credentials(source, _read_text(source)), str(source))
    elif source is not None:
        document = read_document(source)
        profiles = document.pop("profiles", {})
        settings = _apply(settings, document, str(source))
    if profile in profiles:
        settings = _apply(settings, profiles[profile], f"{source}: profiles.{profile}")
    elif profile == LOCAL_PROFILE:
        settings = over_local_cloud(settings, environment)
    elif profile is not None:
        raise ConfigurationError(_no_profile(profile, source, profiles))
    return _apply_environment(settings, environment)


def _no_profile(profile: str, source: Path | None, profiles: Mapping[str, Any]) -> str:
    if source is None:
        return f"profile {profile!r}: there is no configuration file that could hold it"
    if source.suffix == ".json":
        return f"{source}: a credentials.json has no profiles (asked for {profile!r})"
    close = difflib.get_close_matches(profile, profiles, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{source}: no profile {profile!r}; there are: {', '.join(sorted(profiles)) or 'none'}{hint}"


def find_file(path: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> Path | None:
    """Return the configuration file that `load_settings` reads; None when there is none."""
    if path is None:
        path = environment.get(f"{PREFIX}CONFIG")
    if path is not None:
        return Path(path)
    candidates = (Path("batchflow.toml"), Path("credentials.json"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def local_cloud_file(environment: Mapping[str, str]) -> Path:
    """Return where `batchflow up` keeps the settings of its cloud: in the user's own runtime directory."""
    base = environment.get("XDG_RUNTIME_DIR")
    folder = Path(base, "batchflow") if base else Path(tempfile.gettempdir(), f"batchflow-up-{os.getuid()}")
    return folder / "local.toml"


def is_local_cloud_up(environment: Mapping[str, str]) -> bool:
    """Tell whether the file exists and its writer lives: a living one holds the lock beside the file."""
    source = local_cloud_file(environment)
    try:
        descriptor = os.open(source.with_suffix(".lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return source.is_file()
    finally:
        os.close(descriptor)
    return False


def over_local_cloud(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Return these settings, on the local cloud that is up. Raises `ConfigurationError` when none is."""
    source = local_cloud_file(environment)
    if not is_local_cloud_up(environment):
        raise ConfigurationError(f"no local cloud is up (none keeps {source}); start one: batchflow up")
    if source.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{source} belongs to another user and was ignored")
    cloud = _apply(Settings(), read_document(source), str(source))
    agent = cloud.agent if settings.agent == AgentSettings() else settings.agent
    return replace(
        cloud,
        pool=cloud.pool if settings.pool == PoolSettings() else settings.pool,
        agent=replace(agent, python=agent.python or cloud.agent.python),
        session=settings.session,
    )


def read_document(source: Path) -> dict[str, Any]:
    """Return a configuration file as TOML has it. Raises `ConfigurationError`."""
    try:
        document = tomllib.loads(_read_text(source))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: not TOML: {error}") from error
    if not isinstance(document.get("profiles", {}), dict):
        raise ConfigurationError(f"{source}: profiles is a table, [profiles.NAME.batch] and so on")
    return document


def _read_text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source}: cannot be read: {unreadable(error)}") from error


def unreadable(error: Exception) -> str:
    """Return why a file could not be read, without its name."""
    match error:
        case OSError():
            return error.strerror or str(error)
        case UnicodeDecodeError():
            return "it is not UTF-8 text"
        case _:
            return str(error)


def _read_credentials(source: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{source}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: expected an object with the keys {', '.join(_ORIGINAL_KEYS)}")
    groups: dict[str, Any] = {}
    for key, value in document.items():
        if key not in _ORIGINAL_KEYS:
            raise ConfigurationError(f"{source}: unknown key {key!r}{nearest(key, _ORIGINAL_KEYS)}")
        group, name = _ORIGINAL_KEYS[key]
        groups.setdefault(group, {})[name] = value
    return groups


def _apply_environment(settings: Settings, environment: Mapping[str, str]) -> Settings:
    document: dict[str, Any] = {}
    if target := environment.get(f"{PREFIX}TARGET"):
        document["target"] = target
    for group in GROUPS:
        for item in fields(getattr(settings, group)):
            variable = f"{PREFIX}{group}_{item.name}".upper()
            if (text := environment.get(variable)) is not None:
                kind = _kind(type(getattr(settings, group)), item.name)
                document.setdefault(group, {})[item.name] = _from_text(variable, text, kind)
    return _apply(settings, document, "environment")


def _from_text(variable: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "0", "false", "no"):
            return text.lower() in ("1", "true", "yes")
        raise ConfigurationError(f"{variable}: expected true or false, not {text!r}")
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(f"{variable}: expected {_WORDS[kind]}, not {text!r}") from None


def _apply(settings: Settings, document: Any, where: str) -> Settings:
    if not isinstance(document, dict):
        raise ConfigurationError(f"{where}: a table is expected, not {type(document).__name__}")
    for key, value in document.items():
        if key == "target":
            if value not in get_args(Target):
                raise ConfigurationError(f'{where}: target is {value!r}; it is "local" or "azure"')
            settings = replace(settings, target=value)
        elif key in GROUPS:
            settings = replace(settings, **{key: _apply_group(getattr(settings, key), key, value, where)})
        elif key not in DESCRIPTIONS:
            known = ("target", *GROUPS, *DESCRIPTIONS)
            raise ConfigurationError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    return settings


def _apply_group(group: Any, name: str, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where}: {name} is a table, [{name}]")
    known = [item.name for item in fields(group)]
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key {name}.{key}{nearest(key, known)}")
        kind = _kind(type(group), key)
        accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigurationError(
                f"{where}: {name}.{key} must be {_WORDS[kind]}, not {type(value).__name__}"
            )
        if kind in (int, float):
            _check_range(f"{name}.{key}", typing.cast("float", value), where)
    return replace(group, **values)


def _check_range(setting: str, value: float, where: str) -> None:
    least, most = RANGES.get(setting, (0.0, math.inf))
    if not (math.isfinite(value) and least <= value <= most):
        allowed = f"{least:g} or more is" if most == math.inf else f"{least:g} to {most:g} are"
        raise ConfigurationError(f"{where}: {setting} is {value}; {allowed} allowed")


_WORDS: Final = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def _kind(group: type, name: str) -> type:
    """Return the type of a setting, without its "or None"."""
    hint = typing.get_type_hints(group)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(option for option in get_args(hint) if option is not type(None))
    return typing.cast("type", hint)


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """End a refusal with the name that was probably meant, or else with all known names."""
    known = list(known)
    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(sorted(known))}"

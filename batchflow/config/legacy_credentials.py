"""The configuration files of azure_realtime_batch, as settings of batchflow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from batchflow.config.loader import load_settings, nearest, unreadable
from batchflow.errors import ConfigurationError
from batchflow.settings import toml_value

_NAMES: Final = ("credentials.json", "batch.json")
_CREDENTIALS: Final = ("batch.account", "batch.key", "batch.url", "storage.connection_string")
_CREDENTIAL_SETTINGS: Final = (*_CREDENTIALS, "servicebus.connection_string")
_BATCH_KEYS: Final = (
    "BATCH_NODE_COUNT",
    "BATCH_VM_SIZE",
    "BATCH_OS_PUBLISHER",
    "BATCH_OS_TYPE",
    "BATCH_OS_VERSION",
    "BATCH_ENGINE_NAME",
    "BATCH_DEBUG_MODE",
)


@dataclass(slots=True)
class Converted:
    """The values of the files, as settings of batchflow."""

    values: dict[str, Any] = field(default_factory=dict)
    """The values, by the name of the setting."""
    notes: list[str] = field(default_factory=list)
    """The entries that were not taken over, and why."""


def convert(paths: tuple[Path, ...]) -> Converted:
    """Read credentials.json and batch.json: files, or folders that hold them. Raises `ConfigurationError`."""
    converted = Converted()
    for path in paths:
        for source in _files(path):
            if source.name == "batch.json":
                _read_batch(source, converted)
            else:
                _read_credentials(source, converted)
    return converted


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [path / name for name in _NAMES if (path / name).is_file()]
    if not found:
        raise ConfigurationError(f"{path}: neither {' nor '.join(_NAMES)} is there")
    return found


def _read_credentials(source: Path, converted: Converted) -> None:
    settings = load_settings(source, environment={})
    for name in _CREDENTIAL_SETTINGS:
        group, _, key = name.partition(".")
        if (value := getattr(getattr(settings, group), key)) is not None:
            converted.values[name] = value


def _read_batch(source: Path, converted: Converted) -> None:
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{source}: cannot be read: {unreadable(error)}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: an object with the keys {', '.join(_BATCH_KEYS)} is expected")
    for key in document:
        if key not in _BATCH_KEYS:
            raise ConfigurationError(f"{source}: unknown key {key!r}{nearest(key, _BATCH_KEYS)}")
    _take_size(source, document, converted)
    image = ":".join(str(document.get(f"BATCH_OS_{part}", "?")) for part in ("PUBLISHER", "TYPE", "VERSION"))
    if "?" not in image:
        converted.notes.append(
            f"{source}: the image {image} is not taken over: Azure retires images; batchflow's own choice is "
            f"Ubuntu 24.04. To keep it: image = {toml_value(image)} under [pools.NAME]"
        )
    if left := sorted({"BATCH_ENGINE_NAME", "BATCH_DEBUG_MODE"} & {*document}):
        converted.notes.append(
            f"{source}: {', '.join(left)} have no counterpart: agents bring their own engine"
        )


def _take_size(source: Path, document: dict[str, Any], converted: Converted) -> None:
    if (count := document.get("BATCH_NODE_COUNT")) is not None:
        if type(count) is not int or count < 0:
            raise ConfigurationError(f"{source}: BATCH_NODE_COUNT is {count!r}; a whole number is needed")
        converted.values["pool.nodes"] = count
    if (size := document.get("BATCH_VM_SIZE")) is not None:
        if not isinstance(size, str):
            raise ConfigurationError(f"{source}: BATCH_VM_SIZE is {size!r}; a string is needed")
        converted.values["pool.vm_size"] = size

"""The pools and jobs that a configuration file describes, besides the settings.

`[pools.NAME]` has the fields of a `PoolSpec`, `[jobs.NAME]` those of a `JobSpec`; a profile's tables
(`[profiles.P.pools.NAME]`) go over them, field by field. Paths are relative to the file. What is wrong is
refused with the file, the key, and what is allowed.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path, PurePath
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from batchflow.config.loader import find_file, load_settings, nearest, read_document
from batchflow.environments.requirements import CURRENT
from batchflow.errors import ConfigurationError
from batchflow.model import Budget, PoolSpec
from batchflow.pools import pool_spec
from batchflow.protocol.variables import task_variables
from batchflow.settings import Settings
from batchflow.support.frozen import frozen


@frozen
class JobSpec:
    """A job that a file describes: what `batchflow run --job NAME` takes from it."""

    name: str
    pool: str | None = None
    """The pool that it runs in."""
    command: str | None = None
    """The file of the bundle that its tasks run."""
    files: tuple[str, ...] = ()
    """The files that its tasks run with; empty: the pool's own files."""
    requirements: str | Sequence[str] | None = None
    """The Python packages of its tasks: a list, a file, or "current"; None: the pool's."""
    timeout: float | None = None
    """Seconds that a task may run."""
    retries: int = 0
    """Further attempts of a task that fails."""
    memory_limit: int | None = None
    """Bytes that a task may take."""
    expires: float | None = None
    """Seconds from its submit after which a task does not begin any more."""
    env: Mapping[str, str] | None = None
    """Environment variables of its tasks, over those of the pool."""
    secrets: Mapping[str, str] | None = field(default=None, repr=False)
    """Environment variables of its tasks, whose values are never shown."""


@frozen
class Configuration:
    """A file, read: settings, pools and jobs."""

    settings: Settings
    path: Path | None = None
    """None: there is no file."""
    profile: str | None = None
    pools: Mapping[str, PoolSpec] = field(default_factory=dict)
    jobs: Mapping[str, JobSpec] = field(default_factory=dict)

    def pool(self, name: str) -> PoolSpec:
        """Find the job as the file describes it; a job that it does not describe has a name alone."""
        return self.pools.get(name, PoolSpec(name))

    def job(self, name: str) -> JobSpec:
        return self.jobs.get(name, JobSpec(name))


def load_configuration(
    path: str | os.PathLike[str] | None = None,
    *,
    profile: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Configuration:
    """Load the settings, and the pools and jobs beside them. Raises `ConfigurationError`."""
    environment = os.environ if environment is None else environment
    settings = load_settings(path, profile=profile, environment=environment)
    source = find_file(path, environment)
    if source is None or source.suffix == ".json":
        return Configuration(settings, source, profile)
    document = read_document(source)
    layers = [(document, str(source))]
    if profile is not None and profile in document.get("profiles", {}):
        layers.append((document["profiles"][profile], f"{source}: profiles.{profile}"))
    pools = _tables(layers, "pools", PoolSpec)
    jobs = _tables(layers, "jobs", JobSpec)
    return Configuration(
        settings,
        source,
        profile,
        {name: _pool(name, values, source) for name, values in pools.items()},
        {name: _job(name, values, source) for name, values in jobs.items()},
    )


_NAMED_BY: Final = {PoolSpec: "id", JobSpec: "name"}
"""The field that is the table's name."""

_COUNTS: Final = frozenset({"spot"})
"""The fields that may be a list of whole numbers; other lists are of strings."""

_KINDS: Final[Mapping[Any, tuple[type, ...]]] = {
    tuple: (list,),
    Sequence: (list,),
    Mapping: (dict,),
    Budget: (dict,),
    Literal: (str,),
    float: (float, int),
    int: (int,),
    bool: (bool,),
    str: (str,),
}
"""The type in TOML for a part of an annotation. A part that is not here cannot stand in a file."""
_WORDS: Final[Mapping[type, str]] = {
    list: "a list of strings",
    dict: "a table",
    str: "a string",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
}


def _tables(
    layers: list[tuple[dict[str, Any], str]], group: str, kind: type[Any]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for document, where in layers:
        described = document.get(group, {})
        if not isinstance(described, dict):
            raise ConfigurationError(f"{where}: {group} is a table, [{group}.NAME]")
        for name, values in described.items():
            if not isinstance(values, dict):
                raise ConfigurationError(f"{where}: {group}.{name} is a table, [{group}.{name}]")
            for key, value in values.items():
                _check(kind, f"{group}.{name}", key, value, where)
            found.setdefault(name, {}).update(values)
    return found


def _check(kind: type[Any], table: str, key: str, value: Any, where: str) -> None:
    known = [item.name for item in fields(kind) if item.name != _NAMED_BY[kind]]
    if key not in known:
        raise ConfigurationError(f"{where}: unknown key {table}.{key}{nearest(key, known)}")
    kinds = _accepted(kind)[key]
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if isinstance(value, list):
        items = (int,) if key in _COUNTS else (str,)
        fits = fits and all(isinstance(item, items) and not isinstance(item, bool) for item in value)
    if not fits and key in _COUNTS:
        raise ConfigurationError(f"{where}: {table}.{key} must be a whole number, or a list of two")
    if not fits:
        words = " or ".join(_WORDS[each] for each in kinds if each is not int or float not in kinds)
        raise ConfigurationError(f"{where}: {table}.{key} must be {words}, not {type(value).__name__}")


def _accepted(kind: type[Any]) -> Mapping[str, tuple[type, ...]]:
    """Return the types that a file may give each field, by the field's annotation."""
    hints = get_type_hints(kind, localns={"Mapping": Mapping, "PurePath": PurePath, "Sequence": Sequence})
    return {name: tuple(_types(hint)) for name, hint in hints.items()}


def _types(hint: Any) -> Iterator[type]:
    for option in get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        origin = get_origin(option) or option
        yield from _KINDS.get(origin, ())


def _made(kind: type[Any], name: str, values: Mapping[str, Any], source: Path) -> Any:
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "files" in given:
        given["files"] = tuple(str(source.parent / each) for each in given["files"])
    wanted = given.get("requirements")
    if isinstance(wanted, str) and wanted != CURRENT:
        given["requirements"] = str(source.parent / wanted)
    if isinstance(budget := given.get("budget"), dict):
        given["budget"] = _budget(budget, f"{source}: pools.{name}.budget")
    return kind(name, **given)


def _job(name: str, values: Mapping[str, Any], source: Path) -> JobSpec:
    spec: JobSpec = _made(JobSpec, name, values, source)
    task_variables(spec.env, spec.secrets, f"{source}: job {name!r}")
    return spec


def _budget(values: Mapping[str, Any], where: str) -> Budget:
    known = [item.name for item in fields(Budget)]
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key {key}{nearest(key, known)}")
    try:
        return Budget(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _pool(name: str, values: Mapping[str, Any], source: Path) -> PoolSpec:
    spec: PoolSpec = _made(PoolSpec, name, values, source)
    try:
        pool_spec.check(spec)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    return spec

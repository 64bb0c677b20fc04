"""Where batchflow connects to, and how it behaves: a few frozen groups of settings.

Read in layers, each over the one before: the defaults here, the file, its profile, the environment, the code.
The file is TOML (`[batch]`, `[storage]`, `[servicebus]`, `[pool]`, `[agent]`, `[session]`; a profile is
`[profiles.NAME.batch]` and so on) or the credentials.json of azure_realtime_batch. In the environment a
setting is `BATCHFLOW_<GROUP>_<KEY>`, for example `BATCHFLOW_BATCH_KEY`; `BATCHFLOW_TARGET` is the target and
`BATCHFLOW_CONFIG` the file. The profile `local` is there without being written: the local cloud that
`batchflow up` keeps.

The file may describe pools and jobs too (`[pools.NAME]`, `[jobs.NAME]`): `batchflow.configfile` reads these.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from batchflow.errors import ConfigurationError

Target = Literal["local", "azure"]

# Annotated with the unit that the reference of the settings gives.
Seconds = Annotated[float, "s"]
Bytes = Annotated[int, "bytes"]
Tasks = Annotated[int, "tasks"]
Results = Annotated[int, "results"]
Nodes = Annotated[int, "nodes"]
Queues = Annotated[int, "queues"]
Processes = Annotated[int, "processes"]

PREFIX: Final = "BATCHFLOW_"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The Azure Batch account."""

    account: str | None = None
    """Its name."""
    key: str | None = field(default=None, repr=False)
    """One of its two keys: a secret."""
    url: str | None = None
    """`https://<account>.<region>.batch.azure.com`."""
    entra: bool = False
    """Entra ID instead of the key: whoever azure-identity finds logged in. Needs the extra `identity`."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's. None: no others."""


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """The Storage account: by its connection string, or by its URL and Entra ID."""

    connection_string: str | None = field(default=None, repr=False)
    """As the portal shows it under "Access keys": a secret."""
    account_url: str | None = None
    """`https://<account>.blob.core.windows.net`. Set, it takes the place of the connection string: who may
    do what is then decided by Entra ID. Needs the extra `identity`."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's, here and on the nodes. None: no others."""


@dataclass(frozen=True, slots=True)
class ServiceBusSettings:
    """The Service Bus namespace, of the Standard or the Premium tier: by its connection string, or by its
    name and Entra ID. Several of either, with blanks between them: pools are spread over them."""

    connection_string: str | None = field(default=None, repr=False)
    """Of an access policy of the namespace with the rights Manage, Send and Listen: a secret."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's: a proxy's, the local cloud's own. None: no others."""
    websockets: bool = False
    """AMQP over websockets on port 443, for networks that let nothing else out."""
    namespace: str | None = None
    """`<name>.servicebus.windows.net`. Set, it takes the place of the connection string: who may do what is
    then decided by Entra ID. Needs the extra `identity`."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """One pool, for a client that holds no key of an account: what `pool.client_settings()` gives.

    Set, it takes the place of the three services: such a client opens sessions, and makes and removes
    nothing.
    """

    pool: str | None = None
    """The pool's id."""
    ctl: str | None = field(default=None, repr=False)
    """The URL of its control container, with a signature."""
    out: str | None = field(default=None, repr=False)
    """The URL of its output container, with a signature."""
    task_queues: str | None = field(default=None, repr=False)
    """Connection strings that may send to its task queues, with blanks between them."""
    results_queues: str | None = field(default=None, repr=False)
    """Connection strings that may listen to its results queues, with blanks between them."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What a new pool gets where its spec is silent."""

    nodes: Nodes = 2
    """Dedicated nodes."""
    slots: Tasks = 0
    """Tasks that run at once on a node; 0: as many as the node has cores."""
    vm_size: str = "standard_d2s_v3"
    """The nodes' size, as Azure names it."""
    lock_duration: Seconds = 30.0
    """Seconds until a task is given to another agent when its own died; 5 to 300."""
    queue_idle: Seconds = 90 * 86400.0
    """Seconds after which Service Bus removes the pool's queues, with what is in them, when nobody sent to
    them or received from them; 0: never, else 300 at least. Ensuring the pool makes them anew."""
    shards: Queues = 1
    """Task queues of a pool, and as many results queues, spread over the namespaces of `servicebus`: where
    one does not carry the load. At most 20."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How agents live on the nodes."""

    python: str | None = None
    """The interpreter, with batchflow installed, that starts the agent on a node. None: the agent is carried
    there in an archive with all that it needs. The local cloud's nodes use the one that runs the client."""
    node_python: str = "3.12"
    """The version of `python3` on the nodes, for the archive; Ubuntu 24.04 has 3.12."""
    node_platform: str = "manylinux_2_28_x86_64"
    """The nodes' platform, as wheels name it, for the archive."""
    idle_exit: Seconds = 1800.0
    """Seconds without a task after which an agent exits, so that Batch can end its job; 0: never."""
    heartbeat_interval: Seconds = 5.0
    """Seconds between two heartbeats; an agent whose last is older than three of them counts as gone."""
    drain_grace: Seconds = 30.0
    """Seconds that a stopped agent lets its tasks finish in."""
    grace: Seconds = 5.0
    """Seconds between TERM and KILL for the processes of a task that is past its limit."""
    child_tasks: Tasks = 10_000
    """A warm Python process is replaced after so many tasks."""
    child_memory: Bytes = 2 * 1024**3
    """A warm Python process that holds more bytes than this after a task is replaced."""
    process_limit: Processes = 2000
    """Processes and threads that a task may have at once; one that has more is killed and ends as
    `TaskTooManyProcesses`. 0: no limit."""
    output_limit: Bytes = 64 * 1024
    """Bytes of stdout, and of stderr, that a result carries: the last ones."""
    result_limit: Bytes = 256 * 1024**2
    """Bytes of JSON that a task may return; more is `ResultTooLarge`."""
    cache_limit: Bytes = 10 * 1024**3
    """Bytes of task files that an agent keeps on its disk."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session behaves."""

    outbox: Tasks = 100_000
    """Tasks that `submit` takes before it waits for the broker."""
    unclaimed: Results = 100_000
    """Results that nobody reads that are held in memory; further ones go to a temporary file."""
    timeout: Seconds = 0.0
    """Seconds that a task may run where neither `submit` nor the session says; 0: without end."""
    close_timeout: Seconds = 10.0
    """Seconds that closing may take before what is left is dropped and named."""
    outbox_bytes: Bytes = 64 * 1024**2
    """Bytes of tasks that `submit` takes before it waits for the broker, as they travel."""
    unclaimed_bytes: Bytes = 64 * 1024**2
    """Bytes of results that nobody reads, as JSON, that are held in memory."""
    patience: Seconds = 60.0
    """Seconds that a service may be away before whoever waits for it gets an error; what is under way stays,
    and is tried again."""
    presence_interval: Seconds = 5.0
    """Seconds between two signs of life of the mailbox's holder."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All of them. Secrets are left out of the repr."""

    target: Target = "azure"
    """Either "azure", or "local": the local cloud (the one that is up, or one for the client alone)."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    servicebus: ServiceBusSettings = field(default_factory=ServiceBusSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    session: SessionSettings = field(default_factory=SessionSettings)

    @property
    def connected(self) -> bool:
        """Whether the three services are named, or one pool is."""
        return not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """The settings that a connection needs and that are not set."""
        return tuple(self._missing())

    def check(self) -> Settings:
        """Itself. Raises `ConfigurationError` naming every setting that a connection needs and lacks."""
        if missing := self.missing:
            names = ", ".join(missing)
            variables = ", ".join(PREFIX + name.replace(".", "_").upper() for name in missing)
            raise ConfigurationError(
                f"not set: {names}. Set them in the configuration file, or as {variables}"
            )
        return self

    def _missing(self) -> Iterator[str]:
        if self.access.pool:
            needed = {"access": [item.name for item in fields(AccessSettings)]}
        else:
            needed = {
                "batch": ["account", "url"] if self.batch.entra else ["account", "key", "url"],
                "storage": [] if self.storage.account_url else ["connection_string"],
                "servicebus": [] if self.servicebus.namespace else ["connection_string"],
            }
        for group, names in needed.items():
            for name in names:
                if not getattr(getattr(self, group), name):
                    yield f"{group}.{name}"

    def to_toml(self) -> str:
        """A configuration file that reads as these settings. Holds the secrets."""
        lines = [f"target = {toml_value(self.target)}"]
        for group in _GROUPS:
            settings = getattr(self, group)
            rows = [
                f"{item.name} = {toml_value(value)}"
                for item in fields(settings)
                if (value := getattr(settings, item.name)) is not None
            ]
            if rows:
                lines += ["", f"[{group}]", *rows]
        return "\n".join(lines) + "\n"


_GROUPS: Final = ("batch", "storage", "servicebus", "access", "pool", "agent", "session")
_DESCRIPTIONS: Final = ("pools", "jobs")
"""Tables of the file that are no settings."""

LOCAL_PROFILE: Final = "local"

_ORIGINAL_KEYS: Final = {
    "BATCH_ACCOUNT_NAME": ("batch", "account"),
    "BATCH_ACCOUNT_KEY": ("batch", "key"),
    "BATCH_ACCOUNT_URL": ("batch", "url"),
    "STORAGE_CONNECTION_STRING": ("storage", "connection_string"),
    "SERVICEBUS_CONNECTION_STRING": ("servicebus", "connection_string"),
}
"""The keys of azure_realtime_batch's credentials.json."""

_RANGES: Final = {
    "pool.lock_duration": (5.0, 300.0),
    "pool.shards": (1, 20),
    "agent.heartbeat_interval": (0.1, math.inf),
    "agent.child_tasks": (1, math.inf),
    "session.outbox": (1.0, math.inf),
    "session.presence_interval": (0.1, math.inf),
}
"""What a number may be, where that is not simply 0 or more."""


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
    """The configuration file that `load_settings` reads; None when there is none."""
    if path is None:
        path = environment.get(f"{PREFIX}CONFIG")
    if path is not None:
        return Path(path)
    candidates = (Path("batchflow.toml"), Path("credentials.json"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def local_cloud_file(environment: Mapping[str, str]) -> Path:
    """Where `batchflow up` keeps the settings of its cloud: in the user's own runtime directory."""
    base = environment.get("XDG_RUNTIME_DIR")
    folder = Path(base, "batchflow") if base else Path(tempfile.gettempdir(), f"batchflow-up-{os.getuid()}")
    return folder / "local.toml"


def is_local_cloud_up(environment: Mapping[str, str]) -> bool:
    """Whether its file is there, and whoever wrote it lives: then it holds the lock beside it."""
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
    """These settings, on the local cloud that is up. Raises `ConfigurationError` when none is."""
    source = local_cloud_file(environment)
    if not is_local_cloud_up(environment):
        raise ConfigurationError(f"no local cloud is up (none keeps {source}); start one: batchflow up")
    if source.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{source} is somebody else's: it is not used")
    cloud = _apply(Settings(), read_document(source), str(source))
    agent = cloud.agent if settings.agent == AgentSettings() else settings.agent
    return replace(
        cloud,
        pool=cloud.pool if settings.pool == PoolSettings() else settings.pool,
        agent=replace(agent, python=agent.python or cloud.agent.python),
        session=settings.session,
    )


def read_document(source: Path) -> dict[str, Any]:
    """A configuration file as TOML has it. Raises `ConfigurationError`."""
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
    """Why a file could not be read, without its name."""
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
    for group in _GROUPS:
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
        elif key in _GROUPS:
            settings = replace(settings, **{key: _apply_group(getattr(settings, key), key, value, where)})
        elif key not in _DESCRIPTIONS:
            known = ("target", *_GROUPS, *_DESCRIPTIONS)
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
    least, most = _RANGES.get(setting, (0.0, math.inf))
    if not (math.isfinite(value) and least <= value <= most):
        allowed = f"{least:g} or more is" if most == math.inf else f"{least:g} to {most:g} are"
        raise ConfigurationError(f"{where}: {setting} is {value}; {allowed} allowed")


_WORDS: Final = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def _kind(group: type, name: str) -> type:
    """The type of a setting, without its "or None"."""
    hint = typing.get_type_hints(group)[name]
    if isinstance(hint, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    return typing.cast("type", hint)


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """For the end of a refusal: what may have been meant, or else all that is known."""
    known = list(known)
    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(sorted(known))}"


def toml_value(value: str | float | bool) -> str:
    """A value as TOML writes it."""
    if not isinstance(value, str):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

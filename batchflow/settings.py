"""Where batchflow connects to, and how it behaves: a few frozen groups of settings.

`batchflow.config.loader` reads them from files and from the environment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from batchflow.errors import ConfigurationError
from batchflow.support.setting_groups.accounts import AccessSettings as AccessSettings
from batchflow.support.setting_groups.accounts import BatchSettings as BatchSettings
from batchflow.support.setting_groups.accounts import ServiceBusSettings as ServiceBusSettings
from batchflow.support.setting_groups.accounts import StorageSettings as StorageSettings
from batchflow.support.setting_groups.agent_limits import (
    AgentLimits,
    Bytes,
    Nodes,
    Queues,
    Results,
    Seconds,
    Tasks,
)
from batchflow.support.setting_groups.observing import MonitorSettings, TelemetrySettings

Target = Literal["local", "azure"]

PREFIX: Final = "BATCHFLOW_"
LOCAL_NODE: Final = "BATCHFLOW_LOCAL_NODE"
"""A variable that start tasks of the local cloud find set: their node is the user's own machine."""


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
    """Seconds without a send or receive after which Service Bus removes the pool's queues, with what is in
    them; 0: never, else 300 at least. Ensuring the pool creates them again."""
    autoscale_interval: Seconds = 300.0
    """Seconds between two evaluations of an elastic pool's formula; Azure takes 300 or more."""
    shards: Queues = 1
    """Task queues of a pool, and as many results queues, spread over the namespaces of `servicebus`: where
    one does not carry the load. At most 20."""
    prices: str | None = None
    """The file of what nodes cost, which `batchflow prices` writes. None: costs are node-hours alone."""


@dataclass(frozen=True, slots=True)
class AgentProgram:
    """Where nodes get the agent from, and when it exits."""

    python: str | None = None
    """The interpreter, with batchflow installed, that starts the agent on a node. None: the agent is carried
    there in an archive with all that it needs. The local cloud's nodes use the one that runs the client."""
    node_python: str | None = None
    """The minor version of `python3` on the nodes, for the archive. None: that of the pool's image where
    batchflow has chosen it, else 3.12."""
    python_mirror: str | None = None
    """Where uv fetches the Python of `PoolSpec.python` from, for nodes that have another one: the URL of a
    mirror of python-build-standalone's releases. None: an image must have it."""
    node_platform: str = "manylinux_2_28_x86_64"
    """The nodes' platform, as wheels name it, for the archive."""
    idle_exit: Seconds | None = None
    """Seconds without a task after which an agent exits; 0: never, which elastic pools refuse. By default
    1800, so that Batch can end its job; 600 in elastic pools, where its node leaves too."""


@dataclass(frozen=True, slots=True)
class AgentSettings(AgentLimits, AgentProgram):
    """How agents live on the nodes."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session behaves."""

    outbox: Tasks = 100_000
    """Tasks that `submit` takes before it waits for the broker."""
    unclaimed: Results = 100_000
    """Unread results that are held in memory; further ones go to a temporary file."""
    timeout: Seconds = 0.0
    """Seconds that a task may run where neither `submit` nor the session says; 0: without end."""
    close_timeout: Seconds = 10.0
    """Seconds that closing may take before what is left is dropped and named."""
    outbox_bytes: Bytes = 64 * 1024**2
    """Bytes of tasks that `submit` takes before it waits for the broker, as they travel."""
    unclaimed_bytes: Bytes = 64 * 1024**2
    """Bytes of unread results, as they travel, that are held in memory."""
    patience: Seconds = 60.0
    """Seconds that a service may be away before a call that waits for it raises an error; what is under way
    stays, and is tried again."""
    presence_interval: Seconds = 5.0
    """Seconds between two signs of life of the mailbox's holder. Those of idle sessions, and of many sessions
    of a client, come more seldom."""
    retention: Seconds = 7 * 86400.0
    """Seconds for which the large arguments of a failed task are kept; 0: until it has failed. Those of
    other tasks are kept until their session closes."""


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
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)

    @property
    def connected(self) -> bool:
        """Whether the three services are named, or one pool is."""
        return not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """The settings that a connection needs and that are not set."""
        return tuple(self._missing())

    def check(self) -> Settings:
        """Return the settings. Raises `ConfigurationError` naming every setting that a connection lacks."""
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
        """Return a configuration file that reads as these settings. Holds the secrets."""
        lines = [f"target = {toml_value(self.target)}"]
        for group in GROUPS:
            settings = getattr(self, group)
            rows = [
                f"{item.name} = {toml_value(value)}"
                for item in fields(settings)
                if (value := getattr(settings, item.name)) is not None
            ]
            if rows:
                lines += ["", f"[{group}]", *rows]
        return "\n".join(lines) + "\n"


GROUPS: Final = (
    "batch",
    "storage",
    "servicebus",
    "access",
    "pool",
    "agent",
    "session",
    "telemetry",
    "monitor",
)
DESCRIPTIONS: Final = ("pools", "jobs")
"""Tables of the file that are no settings."""

RANGES: Final = {
    "pool.lock_duration": (5.0, 300.0),
    "pool.autoscale_interval": (1.0, 604_800.0),
    "pool.shards": (1, 20),
    "agent.heartbeat_interval": (0.1, math.inf),
    "agent.child_tasks": (1, math.inf),
    "session.outbox": (1.0, math.inf),
    "telemetry.sample": (0.0, 100.0),
    "session.presence_interval": (0.1, math.inf),
}
"""What a number may be, where that is not simply 0 or more."""


def toml_value(value: str | float | bool) -> str:
    """Return a value as TOML writes it."""
    if not isinstance(value, str):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

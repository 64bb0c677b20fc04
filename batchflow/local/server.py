"""The local cloud: Service Bus, Batch and Blob together on loopback, with fresh keys at each start."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import secrets
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from batchflow.errors import ConfigurationError
from batchflow.local.batch.core.samples import AutoscaleTiming
from batchflow.local.batch.nodes.node_user import check_agents, find
from batchflow.local.batch.server import BatchServer
from batchflow.local.blob.server import BlobServer
from batchflow.local.directory import locked, make_directory, remove_tree
from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.monitor.server import IngestionServer
from batchflow.local.security.certificate import Maker, make, make_server_context
from batchflow.local.security.entra import Assignment, Directory, Principal
from batchflow.local.security.identity_endpoint import Entra, IdentityEndpoint, principal
from batchflow.local.servicebus.server import ServiceBusServer
from batchflow.settings import (
    AgentSettings,
    BatchSettings,
    PoolSettings,
    ServiceBusSettings,
    Settings,
    StorageSettings,
)
from batchflow.support.frozen import frozen
from batchflow.support.setting_groups.observing import MonitorSettings

HOST = "127.0.0.1"
ACCOUNT = "local"

CLOSE_TIMEOUT = 10.0
"""Seconds that the services may take to close; then the rest is left to the end of the process, with which
every node's processes die."""

AUTOSCALE_INTERVAL = AutoscaleTiming().min_interval
"""Seconds between two evaluations of a formula, at least: five minutes, as on Azure."""

LINK_IDLE_TIMEOUT = 600.0
"""Seconds after which Service Bus closes a link without traffic: ten minutes, as on Azure."""

_KEY_BYTES = 32
_CA_FILE = "ca.pem"

_log = logging.getLogger(__name__)


@frozen
class Ports:
    """The services' ports; 0 lets the system choose a free one."""

    servicebus: int = 0
    batch: int = 0
    blob: int = 0


class LocalCloud:
    """The three services of one local cloud, from `start` to `aclose`; both once, from any task of one loop.

    `nodes` and `slots` are what a new pool gets where its spec is silent. `namespaces` is how many of Service
    Bus there are, for pools of several queues; a port that is given is the first one's. Each answer of each
    service leaves `latency` seconds late; links without traffic are closed after `link_idle_timeout` seconds.
    A node takes `boot_delay` seconds to boot. `autoscale_interval` is the least interval of formulas, in
    seconds; what they see is as much sooner than on Azure, where it is 300 s.
    All that is on disk lies in `directory`, which must be private and is removed in the end; by default a new
    one among the temporary files. `certificate` makes the key and the certificate for TLS. `node_user` names
    the user of this machine that the nodes' commands run as, so that tasks cannot read the cloud's keys; it
    takes a cloud that root starts.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        slots: int = 1,
        latency: float = 0.0,
        link_idle_timeout: float = LINK_IDLE_TIMEOUT,
        boot_delay: float = 0.0,
        autoscale_interval: float = AUTOSCALE_INTERVAL,
        namespaces: int = 1,
        ports: Ports | None = None,
        directory: Path | None = None,
        node_user: str | None = None,
        roles: Mapping[str, Sequence[Assignment]] | None = None,
        identities: Mapping[str, str] | None = None,
        certificate: Maker = make,
    ) -> None:
        self._roles = dict(roles or {})
        self._identities = dict(identities or {})
        self._principals: dict[str, Principal] = {}
        self._entra: Entra | None = None
        self._keyless: Settings | None = None
        self.ingestion: IngestionServer | None = None
        """The endpoint for logs, in a cloud that was started with roles."""
        self._pool = PoolSettings(nodes=nodes, slots=slots, autoscale_interval=autoscale_interval)
        self._namespaces = namespaces
        self._latency = latency
        self._link_idle_timeout = link_idle_timeout
        self._boot_delay = boot_delay
        self._timing = AutoscaleTiming.scaled(autoscale_interval)
        self._ports = ports or Ports()
        self._directory = directory
        self._node_user = None if node_user is None else find(node_user)
        self._certificate = certificate
        self.errors = InternalErrors()
        """What failed in the services themselves since they were started."""
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._lock = ExitStack()

    monitor_settings: MonitorSettings
    """What sends logs to `ingestion`."""

    @property
    def keyless_settings(self) -> Settings:
        """What those connect with who have a role and no key; for a cloud that was started with roles."""
        if self._keyless is None:
            raise ConfigurationError("this local cloud has no Entra ID: start it with roles")
        return self._keyless

    def identity_environment(self, name: str) -> dict[str, str]:
        """Return the environment of a process that azure-identity is to take for this principal."""
        if self._entra is None or name not in self._principals:
            raise ConfigurationError(
                f"this local cloud knows no principal named {name!r}: start it with its roles"
            )
        return self._entra.endpoint.environment(self._principals[name])

    async def start(self) -> Settings:
        """Start the services; returns what clients connect with.

        Raises ConfigurationError when a port cannot be had. When it fails, or is cancelled, nothing is left.
        """
        if self._directory is None:
            self._directory = make_directory()
        try:
            self._lock.enter_context(locked(self._directory))
            return await self._start(self._directory)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the services and the nodes' processes, remove the directory. Idempotent, bounded."""
        closers, self._closers = self._closers, []
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                outcomes = await asyncio.gather(*(close() for close in closers), return_exceptions=True)
        except TimeoutError:
            _log.warning("cloud.close_timeout", extra={"seconds": CLOSE_TIMEOUT})
        else:
            for error in (outcome for outcome in outcomes if isinstance(outcome, BaseException)):
                _log.error("cloud.close_failed", exc_info=error)
        directory, self._directory = self._directory, None
        if directory is not None and not await asyncio.to_thread(remove_tree, directory):
            _log.warning("cloud.directory_left", extra={"directory": str(directory)})
        self._lock.close()

    async def _start(self, directory: Path) -> Settings:
        ca_file = directory / _CA_FILE
        batch_key, storage_key = _new_key(), _new_key()
        batch_root = directory / "nodes"
        batch_root.mkdir(mode=0o700)
        if self._node_user is not None:
            for path in (directory, batch_root):
                path.chmod(0o711)  # the user may go through it, to the nodes and to the certificate
            await asyncio.to_thread(check_agents, self._node_user, batch_root)
        context = make_server_context(ca_file, self._certificate)
        entra = self._entra = await self._start_entra(context, ca_file) if self._roles else None
        buses = self._make_buses(context, entra)
        batch = BatchServer(
            account=ACCOUNT,
            key=batch_key,
            root=batch_root,
            latency=self._latency,
            boot_delay=self._boot_delay,
            timing=self._timing,
            node_user=self._node_user,
            entra=entra,
            errors=self.errors,
        )
        blob = BlobServer(
            account=ACCOUNT,
            key=storage_key,
            root=directory / "blobs",
            latency=self._latency,
            entra=entra,
            errors=self.errors,
        )
        self._closers += [batch.aclose, *(bus.aclose for bus in buses), blob.aclose]
        starting = (
            *(
                _listen("the Service Bus service", bus.start, 0 if index else self._ports.servicebus)
                for index, bus in enumerate(buses)
            ),
            _listen("the Batch service", batch.start, self._ports.batch),
            _listen("the Blob service", blob.start, self._ports.blob),
        )
        # Each start runs to its end before the first failure is told, so that closing finds none under way.
        for outcome in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        ca = str(ca_file)
        settings = Settings(
            target="local",
            batch=BatchSettings(account=ACCOUNT, key=batch_key, url=batch.url),
            storage=StorageSettings(connection_string=blob.connection_string),
            servicebus=ServiceBusSettings(" ".join(bus.connection_string for bus in buses), ca_file=ca),
            pool=self._pool,
            agent=AgentSettings(python=sys.executable),
        )
        if entra is not None:
            self.ingestion = IngestionServer(entra, errors=self.errors)
            self._closers.append(self.ingestion.aclose)
            await self.ingestion.start(HOST)
            namespaces = " ".join(f"{HOST}:{bus.port}" for bus in buses)
            self._keyless = replace(
                settings,
                batch=BatchSettings(account=ACCOUNT, url=batch.secure_url, entra=True, ca_file=ca),
                storage=StorageSettings(account_url=blob.secure_url, ca_file=ca),
                servicebus=ServiceBusSettings(namespace=namespaces, ca_file=ca),
            )
            self.monitor_settings = MonitorSettings(self.ingestion.url, self.ingestion.rule, ca_file=ca)
        return settings

    def _make_buses(self, context: ssl.SSLContext, entra: Entra | None) -> list[ServiceBusServer]:
        return [
            ServiceBusServer(
                key=_new_key(),
                ssl_context=context,
                latency=self._latency,
                link_idle_timeout=self._link_idle_timeout,
                directory=entra.directory if entra is not None else None,
                errors=self.errors,
            )
            for _ in range(self._namespaces)
        ]

    async def _start_entra(self, tls: ssl.SSLContext, ca_file: Path) -> Entra:
        self._principals = {name: principal(name, roles) for name, roles in self._roles.items()}
        directory = Directory(secrets.token_bytes(_KEY_BYTES), self._principals.values())
        endpoint = IdentityEndpoint(directory)
        self._closers.append(endpoint.aclose)
        await endpoint.start(HOST, 0)
        trusted = ssl.create_default_context(cafile=str(ca_file))
        nodes = {pool.lower(): self._principals[name] for pool, name in self._identities.items()}
        return Entra(directory, endpoint, tls, trusted, nodes)


async def _listen(name: str, start: Callable[[str, int], Awaitable[None]], port: int) -> None:
    try:
        await start(HOST, port)
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigurationError(
            f"{name} cannot listen on {HOST}:{port}: {reason}. Choose another port, or 0 for any free one."
        ) from error


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()

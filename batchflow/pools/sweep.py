"""Removes what dead clients, dead agents and deleted pools left behind.

Nothing that is in use is removed, however often and from wherever an account is swept:

- The queues and containers of a prefix go when they are named as batchflow names them, no manifest has that
  prefix and no Batch pool of that name waits for its manifest. They are listed first, then the Batch pools,
  then the manifests: a pool that is being made shows in one of the two. What agents logged in them is kept.
- Documents and payloads go by their age, by the storage service's own clock, so that a machine with a wrong
  clock sweeps nothing that is new.
- Bundles go when they are old, are not the pool's default and no session shows a sign of life in the pool.
  Opening a session writes its bundle's list anew, which makes it young again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from batchflow.errors import BatchflowError, BlobConflict, BlobNotFound, ProtocolError, ServiceError
from batchflow.pools import node_logs
from batchflow.pools.jobs import read_jobs
from batchflow.ports.broker import QueueRef
from batchflow.protocol import layout
from batchflow.protocol.budgets import SESSION_LEDGERS
from batchflow.protocol.documents import PoolManifest
from batchflow.protocol.failed_tasks import FAILED
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from batchflow.pools.connections import Connections
    from batchflow.ports.storage import BlobInfo, Container
    from batchflow.settings import Settings

logger = event_logger(__name__)

DAY: Final = 86400.0
_PRESENCE_AGE: Final = DAY / 24
_AGENT_AGE: Final = DAY
_ACTIVITY_AGE: Final = DAY / 24
_PAYLOAD_AGE: Final = 14 * DAY
_KEPT_LOG_AGE: Final = node_logs.KEPT
_SWEEP_AFTER = 60.0
"""Seconds from the opening of a client to its sweep, so that the sweep slows no start."""
_CLOCK: Final = "swept"
_PREFIX: Final = "bf-"
_NONCE: Final = 8
"""Hexadecimal digits at the end of a prefix."""


@dataclass(slots=True)
class Swept:
    """The names of what was removed, and of what could not be removed."""

    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> int:
        """How many of what was removed were arguments of tasks."""
        return sum("/args/" in name for name in self.removed)

    async def note(self, name: str, removal: Awaitable[object]) -> None:
        """Await the removal, and note its outcome under the name."""
        try:
            if await removal:
                self.removed.append(name)
        except BlobConflict:
            return  # it has just been written: it is in use
        except ServiceError as error:
            self.failed[name] = str(error)


async def sweep(
    connections: Connections, *, bundle_age: float = 30 * DAY, retention: float = 7 * DAY
) -> Swept:
    """Sweep the whole account once. Safe to cancel.

    `bundle_age`, `retention`: seconds, of bundles that no session uses, and of arguments of ended sessions.
    """
    swept, index = Swept(), connections.manifests.index
    containers = list(filter(layout.is_ours, await connections.storage.containers(_PREFIX)))
    queues = [
        QueueRef(admin.namespace, name)
        for admin in connections.admins
        for name in await admin.queues()
        if layout.is_ours(name)
    ]
    pools = {pool.id.lower() async for pool in connections.compute.pools()}
    await connections.storage.create_container(index.name)  # which an account without pools may not have
    manifests = [manifest async for manifest in connections.manifests.read_all()]
    await _sweep_orphans(connections, index, containers, queues, pools, manifests, swept)
    now = await _service_time(index)
    await _sweep_old(index, layout.LOGS, now - _KEPT_LOG_AGE, swept)
    for manifest in manifests:
        await _sweep_pool(connections, manifest, now, bundle_age, retention, swept)
    counts = {"removed": len(swept.removed), "failed": len(swept.failed), "arguments": swept.arguments}
    logger.info("swept", extra=counts)
    return swept


async def sweep_when_due(connections: Connections, settings: Settings) -> None:
    """Sweep a minute from now, if the last sweep of the account is a day old. An error is logged."""
    if connections.restricted:
        return
    await asyncio.sleep(_SWEEP_AFTER)
    try:
        since = await last_swept(connections.manifests.index)
        if since is None or since > DAY:
            await sweep(connections, retention=settings.session.retention)
    except BatchflowError as error:
        logger.warning("sweep_failed", extra={"error": str(error)})


async def last_swept(index: Container) -> float | None:
    """Return the seconds since the last sweep of this account; None when there was none."""
    try:
        (last,) = [info.modified_at async for info in index.list(_CLOCK) if info.name == _CLOCK]
    except (BlobNotFound, ValueError):
        return None
    return await _service_time(index, _CLOCK + "-look") - last


async def _service_time(index: Container, name: str = _CLOCK) -> float:
    """Read the storage service's clock, by writing a blob."""
    await index.put(name, b"")
    return max([info.modified_at async for info in index.list(name) if info.name == name])


async def _sweep_orphans(
    connections: Connections,
    index: Container,
    containers: list[str],
    queues: list[QueueRef],
    pools: set[str],
    manifests: list[PoolManifest],
    swept: Swept,
) -> None:
    named = {manifest.prefix for manifest in manifests}
    waiting = pools - {manifest.pool.lower() for manifest in manifests}
    stems = {_stem(layout.name_prefix(pool, "0" * _NONCE)) for pool in waiting}

    def orphaned(name: str) -> bool:
        prefix = name.rpartition("-")[0]
        return prefix not in named and _stem(prefix) not in stems

    for name in filter(orphaned, containers):
        await swept.note(f"container {name}", _remove_container(connections, index, name))
    for queue in queues:
        if orphaned(queue.entity):
            removal = connections.admin_of(queue).delete_queue(queue.entity)
            await swept.note(f"queue {queue.entity}", removal)


async def _remove_container(connections: Connections, index: Container, name: str) -> bool:
    """Remove a container; the logs of agents are kept."""
    prefix, _, which = name.rpartition("-")
    if which == "out":
        await node_logs.keep(connections.storage.container(name), index, prefix)
    return await connections.storage.delete_container(name)


def _stem(prefix: str) -> str:
    """Return the part of a prefix that is the same for all pools of the name."""
    return prefix[:-_NONCE]


async def _sweep_pool(
    connections: Connections,
    manifest: PoolManifest,
    now: float,
    bundle_age: float,
    retention: float,
    swept: Swept,
) -> None:
    ctl, out = connections.storage.container(manifest.ctl), connections.storage.container(manifest.out)
    try:
        live = await _sweep_old(ctl, "sessions/", now - _PRESENCE_AGE, swept)
        held = tuple(layout.arguments_prefix(name) for name in live)
        await _sweep_old(ctl, "args/", now - retention, swept, held)
        held = tuple(layout.session_variables_prefix(name) for name in live)
        await _sweep_variables(ctl, manifest, held, now, retention, swept)
        for container, prefix, age in (
            (ctl, "cancel/", _PAYLOAD_AGE),
            (ctl, "ended/", _PAYLOAD_AGE),
            (ctl, layout.WISHES, _AGENT_AGE),
            (out, "results/", _PAYLOAD_AGE),
            (out, "agents/", _AGENT_AGE),
            (out, layout.ACTIVITY, _ACTIVITY_AGE),
            (out, SESSION_LEDGERS, _PAYLOAD_AGE),
            (out, layout.LOGS, _PAYLOAD_AGE),
            (out, FAILED, max(retention, DAY)),
            (ctl, FAILED, max(retention, DAY)),
        ):
            await _sweep_old(container, prefix, now - age, swept)
        if not live:
            await _sweep_bundles(ctl, manifest.bundle, now - bundle_age, swept)
    except ServiceError as error:
        swept.failed[f"pool {manifest.pool}"] = str(error)


async def _sweep_variables(
    ctl: Container, manifest: PoolManifest, held: tuple[str, ...], now: float, retention: float, swept: Swept
) -> None:
    """Remove variables of ended sessions, and those that the pool and its jobs name no longer.

    `held`: what those of living sessions begin with. The tasks of an ended session may be queued yet, so its
    variables are kept as long as arguments are, and for a day at least.
    """
    of_sessions = layout.session_variables_prefix()
    await _sweep_old(ctl, of_sessions, now - max(retention, DAY), swept, held)
    listed = [info async for info in ctl.list(layout.VARIABLES)]
    old = {
        info.name for info in listed if info.modified_at < now - DAY and not info.name.startswith(of_sessions)
    }
    if unnamed := old - {manifest.variables}:
        unnamed -= {job.variables async for job in read_jobs(ctl)}
    for name in unnamed:
        await swept.note(f"{ctl.name}/{name}", ctl.delete(name))


async def _sweep_old(
    container: Container, prefix: str, before: float, swept: Swept, held: tuple[str, ...] = ()
) -> list[str]:
    """Remove the blobs that are older; return the names of those that are younger.

    `held`: the beginnings of names that are in use, however old they are.
    """
    listed = [info async for info in container.list(prefix)]
    old = [info for info in listed if info.modified_at < before and not info.name.startswith(held or "\0")]
    for info in old:
        await swept.note(f"{container.name}/{info.name}", container.delete(info.name, if_match=info.etag))
    return [info.name for info in listed if info.modified_at >= before]


async def _sweep_bundles(ctl: Container, default: str | None, before: float, swept: Swept) -> None:
    kept: set[str] = set()
    async for info in ctl.list("bundles/"):
        files = await _files_of(ctl, info)
        if info.modified_at < before and info.name != f"bundles/{default}.json":
            await swept.note(f"{ctl.name}/{info.name}", ctl.delete(info.name, if_match=info.etag))
            if swept.removed[-1:] == [f"{ctl.name}/{info.name}"]:
                continue
        kept |= files
    async for info in ctl.list("files/"):
        if info.modified_at < before and info.name not in kept:
            await swept.note(f"{ctl.name}/{info.name}", ctl.delete(info.name, if_match=info.etag))


async def _files_of(ctl: Container, bundle: BlobInfo) -> set[str]:
    document = (await ctl.get(bundle.name)).data
    try:
        return {f"files/{row[1]}" for row in orjson.loads(document)["files"]}
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise ProtocolError(f"{bundle.name} cannot be read: {error!r}") from error

"""One pool for clients that hold no key of an account: what they get, and what they work with.

Such a client may send to the pool's task queue, listen to its results queue, read and write its control
container, read and delete what agents put out; nothing else, and of no other pool. Its rights are the rules
and stored policies named here: they are made with the pool and end with it. The manifest lies in a container
that such a client cannot see, so a pool that is shared keeps a copy of it in the control container.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from batchflow.ports.broker import AccessRule, QueueRef
from batchflow.ports.storage import AccessPolicy
from batchflow.protocol import documents
from batchflow.settings import AccessSettings, BatchSettings, Settings

if TYPE_CHECKING:
    from batchflow.pools.connections import Connections

AGENT_RULE: Final = "agent"
CLIENT_RULE: Final = "client"
"""The names of the rules on a pool's queues."""
AGENT_ON_TASKS: Final = AccessRule(AGENT_RULE, frozenset({"Listen", "Send"}))
AGENT_ON_RESULTS: Final = AccessRule(AGENT_RULE, frozenset({"Send"}))
CLIENT_ON_TASKS: Final = AccessRule(CLIENT_RULE, frozenset({"Send"}))
CLIENT_ON_RESULTS: Final = AccessRule(CLIENT_RULE, frozenset({"Listen"}))

_LIFE: Final = 10 * 365 * 86400.0
"""Seconds. Signatures end with the pool, by the removal of its policies, not by the clock."""
_ON_CTL: Final = {"agent-ctl": "r", "client-ctl": "rcwdl"}
_ON_OUT: Final = {"agent-out": "acw", "client-out": "rdl"}


def ctl_policies() -> tuple[AccessPolicy, AccessPolicy]:
    """Of the control container: the agents', and the clients'."""
    return _policies(_ON_CTL)


def out_policies() -> tuple[AccessPolicy, AccessPolicy]:
    """Of the output container: the agents', and the clients'."""
    return _policies(_ON_OUT)


def _policies(rights: dict[str, str]) -> tuple[AccessPolicy, AccessPolicy]:
    until = time.time() + _LIFE
    agent, client = (AccessPolicy(name, letters, until) for name, letters in rights.items())
    return agent, client


async def client_settings(
    services: Connections, settings: Settings, manifest: documents.PoolManifest
) -> Settings:
    """What a program without any account connects with to this pool alone. Holds secrets."""
    ctl, out = services.storage.container(manifest.ctl), services.storage.container(manifest.out)
    _, of_ctl = ctl_policies()
    _, of_out = out_policies()
    access = AccessSettings(
        pool=manifest.pool,
        ctl=f"{ctl.url}?{await services.storage.signature(ctl.name, of_ctl)}",
        out=f"{out.url}?{await services.storage.signature(out.name, of_out)}",
        task_queues=await _keys(services, manifest.task_queues),
        results_queues=await _keys(services, manifest.results_queues),
    )
    bus = replace(settings.servicebus, connection_string=None, namespace=None)
    storage = replace(settings.storage, connection_string=None, account_url=None)
    return replace(settings, batch=BatchSettings(), storage=storage, servicebus=bus, access=access)


async def _keys(services: Connections, queues: tuple[QueueRef, ...]) -> str:
    return " ".join(
        [await services.admin_of(queue).connection_string(queue.entity, CLIENT_RULE) for queue in queues]
    )


def ends_at(signature: str | None) -> float | None:
    """When a signature ends, in seconds since the epoch; None for one that ends with its stored policy."""
    written = parse_qs(signature or "").get("se")
    return None if not written else datetime.fromisoformat(written[0]).timestamp()

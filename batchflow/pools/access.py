"""Who may do what in one pool: the rules of its queues, the policies of its containers, settings for others.

A client without keys of an account may send to the pool's task queues and receive from its results queues. It
may read and write the control container, and read and delete what agents wrote to the output container. It
may do nothing else, and nothing in other pools. Its rights are the rules and stored policies named here. They
are created with the pool and end with it. `restricted` has the containers as such a client sees them.
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

_POLICY_LIFETIME: Final = 10 * 365 * 86400.0
"""Seconds. Signatures end with the pool, when its policies are removed, and not by the clock."""
_ON_CTL: Final = {"agent-ctl": "r", "client-ctl": "rcwdl"}
_ON_OUT: Final = {"agent-out": "acw", "client-out": "rdl"}


def ctl_policies() -> tuple[AccessPolicy, AccessPolicy]:
    """Return the policies of the control container: the agents', and the clients'."""
    return _policies(_ON_CTL)


def out_policies() -> tuple[AccessPolicy, AccessPolicy]:
    """Return the policies of the output container: the agents', and the clients'."""
    return _policies(_ON_OUT)


def _policies(rights: dict[str, str]) -> tuple[AccessPolicy, AccessPolicy]:
    until = time.time() + _POLICY_LIFETIME
    agent, client = (AccessPolicy(name, letters, until) for name, letters in rights.items())
    return agent, client


async def client_settings(
    connections: Connections, settings: Settings, manifest: documents.PoolManifest
) -> Settings:
    """Make the settings by which a program without any account connects to this pool. Holds secrets."""
    ctl, out = connections.storage.container(manifest.ctl), connections.storage.container(manifest.out)
    _, of_ctl = ctl_policies()
    _, of_out = out_policies()
    access = AccessSettings(
        pool=manifest.pool,
        ctl=f"{ctl.url}?{await connections.storage.signature(ctl.name, of_ctl)}",
        out=f"{out.url}?{await connections.storage.signature(out.name, of_out)}",
        task_queues=await _keys(connections, manifest.task_queues),
        results_queues=await _keys(connections, manifest.results_queues),
    )
    bus = replace(settings.servicebus, connection_string=None, namespace=None)
    storage = replace(settings.storage, connection_string=None, account_url=None)
    return replace(settings, batch=BatchSettings(), storage=storage, servicebus=bus, access=access)


async def _keys(connections: Connections, queues: tuple[QueueRef, ...]) -> str:
    return " ".join(
        [await connections.admin_of(queue).connection_string(queue.entity, CLIENT_RULE) for queue in queues]
    )


def ends_at(signature: str | None) -> float | None:
    """Return the end of a signature, in seconds since the epoch; None: it ends with its stored policy."""
    written = parse_qs(signature or "").get("se")
    return None if not written else datetime.fromisoformat(written[0]).timestamp()

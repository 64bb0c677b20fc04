"""Faults on demand in a running local cloud: what may happen on Azure, when a test wants it.

    faults = Faults(client.settings)
    await faults.start_task_failure("demo", stderr="no such package")
    await faults.preempt("demo", seconds=1.0)

It speaks to the local Batch service with the account's key, so it works for a cloud in a process of its own
as well as for one in the test's. Azure refuses these requests.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from batchflow.errors import ConfigurationError, PoolError
from batchflow.local.batch.rest.auth import signature, strings_to_sign

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.settings import Settings

_VERSION = "api-version=2025-06-01"
_JSON = "application/json; odata=minimalmetadata"


class Faults:
    """Faults in the local cloud of these settings. Every method raises `PoolError` when refused."""

    def __init__(self, settings: Settings) -> None:
        batch = settings.batch
        if settings.target != "local" or not (batch.account and batch.key and batch.url):
            raise ConfigurationError("faults can be had of an open client of the local cloud only")
        self._account, self._key, self._url = batch.account, batch.key, batch.url.rstrip("/")

    async def allocation_failure(
        self, pool_id: str, *, code: str = "AllocationFailed", message: str | None = None, nodes: int = 0
    ) -> None:
        """Give the pool no more than `nodes` nodes from now on."""
        await self.inject(pool_id, fault="allocation", code=code, message=message, nodes=nodes)

    async def core_quota(self, pool_id: str, *, nodes: int = 0) -> None:
        """Give the pool no more than `nodes` nodes from now on, because the quota of cores is reached."""
        await self.allocation_failure(pool_id, code="AccountCoreQuotaReached", nodes=nodes)

    async def account(
        self,
        *,
        reached: Iterable[str] = (),
        retired: Iterable[str] = (),
        pools: int | None = None,
        jobs: int | None = None,
    ) -> None:
        """Set the faults of the account, in place of earlier ones.

        `reached`: the account's quota of "pools", "jobs" or both. `pools`, `jobs`: how many of them, active
        ones of the latter, the account may have. `retired`: images whose end of life has come, each
        "publisher:offer:sku".
        """
        quotas = {"pools": pools, "jobs": jobs}
        body = {"reached": list(reached), "retired": list(retired), "quotas": quotas}
        await self._send("POST", "/faults", body)

    async def slow_start(self, pool_id: str, seconds: float) -> None:
        """Let the pool's nodes take so many seconds longer to boot from now on."""
        await self.inject(pool_id, fault="slowstart", seconds=seconds)

    async def start_task_failure(self, pool_id: str, *, stderr: str = "", exit_code: int = 1) -> None:
        """Let the start task of the pool's nodes print `stderr` and fail from now on."""
        await self.inject(pool_id, fault="starttask", stderr=stderr, exitCode=exit_code)

    async def unusable(self, pool_id: str, node_id: str | None = None, *, code: str = "NodeUnusable") -> None:
        """Make a node, or all, unusable; its tasks run again elsewhere. A reboot heals it."""
        await self.inject(pool_id, fault="unusable", node=node_id, code=code)

    async def preempt(
        self, pool_id: str, node_id: str | None = None, *, seconds: float = 0.0, notice: float = 0.0
    ) -> None:
        """Preempt a spot node, or all; it comes back after so many seconds with the same id
        and an empty disk.

        `notice`: seconds before that at which the node can read of it in its scheduled events; 0: it cannot.
        """
        await self.inject(pool_id, fault="preempted", node=node_id, seconds=seconds, notice=notice)

    async def lose(self, pool_id: str, node_id: str | None = None, *, seconds: float | None = None) -> None:
        """Lose a node, or all: its state is unknown until it boots again after `seconds`, None for never."""
        await self.inject(pool_id, fault="lost", node=node_id, seconds=seconds)

    async def clear(self, pool_id: str) -> None:
        """Clear the standing faults of a pool; what happened is not undone."""
        await self._send("DELETE", f"/pools/{pool_id}/faults", None)

    async def inject(self, pool_id: str, **fault: Any) -> None:
        """Inject a fault that is described in the words of the request; None leaves a word out."""
        body = {name: value for name, value in fault.items() if value is not None}
        await self._send("POST", f"/pools/{pool_id}/faults", body)

    async def _send(self, method: str, path: str, body: object) -> None:
        target = f"{path}?{_VERSION}"
        data = b"" if body is None else orjson.dumps(body)
        headers = {
            "ocp-date": formatdate(usegmt=True),
            "content-type": _JSON,
            "content-length": str(len(data)),
        }
        text = next(iter(strings_to_sign(method, target, headers, self._account)))
        headers["authorization"] = f"SharedKey {self._account}:{signature(text, self._key)}"
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self._url + target, data=data, headers=headers) as answer,
        ):
            if answer.status >= 400:
                raise PoolError(f"the local cloud refuses the fault: {(await answer.text())[:500]}")

"""Where the account's quota ends before an elastic pool's maximum. Batch tells it when it refuses nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.errors import ServiceError
from batchflow.pools.elastic.boots import read_history
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.documents import ScalingLimits

logger = event_logger(__name__)


async def known_quota(runtime: PoolRuntime) -> str | None:
    """Say that the quota is below a new pool's maximum, as far as earlier pools of such nodes met its end.

    None where it is not known to be, and where the services do not tell at present.
    """
    limits = runtime.manifest.elastic
    if limits is None:
        return None
    try:
        info = await runtime.connections.compute.pool(runtime.pool_id)
        history = await read_history(runtime.connections.manifests.index, info)
    except ServiceError as error:
        logger.info("quota_not_known", extra={"pool": runtime.pool_id, "error": str(error)})
        return None
    if history.refused is None or history.refused >= limits.most:
        return None
    return quota_note(limits, history.refused)


def quota_note(limits: ScalingLimits, there: int) -> str:
    """Say that the account's quota is below what a pool may grow to."""
    return (
        f"the Batch account's quota allows {there} nodes, and the pool may grow to {limits.most}: "
        "raise the quota of cores in the Azure portal, or take a smaller VM size"
    )

"""Faults on demand: what may happen to a pool on Azure, as a test asks for it.

A pool's standing faults (allocation, slow start, start task) hold from when they are asked for, also for a
pool that is made later, until they are cleared. A node's faults (unusable, preempted, lost) happen once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from batchflow.local.batch.core.context import id_key
from batchflow.local.batch.core.entities import CommandSpec, FailureInfo, StartTaskSpec
from batchflow.local.batch.core.errors import Refused
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["allocation", "slowstart", "starttask", "unusable", "preempted", "lost"]
KINDS: Final = ("allocation", "slowstart", "starttask", "unusable", "preempted", "lost")
NODE_FAULTS: Final = ("unusable", "preempted", "lost")
NODE_LOST: Final = FailureInfo("servererror", "TaskEnded", "The node that the task ran on is gone.")

MESSAGES: Final[Mapping[str, str]] = {
    "AllocationFailed": "Desired number of dedicated nodes could not be allocated",
    "AllocationTimedout": (
        "Desired number of dedicated nodes could not be allocated as the resize timeout was reached"
    ),
    "AccountCoreQuotaReached": "The specified account has reached core quota",
    "AccountLowPriorityCoreQuotaReached": "The specified account has reached low priority core quota",
    "DiskFull": "There is not enough disk space on the node",
    "NodeUnusable": "The node is not usable",
}
QUOTAS: Final[Mapping[str, str]] = {"pools": "PoolQuotaReached", "jobs": "ActiveJobAndScheduleQuotaReached"}


@frozen
class InjectedFault:
    """One fault, with what its kind needs."""

    kind: Kind
    failure: FailureInfo
    limit: int = 0
    """Of an allocation: nodes that can be had all the same."""
    seconds: float | None = None
    """How much longer a boot takes; when a node comes back, None: at once, or of a lost one never."""
    notice: float = 0.0
    """Seconds before a preemption at which its node can read of it; 0: it cannot."""
    node: str | None = None
    """None: every node that it can happen to."""
    exit_code: int = 1
    stderr: str = ""


MOST_NODES: Final = 1000
"""Of a pool: each is processes of this machine, as an account's quota of cores keeps pools small on Azure."""
CORE_QUOTA: Final = InjectedFault(
    "allocation",
    FailureInfo("servererror", "AccountCoreQuotaReached", MESSAGES["AccountCoreQuotaReached"]),
    limit=MOST_NODES,
)
"""What happens to a pool for which nothing else was asked."""


@frozen
class PoolFaults:
    """The standing faults of a pool."""

    allocation: InjectedFault = CORE_QUOTA
    boot_delay: float = 0.0
    start_task: StartTaskSpec | None = None


@frozen
class AccountFaults:
    """The faults of the account."""

    quotas: Mapping[str, int] = field(default_factory=dict)
    """How many pools, and how many active jobs, there may be; without end where it does not say."""
    retired: frozenset[str] = frozenset()
    """Images whose end of life has come, each "publisher:offer:sku"."""


@dataclass(slots=True)
class BatchFaults:
    """The standing faults of one account."""

    account: AccountFaults = field(default_factory=AccountFaults)
    _pools: dict[str, PoolFaults] = field(default_factory=dict)

    def of(self, pool_id: str) -> PoolFaults:
        """Return the standing faults of a pool."""
        return self._pools.get(id_key(pool_id), PoolFaults())

    def note(self, pool_id: str, fault: InjectedFault) -> None:
        """Keep a fault of a kind that stands until it is cleared."""
        standing = self.of(pool_id)
        match fault.kind:
            case "allocation":
                standing = replace(standing, allocation=fault)
            case "slowstart":
                standing = replace(standing, boot_delay=fault.seconds or 0.0)
            case "starttask":
                standing = replace(standing, start_task=_failing(fault))
        self._pools[id_key(pool_id)] = standing

    def clear(self, pool_id: str) -> None:
        """Clear the standing faults of a pool; what happened is not undone."""
        self._pools.pop(id_key(pool_id), None)

    def check_quota(self, what: str, there: int) -> None:
        """Check the quota of pools or jobs. Raises Refused when it is reached."""
        quota = self.account.quotas.get(what)
        if quota is not None and there >= quota:
            raise Refused(QUOTAS[what])


def _failing(fault: InjectedFault) -> StartTaskSpec:
    script = f"printf '%s\\n' {shlex.quote(fault.stderr)} >&2; exit {fault.exit_code}"
    return StartTaskSpec(CommandSpec(f"/bin/sh -c {shlex.quote(script)}"), wait_for_success=True)

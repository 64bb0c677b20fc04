"""Faults on demand: what may happen to a pool on Azure, as a test asks for it.

A pool's standing faults (allocation, slow start, start task) hold from when they are asked for, also for a
pool that is made later, until they are cleared. A node's faults (unusable, preempted, lost) happen once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, cast

from batchflow.local.batch.entities import CommandSpec, FailureInfo, StartTaskSpec
from batchflow.local.batch.errors import Refused, invalid_property
from batchflow.local.batch.ledger import fold
from batchflow.local.batch.values import Fields
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["allocation", "slowstart", "starttask", "unusable", "preempted", "lost"]
KINDS: Final = ("allocation", "slowstart", "starttask", "unusable", "preempted", "lost")
NODE_FAULTS: Final = ("unusable", "preempted", "lost")
NODE_GONE: Final = FailureInfo("servererror", "TaskEnded", "The node that the task ran on is gone.")

_WORDS: Final[Mapping[str, str]] = {
    "AllocationFailed": "Desired number of dedicated nodes could not be allocated",
    "AllocationTimedout": (
        "Desired number of dedicated nodes could not be allocated as the resize timeout was reached"
    ),
    "AccountCoreQuotaReached": "The specified account has reached core quota",
    "AccountLowPriorityCoreQuotaReached": "The specified account has reached low priority core quota",
    "DiskFull": "There is not enough disk space on the node",
    "NodeUnusable": "The node is not usable",
}
_QUOTAS: Final[Mapping[str, str]] = {"pools": "PoolQuotaReached", "jobs": "ActiveJobAndScheduleQuotaReached"}


@frozen
class InjectedFault:
    """One fault, with what its kind needs."""

    kind: Kind
    failure: FailureInfo
    limit: int = 0
    """Of an allocation: nodes that can be had all the same."""
    seconds: float | None = None
    """How much longer a boot takes; when a node comes back, None: at once, or of a lost one never."""
    node: str | None = None
    """None: every node that it can happen to."""
    exit_code: int = 1
    stderr: str = ""


MOST_NODES: Final = 1000
"""Of a pool: each is processes of this machine, as an account's quota of cores keeps pools small on Azure."""
CORE_QUOTA: Final = InjectedFault(
    "allocation",
    FailureInfo("servererror", "AccountCoreQuotaReached", _WORDS["AccountCoreQuotaReached"]),
    limit=MOST_NODES,
)
"""What happens to a pool for which nothing else was asked."""


@frozen
class PoolFaults:
    """What holds for a pool."""

    allocation: InjectedFault = CORE_QUOTA
    boot_delay: float = 0.0
    start_task: StartTaskSpec | None = None


@frozen
class AccountFaults:
    """What holds for the account."""

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
        """What holds for a pool."""
        return self._pools.get(fold(pool_id), PoolFaults())

    def note(self, pool_id: str, fault: InjectedFault) -> None:
        """From now on this holds, if it is of a kind that stands."""
        standing = self.of(pool_id)
        match fault.kind:
            case "allocation":
                standing = replace(standing, allocation=fault)
            case "slowstart":
                standing = replace(standing, boot_delay=fault.seconds or 0.0)
            case "starttask":
                standing = replace(standing, start_task=_failing(fault))
        self._pools[fold(pool_id)] = standing

    def clear(self, pool_id: str) -> None:
        """Nothing holds any more; what happened is not undone."""
        self._pools.pop(fold(pool_id), None)

    def check_quota(self, what: str, there: int) -> None:
        """Raises Refused when no more of these are to be had than there are."""
        quota = self.account.quotas.get(what)
        if quota is not None and there >= quota:
            raise Refused(_QUOTAS[what])


def parse_fault(body: object) -> InjectedFault:
    """The body of a request for a fault."""
    fields = Fields(body)
    fields.required_text("fault")
    kind = fields.choice("fault", KINDS, "")
    code = fields.text("code") or ("NodeUnusable" if kind == "unusable" else "AllocationFailed")
    message = fields.text("message") or _WORDS.get(code, code)
    seconds = fields.get("seconds")
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0
    ):
        raise invalid_property("seconds", seconds, "A number that is not negative is expected.")
    fault = InjectedFault(
        kind=cast("Kind", kind),
        failure=FailureInfo("servererror", code, message),
        limit=fields.integer("nodes", 0, low=0),
        seconds=seconds,
        node=fields.text("node"),
        exit_code=fields.integer("exitCode", 1, low=1, high=255),
        stderr=fields.text("stderr", "") or "",
    )
    fields.finish()
    return fault


def parse_account_faults(body: object) -> AccountFaults:
    """What the account's quotas are, which of them are reached, and which images are past their end."""
    fields = Fields(body)
    reached, retired = _names(fields, "reached"), _names(fields, "retired")
    if not reached <= set(_QUOTAS):
        raise invalid_property("reached", reached, f"A list of {', '.join(_QUOTAS)} is expected.")
    quotas = dict.fromkeys(reached, 0)
    if (given := fields.fields("quotas")) is not None:
        quotas |= {name: given.integer(name, 0, low=0) for name in _QUOTAS if given.get(name) is not None}
        given.finish()
    fields.finish()
    return AccountFaults(quotas, retired)


def _names(fields: Fields, key: str) -> frozenset[str]:
    names = fields.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise invalid_property(key, names, "A list of names is expected.")
    return frozenset(name.lower() for name in names)


def _failing(fault: InjectedFault) -> StartTaskSpec:
    script = f"printf '%s\\n' {shlex.quote(fault.stderr)} >&2; exit {fault.exit_code}"
    return StartTaskSpec(CommandSpec(f"/bin/sh -c {shlex.quote(script)}"), wait_for_success=True)

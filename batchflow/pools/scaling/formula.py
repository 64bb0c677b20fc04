"""The autoscale formula of an elastic pool: its text, as Azure Batch evaluates it without any client. Pure.

An agent is a Batch task, so Batch can count agents: `$PendingTasks` is the number of tasks that wait or run,
and each has a node of its own. Batch evaluates a formula every five minutes at the fastest, and at once when
it is set. Its samples come a minute late. So the formula has four stages:

1. Until the wish ends, the size is the number that clients wish.
2. Until `counted_until`, which living clients renew, the size is the number of agents.
3. After that, for `WORKING` seconds, the size is the number of agents that run. They work off what is queued,
   leave when they are idle, and each takes a node with it. Without this stage all nodes would leave at once,
   and one with a long task would keep the pool resizing, in which it takes no formula.
4. Then the pool has its minimum size. Agents that still run finish: their nodes wait for them.

The last two stages are what ends a pool whose clients are dead: agent tasks that can never run do not count
in the third, and agents that fail and are started again without end do not count in the fourth.
(https://learn.microsoft.com/azure/batch/batch-automatic-scaling)
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.protocol.documents import ScalingLimits

_DATE: Final = re.compile(r'time\(\) < time\("([^"]+)"\)')
MARK: Final = "// batchflow elastic pool 1"
"""The first line of our formulas. One without it was put there by another program, and is left alone."""
LOOK_BACK: Final = 300.0
"""Seconds of samples that are asked for: ten samples, of which the newest two are not there yet."""
LEAST_PERCENT: Final = 60
"""Percent of them that are due. Azure's own example asks for 70 % of three minutes, which are 67 % when all
samples are a minute late."""


WORKING: Final = 86_400.0
"""Seconds for which agents that run are counted when no client lives any more."""


@frozen
class FormulaWish:
    """What clients want of the formula, and until when."""

    dedicated: int = 0
    spot: int = 0
    until: float = 0.0
    """Until when these numbers count, in seconds since the epoch."""
    counted_until: float = 0.0
    """Until when agents are counted, in seconds since the epoch."""


def scaling_formula(limits: ScalingLimits, wish: FormulaWish, look_back: float = LOOK_BACK) -> str:
    """Return the text of the formula, some 1,100 characters of the 8,192 that Azure allows.

    `look_back`: ten times the period of samples, in seconds; less than Azure's only on a local cloud.
    """
    return "\n".join(
        (
            MARK,
            f'wished = time() < time("{_utc(wish.until)}");',
            f'counted = time() < time("{_utc(wish.counted_until)}");',
            f'working = time("{_utc(wish.counted_until + WORKING)}") > time();',
            f"percent = $PendingTasks.GetSamplePercent({look_back:g} * TimeInterval_Second);",
            f"agents = percent < {LEAST_PERCENT} ? $TargetDedicatedNodes + $TargetLowPriorityNodes"
            " : max($PendingTasks.GetSample(1));",
            f"running = percent < {LEAST_PERCENT} ? 0 : max($RunningTasks.GetSample(1));",
            "staying = counted ? agents : (working ? running : 0);",
            f"kept = min({_dedicated_first(limits, wish)}, staying);",
            f"dedicated = wished ? {wish.dedicated} : kept;",
            f"spot = wished ? {wish.spot} : staying - kept;",
            f"$TargetDedicatedNodes = max({limits.min_nodes}, min({limits.max_nodes}, dedicated));",
            f"$TargetLowPriorityNodes = max({limits.min_spot}, min({limits.max_spot}, spot));",
            "$NodeDeallocationOption = taskcompletion;",
        )
    )


def _dedicated_first(limits: ScalingLimits, wish: FormulaWish) -> int:
    """Return how many agents are counted as those of dedicated nodes before any is counted as spot."""
    return wish.dedicated if limits.max_spot else limits.max_nodes


@frozen
class FormulaDates:
    """Until when a formula's numbers count, in seconds since the epoch; 0: it is not ours."""

    until: float = 0.0
    counted_until: float = 0.0


def dates_of(formula: str | None) -> FormulaDates:
    """Read the two dates of our own formula."""
    found = _DATE.findall(formula or "") if is_ours(formula) else []
    dates = [datetime.fromisoformat(each).timestamp() for each in found]
    return FormulaDates(*dates) if len(dates) == 2 else FormulaDates()


def is_ours(formula: str | None) -> bool:
    """Return whether the text of a pool's formula was made here."""
    return formula is not None and formula.lstrip().startswith(MARK)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Formulas that decide the size of a pool: what one comes to, as the service tells it.

`$TargetDedicatedNodes` and `$TargetLowPriorityNodes` are the size that the pool is to have,
`$NodeDeallocationOption` is what becomes of the tasks of nodes that leave. The language is in `formula`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from batchflow.local.batch.core.formula import DEDICATED, OPTION, SPOT, Program
from batchflow.local.batch.core.formula_values import FormulaFacts, failed, told
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.local.batch.core.entities import Deallocation

MAX_TARGET: Final = 2**31 - 1
_SHOWN: Final = 4_096
"""Characters of the results that are shown."""


@frozen
class Targets:
    """The result of a formula; None leaves a count as it is."""

    dedicated: int | None
    spot: int | None
    option: Deallocation
    results: str
    """As the service tells it: each variable with its value."""


def check(formula: str) -> None:
    """Refuse what is no formula, without evaluating it. Raises Refused."""
    Program(formula)


def evaluate(formula: str, facts: FormulaFacts) -> Targets:
    """Evaluate a formula with what is known of its pool.

    Raises Refused: AutoScalingFormulaEvaluationError for a formula that is one and has no result now, as when
    samples are missing.
    """
    assigned = Program(formula).run(facts)
    option = str(assigned.get(OPTION, "requeue"))
    shown = {OPTION: option} | assigned
    return Targets(
        _count(assigned, DEDICATED),
        _count(assigned, SPOT),
        cast("Deallocation", option),
        ";".join(f"{name}={told(shown[name])}" for name in sorted(shown))[:_SHOWN],
    )


def _count(assigned: Mapping[str, Any], name: str) -> int | None:
    value = cast("float | None", assigned.get(name))
    if value is None:
        return None
    if not -MAX_TARGET <= value <= MAX_TARGET:  # nor is what is not a number
        raise failed(f"{name} is {value:g}, which is no number of nodes")
    return max(0, int(value))

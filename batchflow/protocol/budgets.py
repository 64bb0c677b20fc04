"""What agents are told of a budget: how much, what a node-second takes of it, and where it is written down.

The ledger of a budget is an append blob: its size, in grains, is what all agents have spent together. Each
agent appends as many bytes as it has spent, and the answer tells where they came to lie: so one request adds
to the sum and reads it, with the right to add alone. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from batchflow.costs.cost import HOUR
from batchflow.model import Budget
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from typing import Self

GRAINS: Final = 100_000
"""Bytes of a ledger whose budget is spent."""


@frozen
class BudgetTerms:
    """A budget as agents enforce it."""

    ledger: str
    """The blob of the output container that is its ledger."""
    limit: float
    """Node-hours, or money."""
    dedicated: float
    """What a second of a dedicated node takes of the budget."""
    spot: float
    """The same of a spot node."""
    currency: str | None = None
    """Of money; None: node-hours."""

    @classmethod
    def of(cls, budget: Budget, ledger: str, dedicated_price: float | None, spot_price: float | None) -> Self:
        """Make the terms of a budget. The prices are of a node for an hour; node-hours need none.

        A spot node without a price counts as a dedicated one, which costs more.
        """
        if budget.amount is None or dedicated_price is None:
            return cls(ledger, budget.limit, 1 / HOUR, 1 / HOUR)
        spot = dedicated_price if spot_price is None else spot_price
        return cls(ledger, budget.limit, dedicated_price / HOUR, spot / HOUR, budget.currency)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Read the terms that came with a task. Raises ValueError for what cannot be terms."""
        ledger, currency = fields.get("ledger"), fields.get("currency")
        numbers = [fields.get(name) for name in ("limit", "dedicated", "spot")]
        if not isinstance(ledger, str) or not ledger.startswith(SESSION_LEDGERS) or ".." in ledger:
            raise ValueError(f"its ledger is {str(ledger)[:80]!r}")
        if not (currency is None or isinstance(currency, str)):
            raise ValueError("its currency is no text")
        limit, dedicated, spot = (_number(value) for value in numbers)
        if limit <= 0:
            raise ValueError("its limit is 0")
        return cls(ledger, limit, dedicated, spot, currency)

    def fields(self) -> dict[str, Any]:
        """Return the terms as they travel with a task."""
        found = {"ledger": self.ledger, "limit": self.limit, "dedicated": self.dedicated, "spot": self.spot}
        return found if self.currency is None else {**found, "currency": self.currency}

    @property
    def budget(self) -> Budget:
        """The budget as its user gave it."""
        if self.currency is None:
            return Budget(node_hours=self.limit)
        return Budget(amount=self.limit, currency=self.currency)

    @property
    def grain(self) -> float:
        """What a byte of the ledger stands for."""
        return self.limit / GRAINS

    def spent(self, size: int) -> float:
        """Return what is spent when the ledger has so many bytes."""
        return size * self.grain

    def is_spent(self, size: int) -> bool:
        """Return whether the budget is spent when the ledger has so many bytes."""
        return size >= GRAINS

    def rate(self, *, dedicated: bool) -> float:
        """Return what a second of a node takes."""
        return self.dedicated if dedicated else self.spot


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{str(value)[:80]} is no number of 0 or more")
    return float(value)


POOL_LEDGER: Final = "budgets/pool"
SESSION_LEDGERS: Final = "budgets/sessions/"


def session_ledger(job: str, client: str, incarnation: str) -> str:
    """Return the ledger of a session's budget. A later session of the name has one of its own."""
    return f"{SESSION_LEDGERS}{job}/{client}/{incarnation}"


def spent_text(budget: Budget, whose: str) -> str:
    """Return why a task did not run. `whose`: "the pool's" or "the session's"."""
    return f"{whose} budget of {budget} is spent: nothing new begins"

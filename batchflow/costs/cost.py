"""What a pool has cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from batchflow.model import Budget, budget_text

HOUR: Final = 3600.0
_NO_PRICE: Final = "unknown: no price is known (batchflow prices)"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pool has cost so far, as its agents count: from their start to their end, on each node.

    What a node costs before its agent starts, and after the agent has left, is not counted.
    """

    dedicated_seconds: float = 0.0
    """Node-seconds of dedicated nodes."""
    spot_seconds: float = 0.0
    """Node-seconds of spot nodes."""
    busy_seconds: float = 0.0
    """Node-seconds in which tasks ran: the time of a task counts by its slot's share of the node."""
    tasks: int = 0
    """Number of tasks that have ended."""
    remaining: int = 0
    """Number of tasks of open sessions that have not ended."""
    amount: float | None = None
    """The cost in `currency`; None when the price of a kind of node that ran is not known."""
    currency: str | None = None
    """The currency of the price file; None when no price is known."""
    dedicated_price: float | None = None
    """The price of a dedicated node for an hour; None: not known."""
    spot_price: float | None = None
    """The price of a spot node for an hour; None: not known."""
    budget: Budget | None = None
    """The pool's budget; None: it has none."""
    spent: float | None = None
    """What of the budget is spent, in node-hours or in its currency, as the agents last reported it."""

    @property
    def node_seconds(self) -> float:
        return self.dedicated_seconds + self.spot_seconds

    @property
    def node_hours(self) -> float:
        return self.node_seconds / HOUR

    @property
    def idle_share(self) -> float | None:
        """The share of the node-seconds in which no task ran, 0 to 1; None before there are any."""
        if not self.node_seconds:
            return None
        return max(0.0, 1.0 - self.busy_seconds / self.node_seconds)

    @property
    def seconds_per_task(self) -> float | None:
        """Node-seconds for each ended task, idle ones included; None before a task has ended."""
        return self.node_seconds / self.tasks if self.tasks else None

    @property
    def per_task(self) -> float | None:
        """The cost of an ended task, idle time included; None when it is not known."""
        return None if self.amount is None or not self.tasks else self.amount / self.tasks

    @property
    def seconds_to_finish(self) -> float | None:
        """Estimated node-seconds of the tasks that remain, by those that have ended; None without any."""
        if not self.remaining:
            return 0.0
        return self.remaining * self.busy_seconds / self.tasks if self.tasks else None

    @property
    def to_finish(self) -> float | None:
        """Estimated cost of the tasks that remain, at this pool's mean price; None when it is not known."""
        seconds = self.seconds_to_finish
        if seconds is None or self.amount is None or not self.node_seconds:
            return None
        return seconds * self.amount / self.node_seconds

    @property
    def is_spent(self) -> bool:
        """Whether the pool's budget is spent."""
        return self.budget is not None and self.spent is not None and self.spent >= self.budget.limit

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.rows())

    def rows(self) -> Iterator[tuple[str, str]]:
        """Iterate over the facts in words: name and value."""
        yield "nodes", f"{self.node_hours:.4g} node-hours{self._kinds()}"
        if (idle := self.idle_share) is not None:
            yield "idle", f"{idle:.0%}"
        yield "cost", self.summary
        if self.seconds_per_task is not None:
            yield "a task", f"{self.seconds_per_task:.3g} node-seconds{self._money(self.per_task)}"
        if self.remaining and self.seconds_to_finish is not None:
            hours = self.seconds_to_finish / HOUR
            yield "to finish", f"about {hours:.4g} node-hours{self._money(self.to_finish)}"
        if self.budget is not None:
            yield "budget", self._budget()

    @property
    def summary(self) -> str:
        """The cost in words: the amount, else that it is not known."""
        return _NO_PRICE if self.amount is None else f"{self.amount:,.2f} {self.currency}"

    @property
    def short(self) -> str:
        """The cost for a column: the amount, else the node-hours."""
        return f"{self.node_hours:.3g} node-h" if self.amount is None else self.summary

    def _kinds(self) -> str:
        if not self.spot_seconds:
            return ""
        return f" ({self.dedicated_seconds / HOUR:.4g} dedicated, {self.spot_seconds / HOUR:.4g} spot)"

    def _money(self, amount: float | None) -> str:
        return "" if amount is None else f", {amount:.4g} {self.currency}"

    def _budget(self) -> str:
        assert self.budget is not None
        if self.spent is None:
            return str(self.budget)
        state = ": it is spent" if self.is_spent else ""
        return f"{budget_text(self.spent, self.budget.currency)} of {self.budget}{state}"

    def _repr_html_(self) -> str:
        from batchflow.display.html import card, fact_table

        return card("Cost", self.short, fact_table(list(self.rows())))

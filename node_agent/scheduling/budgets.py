"""What the agent spends of budgets, and when it tells and asks what all agents have spent. Pure: no clock.

Rules:

- A pool's budget takes all time of the agent. A session's takes the time of the slots that run its tasks:
  each slot's second as its share of the node.
- What was spent is reported to the budget's ledger, whose answer tells the sum of all agents. The first
  report comes at once. Before the next one the agent may spend its share of an eighth of what is left. That
  is long while the end is far. Reports are at least `interval` apart.
- An agent learns what another has spent within two intervals: the other reports after one, and it looks after
  one. So a budget is overspent by what all agents spend in two, and by what runs when it is spent.
- What is known to be spent never becomes less. A report that failed is made again.
- An agent of a pool with a budget takes no task before it knows what is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from batchflow.model import Status
from batchflow.protocol.budgets import BudgetTerms, spent_text
from batchflow.protocol.wire import TaskItem
from node_agent.scheduling.events import ReportSpending, Verdict
from node_agent.scheduling.state import BEGUN, SlotState, Task

_MOST_KEPT: Final = 8192
"""Budgets of sessions that are remembered."""
_PARTS: Final = 8
"""An agent spends its share of this part of what is left without looking. What it saw is older than what the
others have not reported yet. With 6 parts or more, all of them together stay below what is left."""


@dataclass(slots=True)
class BudgetMeter:
    """One budget, as one agent sees it."""

    terms: BudgetTerms
    rate: float
    """What a second of this agent's node takes."""
    unreported: float = 0.0
    """What this agent has spent and not reported; below 0 because a report is of whole grains."""
    known: float | None = None
    """What all agents have reported; None before it was asked."""
    due_at: float = float("-inf")
    """When the next report is due."""
    reporting: float | None = None
    """What the report under way says; None without one."""

    @property
    def is_spent(self) -> bool:
        return (self.known or 0.0) + self.unreported + (self.reporting or 0.0) >= self.terms.limit

    def report(self) -> int:
        """Begin a report; return its grains."""
        grains = max(1, round(self.unreported / self.terms.grain))
        self.reporting = grains * self.terms.grain
        self.unreported -= self.reporting
        return grains

    def reported(self, size: int, now: float, interval: float, agents: int) -> None:
        """Take the size of the ledger after the report."""
        self.reporting = None
        self.known = max(self.known or 0.0, self.terms.spent(size))
        share = max(0.0, self.terms.limit - self.known) / (_PARTS * agents)
        self.due_at = now + max(interval, share / self.rate if self.rate else interval)

    def failed(self, now: float, interval: float) -> None:
        """Take it that the report did not arrive."""
        self.unreported += self.reporting or 0.0
        self.reporting = None
        self.due_at = now + interval


@dataclass(slots=True)
class Budgets:
    """The budgets that an agent knows."""

    pool_terms: BudgetTerms | None = None
    dedicated: bool = True
    """Whether the agent's node is a dedicated one."""
    agents: int = 1
    """Number of agents that may spend at the same time."""
    interval: float = 5.0
    """Seconds between two reports, at least."""
    pool: BudgetMeter | None = field(init=False, default=None)
    sessions: dict[str, BudgetMeter] = field(init=False, default_factory=dict)
    """By their ledgers."""
    _at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.pool_terms is not None:
            self.pool = self._meter(self.pool_terms)

    def _meter(self, terms: BudgetTerms) -> BudgetMeter:
        return BudgetMeter(terms, terms.rate(dedicated=self.dedicated))

    @property
    def pool_is_spent(self) -> bool:
        return self.pool is not None and self.pool.is_spent

    @property
    def is_waiting(self) -> bool:
        """Whether it is not known yet what is spent of the pool's budget."""
        return self.pool is not None and self.pool.known is None

    def admit(self, item: TaskItem) -> Verdict | None:
        """Know the budget of a task that has arrived; return its outcome if it may not begin."""
        if item.budget is not None:
            try:
                terms = BudgetTerms.read(item.budget)
            except ValueError as error:
                return Verdict(Status.FAILED, "TaskRejected", f"its budget cannot be used: {error}")
            if terms.ledger in self.sessions:
                return self.refusal(item)
            if len(self.sessions) >= _MOST_KEPT:
                del self.sessions[next(iter(self.sessions))]
            self.sessions[terms.ledger] = self._meter(terms)
        return self.refusal(item)

    def refusal(self, item: TaskItem) -> Verdict | None:
        """Return the outcome of a task whose budget is spent; None: it may begin."""
        if self.pool is not None and self.pool.is_spent:
            return _exceeded(self.pool.terms, "the pool's")
        meter = self._of(item)
        return _exceeded(meter.terms, "the session's") if meter is not None and meter.is_spent else None

    def _of(self, item: TaskItem) -> BudgetMeter | None:
        return None if item.budget is None else self.sessions.get(item.budget["ledger"])

    def advance(self, now: float, slots: list[SlotState], width: Callable[[Task], int]) -> bool:
        """Count the time until `now`; return whether a budget was spent in it.

        `width`: how many slots a task occupies.
        """
        before, self._at = self._at, now
        if before is None or now <= before or not (self.pool or self.sessions):
            return False
        ended = False
        if self.pool is not None:
            ended |= _spend(self.pool, (now - before) * self.pool.rate)
        if self.sessions:
            for slot in slots:
                if slot.tasks and slot.phase in BEGUN and (meter := self._of(slot.tasks[0].item)) is not None:
                    part = width(slot.tasks[0]) / len(slots)
                    ended |= _spend(meter, (now - before) * meter.rate * part)
        return ended

    def due(self, now: float, slots: list[SlotState]) -> list[ReportSpending]:
        """Return the reports that are due; each is answered by `SpendingRead` or `SpendingUnread`."""
        if self.pool is None and not self.sessions:
            return []
        return [
            ReportSpending(meter.terms.ledger, meter.report())
            for meter in self._active(slots)
            if meter.reporting is None and (meter.due_at <= now or _ends(meter))
        ]

    def _active(self, slots: list[SlotState]) -> Iterator[BudgetMeter]:
        """Iterate over the budgets that are being spent, and those that have something to report."""
        if self.pool is not None:
            yield self.pool
        running = {
            slot.tasks[0].item.budget["ledger"] for slot in slots if slot.tasks and slot.tasks[0].item.budget
        }
        for ledger, meter in self.sessions.items():
            if ledger in running or meter.unreported >= meter.terms.grain:
                yield meter

    def read(self, ledger: str, size: int, now: float) -> bool:
        """Take what a report was answered; return whether the budget is spent."""
        if (meter := self._by_ledger(ledger)) is None:
            return False
        meter.reported(size, now, self.interval, self.agents)
        return meter.is_spent

    def unread(self, ledger: str, now: float) -> None:
        """Take it that a report failed."""
        if (meter := self._by_ledger(ledger)) is not None:
            meter.failed(now, self.interval)

    def _by_ledger(self, ledger: str) -> BudgetMeter | None:
        if self.pool is not None and self.pool.terms.ledger == ledger:
            return self.pool
        return self.sessions.get(ledger)

    def next_deadline(self, slots: list[SlotState]) -> float | None:
        """Return when a report is due, or this agent alone will have spent what is left."""
        if self.pool is None and not self.sessions:
            return None
        moments = [meter.due_at for meter in self._active(slots) if meter.reporting is None]
        return min(moments, default=None)


def _spend(meter: BudgetMeter, amount: float) -> bool:
    """Spend so much; return whether that spent the budget."""
    was_spent = meter.is_spent
    meter.unreported += amount
    return meter.is_spent and not was_spent


def _ends(meter: BudgetMeter) -> bool:
    """Return whether the others are to be told at once that the budget is spent."""
    return meter.is_spent and meter.known is not None and meter.known < meter.terms.limit


def _exceeded(terms: BudgetTerms, whose: str) -> Verdict:
    return Verdict(Status.FAILED, "BudgetExceeded", spent_text(terms.budget, whose))

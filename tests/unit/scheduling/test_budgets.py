"""Budgets: what an agent counts, when it reports, and that nothing begins once one is spent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.model import Budget, Status
from batchflow.protocol.budgets import GRAINS, POOL_LEDGER, BudgetTerms, session_ledger
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from node_agent.scheduling import events as to
from node_agent.scheduling.budgets import BudgetMeter, Budgets
from node_agent.scheduling.scheduler import UNPAID_IDLE, Scheduler
from tests.support.agent_world import task

POOL = BudgetTerms(POOL_LEDGER, 100.0, 1.0, 0.25)
"""100 units; a second of a dedicated node takes one."""
SESSION = BudgetTerms(session_ledger("job", "client", "aaaa"), 10.0, 1.0, 1.0)


def scheduler(pool: BudgetTerms | None = None, *, slots: int = 1, known: int = 1) -> Scheduler:
    made = Scheduler(slots, "host", None, 0.0, {}, Budgets(pool, agents=1, interval=5.0))
    if pool is None:
        assert made.handle(to.Tick(), 0.0) == [to.Pull()]
    else:
        assert made.handle(to.Tick(), 0.0) == [to.ReportSpending(POOL_LEDGER, 1)]
        made.handle(to.SpendingRead(POOL_LEDGER, known), 0.0)
    return made


def paid(number: int, terms: BudgetTerms = SESSION) -> TaskItem:
    return replace(task(number), budget=terms.fields())


def begin(agent: Scheduler, now: float, *items: TaskItem, slot: int = 0) -> None:
    agent.handle(to.Arrived(slot + 1, items, False, 0.0), now)
    agent.handle(to.Prepared(slot), now)


def exceeded(commands: list[to.Command]) -> list[int]:
    return [
        each.task
        for each in commands
        if isinstance(each, to.SendResult) and each.verdict and each.verdict.kind == "BudgetExceeded"
    ]


def test_takes_no_task_before_it_knows_what_is_spent() -> None:
    agent = Scheduler(1, "host", None, 0.0, {}, Budgets(POOL))
    assert agent.handle(to.Tick(), 0.0) == [to.ReportSpending(POOL_LEDGER, 1)]
    assert agent.handle(to.SpendingUnread(POOL_LEDGER), 1.0) == []
    assert agent.handle(to.Tick(), 6.0) == [to.ReportSpending(POOL_LEDGER, 6000)]
    assert agent.handle(to.SpendingRead(POOL_LEDGER, 6000), 6.1) == [to.Pull()]


def test_refuses_what_waits_and_lets_what_runs_end_when_the_pools_budget_is_spent() -> None:
    agent = scheduler(POOL)
    begin(agent, 1.0, task(0), task(1))
    spent = agent.handle(to.SpendingRead(POOL_LEDGER, GRAINS), 2.0)
    assert exceeded(spent) == [1]
    assert not any(isinstance(each, to.Stop) for each in spent)
    failed = Failure("TaskFailed", None)
    ended = agent.handle(to.Ended(0, failed, "no", 0.0, 1.0, 0.5), 3.0)
    assert to.SendResult(0) in ended


def test_refuses_what_is_being_prepared() -> None:
    agent = scheduler(POOL)
    agent.handle(to.Arrived(1, [task(0)], False, 0.0), 1.0)
    assert to.Stop(0) in agent.handle(to.SpendingRead(POOL_LEDGER, GRAINS), 2.0)
    assert exceeded(agent.handle(to.Freed(0), 2.1)) == [0]


def test_answers_what_is_queued_and_leaves() -> None:
    agent = scheduler(POOL, known=GRAINS)
    assert exceeded(agent.handle(to.Arrived(1, [task(0)], False, 0.0), 0.5)) == [0]
    agent.handle(to.ResultsAccepted([0]), 0.6)
    agent.handle(to.Completed(1), 0.7)
    assert to.LastLook() in agent.handle(to.Tick(), 0.7 + UNPAID_IDLE)
    assert to.Exit("idle") in agent.handle(to.NothingLeft(), 2.0)


def test_a_sessions_budget_takes_the_share_of_its_slot() -> None:
    agent = scheduler(slots=2)
    begin(agent, 0.0, paid(0))
    begin(agent, 0.0, task(1), slot=1)
    agent.handle(to.Tick(), 8.0)
    assert agent.budgets.sessions[SESSION.ledger].terms == SESSION
    meter = agent.budgets.sessions[SESSION.ledger]
    assert meter.unreported + (meter.reporting or 0.0) == pytest.approx(4.0)


def test_a_sessions_budget_refuses_the_tasks_of_that_session_alone() -> None:
    agent = scheduler()
    begin(agent, 0.0, paid(0))
    spent = agent.handle(to.SpendingRead(SESSION.ledger, GRAINS), 1.0)
    assert exceeded(spent) == []
    later = agent.handle(to.Arrived(2, [paid(1), task(2)], False, 0.0), 1.0)
    assert exceeded(later) == [1]
    assert agent.held == 3


def test_an_agent_alone_spends_no_more_than_there_is() -> None:
    agent = scheduler()
    begin(agent, 0.0, paid(0), paid(1))
    assert exceeded(agent.handle(to.Tick(), 10.0)) == [1]


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {**SESSION.fields(), "ledger": POOL_LEDGER},
        {**SESSION.fields(), "ledger": "budgets/sessions/../../agents/x"},
        {**SESSION.fields(), "ledger": ["x"]},
        {**SESSION.fields(), "limit": 0},
        {**SESSION.fields(), "limit": "10"},
        {**SESSION.fields(), "dedicated": -1},
        {**SESSION.fields(), "currency": 3},
    ],
)
def test_rejects_a_task_whose_budget_is_none(budget: dict[str, object]) -> None:
    answer = scheduler().handle(to.Arrived(1, [replace(task(0), budget=budget)], False, 0.0), 0.0)
    verdicts = [each.verdict for each in answer if isinstance(each, to.SendResult) and each.verdict]
    assert [(each.status, each.kind) for each in verdicts] == [(Status.FAILED, "TaskRejected")]


@given(
    agents=st.integers(1, 8),
    limit=st.floats(1.0, 10_000.0),
    interval=st.floats(0.5, 10.0),
    step=st.floats(0.05, 0.5),
)
def test_agents_together_overspend_by_two_intervals_at_most(
    agents: int, limit: float, interval: float, step: float
) -> None:
    """Each spends all the time and looks when it is due, in turn; the ledger is exact.

    The clock moves in steps, of which rounding may cost some.
    """
    terms = BudgetTerms(POOL_LEDGER, limit, 1.0, 1.0)
    meters = [BudgetMeter(terms, 1.0) for _ in range(agents)]
    step = max(step, limit / agents / 5_000)
    size, now, spent = 0, 0.0, 0.0
    while not all(meter.is_spent for meter in meters):
        for meter in meters:
            if not meter.is_spent:
                meter.unreported += step
                spent += step
            if meter.due_at <= now and not (meter.known or 0.0) >= limit:
                size += meter.report()
                meter.reported(size, now, interval, agents)
        now += step
    assert spent <= limit + agents * (2 * interval + 6 * step + 2 * terms.grain)


def test_terms_travel_and_say_the_budget() -> None:
    for budget in (Budget(node_hours=2), Budget(amount=3.5, currency="EUR")):
        terms = BudgetTerms.of(budget, SESSION.ledger, 0.36, None)
        assert BudgetTerms.read(terms.fields()) == terms
        assert terms.budget == budget
    assert terms.dedicated == terms.spot == pytest.approx(0.0001)

"""The scaling policy: what it asks for, and what holds whatever it sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.pools.scaling.arrivals import arrival_rate
from batchflow.pools.scaling.policy import decide
from batchflow.pools.scaling.values import Decision, Estimate, Observation, ScalingMemory, learn
from batchflow.protocol.documents import ScalingLimits

NOW = 1_000_000.0
FRESH = ScalingMemory()


def seen(waiting: int = 0, **known: Any) -> Observation:
    """A pool of at most a thousand nodes that boot in 100 s, with tasks of 10 s."""
    facts: dict[str, Any] = {
        "now": NOW,
        "limits": ScalingLimits(max_nodes=1000),
        "task_seconds": Estimate(10.0, 1.0, 50),
        "boot_seconds": Estimate(100.0, 5.0, 10),
        "idle_exit": 100.0,
    }
    return Observation(waiting=waiting, **(facts | known))


def wanted(waiting: int = 0, memory: ScalingMemory = FRESH, **known: Any) -> int:
    return decide(seen(waiting, **known), memory).agents


def test_empty_pool_stays_empty() -> None:
    """Without tasks it wants its minimum."""
    assert wanted(0) == 0
    assert wanted(0, limits=ScalingLimits(2, 9)) == 2


def test_single_task_gets_a_node() -> None:
    """However short it is."""
    assert wanted(1, task_seconds=Estimate(0.001)) == 1


def test_long_tasks_get_a_slot_each() -> None:
    """An hour each: waiting costs more than a boot."""
    assert wanted(40, task_seconds=Estimate(3600.0)) == 40
    assert wanted(40, task_seconds=Estimate(3600.0), slots=4) == 10


def test_short_tasks_share_nodes_that_work_longer_than_they_boot() -> None:
    """Ten thousand seconds of work on nodes that boot in a hundred: some fifty nodes, not a thousand."""
    assert 30 < wanted(1000) < 100


def test_task_that_gets_a_slot_sooner_than_a_node_boots_gets_no_node() -> None:
    """Ten nodes end their tasks of ten seconds before another would be there."""
    assert wanted(20, running=10, ready=10) == 10


def test_nodes_on_their_way_are_counted() -> None:
    """The same tasks are not answered twice."""
    first = wanted(1000)
    memory = ScalingMemory(agents=first, raised_at=NOW - 60)
    assert wanted(1000, memory, booting=(60.0,) * first) == first


def test_unknown_duration_is_answered_carefully() -> None:
    """By the square root of the tasks, and more when tasks have run for long without an end."""
    assert wanted(1000, task_seconds=None) == 32
    later: Any = {"task_seconds": None, "running": 32, "ready": 32}
    assert wanted(968, running_seconds=5.0, **later) < 100
    assert wanted(968, running_seconds=600.0, **later) == 1000


def test_booting_nodes_are_given_up_when_their_work_is_gone() -> None:
    """Not at once: half a boot time later."""
    gone = seen(0, booting=(20.0,) * 10, ready=1)
    first = decide(gone, ScalingMemory(agents=11, raised_at=NOW - 20))
    assert first.agents == 11
    later = replace(gone, now=NOW + 50.0)
    assert decide(later, first.memory).agents == 1


def test_idle_agents_leave_by_themselves() -> None:
    """The policy takes no node whose agent is there."""
    assert wanted(0, ScalingMemory(agents=5), ready=5, idle=(50.0,) * 5) == 5
    assert wanted(0, ScalingMemory(agents=5), ready=2, idle=(50.0,) * 2) == 2


def test_agents_that_the_pool_could_do_without_for_long_are_told_to_drain() -> None:
    """Two tasks that go from agent to agent keep ten of them busy now and then."""
    light = seen(0, ready=10, running=2)
    first = decide(light, ScalingMemory(agents=10))
    assert (first.agents, first.drain) == (10, 0)
    peak = decide(replace(light, now=NOW + 60, running=4), first.memory)
    later = decide(replace(light, now=NOW + 100), peak.memory)
    assert (later.agents, later.drain) == (10, 6)


def test_agents_above_a_lowered_limit_are_told_to_drain() -> None:
    """The user resized the pool."""
    decision = decide(seen(50, ready=10, running=10, limits=ScalingLimits(max_nodes=4)), FRESH)
    assert (decision.agents, decision.drain) == (4, 6)


def test_tasks_that_keep_coming_are_reckoned_with() -> None:
    """One of ten seconds every second, on five nodes that are busy: ten are needed, whatever waits now."""
    memory, now = FRESH, NOW
    for look in range(40):
        now += 10.0
        busy = seen(5 * look, now=now, ready=5, running=5)
        memory = decide(busy, replace(memory, agents=5)).memory
    assert arrival_rate(memory) == pytest.approx(1.0, rel=0.1)
    assert decide(seen(50, now=now, ready=5, running=5), replace(memory, agents=5)).agents >= 10


def test_burst_is_no_rate() -> None:
    """A thousand tasks at once are over when they are seen."""
    memory, now = decide(seen(0), FRESH).memory, NOW
    for _ in range(10):
        now += 10.0
        memory = decide(seen(1000, now=now), memory).memory
        assert arrival_rate(memory) == 0.0


def test_reason_has_its_numbers() -> None:
    """And says so when limits decide."""
    assert "1000 tasks of about 10 s" in decide(seen(1000), FRESH).why
    assert "limits make them 3" in decide(seen(1000, limits=ScalingLimits(max_nodes=3)), FRESH).why


# -- spot -------------------------------------------------------------------------------------------------

MIXED = ScalingLimits(max_nodes=50, max_spot=50)


def mixed(waiting: int = 40, memory: ScalingMemory = FRESH, **known: Any) -> Decision:
    return decide(seen(waiting, limits=MIXED, task_seconds=Estimate(3600.0), **known), memory)


def test_most_nodes_are_spot_and_a_fifth_is_dedicated() -> None:
    """The share of dedicated nodes is where work goes on when all spot nodes are taken."""
    decision = mixed()
    assert (decision.dedicated, decision.spot) == (8, 32)


def test_dedicated_nodes_are_bought_while_spot_nodes_are_taken() -> None:
    """Until the losses are forgotten."""
    memory = mixed(spot=32).memory
    lost = mixed(spot=16, spot_lost=16, memory=memory, now=NOW + 300)
    assert lost.memory.spot_paused
    assert lost.spot == 16
    calm = lost.memory
    for hour in range(1, 8):
        calm = mixed(memory=calm, spot=16, now=NOW + 300 + 3600 * hour).memory
    assert not calm.spot_paused


def test_cheap_spot_nodes_may_be_lost_more_often() -> None:
    """What is lost is weighed against the price."""
    memory = mixed(spot=32, dedicated_price=1.0, spot_price=0.1).memory
    known: Any = {"spot": 24, "spot_lost": 8, "memory": memory, "now": NOW + 1800}
    assert not mixed(dedicated_price=1.0, spot_price=0.1, **known).memory.spot_paused
    assert mixed(dedicated_price=1.0, spot_price=0.9, **known).memory.spot_paused


def test_spot_nodes_that_batch_refuses_are_bought_dedicated() -> None:
    """As far as the limit of dedicated nodes goes."""
    assert mixed(spot=3, spot_refused=True).spot == 3


# -- what always holds ------------------------------------------------------------------------------------

counts = st.integers(0, 3000)
ages = st.floats(0.0, 2000.0)
limits = st.builds(
    lambda low, more, spot, spot_more, share: ScalingLimits(low, low + more, spot, spot + spot_more, share),
    *[st.integers(0, 5), st.integers(0, 500)] * 2,
    st.floats(0.0, 1.0),
)
estimates = st.none() | st.builds(Estimate, st.floats(0.0, 1e5), st.floats(0.0, 100.0), st.integers(1, 50))
memories = st.builds(
    ScalingMemory,
    agents=st.integers(0, 600),
    raised_at=st.floats(NOW - 1000, NOW),
    low_since=st.none() | st.floats(NOW - 1000, NOW),
    tasks=counts,
    running=counts,
    half_since=st.floats(NOW - 1000, NOW),
    arrived=st.floats(0.0, 1000.0),
    rates=st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)),
    seen_at=st.floats(NOW - 1000, NOW),
    spot_hours=st.floats(0.0, 1000.0),
    spot_losses=st.floats(0.0, 100.0),
    spot_paused=st.booleans(),
)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    slots, ready = draw(st.integers(1, 16)), draw(st.integers(0, 300))
    return Observation(
        now=NOW,
        limits=draw(limits),
        waiting=draw(counts),
        running=draw(st.integers(0, ready * slots)),
        ready=ready,
        booting=tuple(draw(st.lists(ages, max_size=5))),
        slots=slots,
        task_seconds=draw(estimates),
        running_seconds=draw(ages),
        boot_seconds=draw(st.none() | st.builds(Estimate, st.floats(1.0, 600.0))),
        idle_exit=draw(st.floats(1.0, 3600.0)),
        spot=draw(st.integers(0, 300)),
        spot_lost=draw(st.integers(0, 5)),
        spot_refused=draw(st.booleans()),
        dedicated_price=draw(st.none() | st.floats(0.0, 5.0)),
        spot_price=draw(st.none() | st.floats(0.0, 5.0)),
    )


@given(observations(), memories)
def test_answer_is_within_the_limits(observation: Observation, memory: ScalingMemory) -> None:
    """In all, and each kind by itself; and it is the same each time."""
    decision = decide(observation, memory)
    allowed = observation.limits
    assert allowed.least <= decision.agents <= allowed.most
    assert allowed.min_nodes <= decision.dedicated <= allowed.max_nodes
    assert allowed.min_spot <= decision.spot <= allowed.max_spot
    assert decision.dedicated + decision.spot == decision.agents
    assert decision == decide(observation, memory)


@given(observations(), memories, counts)
def test_more_waiting_tasks_never_mean_fewer_agents(
    observation: Observation, memory: ScalingMemory, more: int
) -> None:
    """With everything else as it was."""
    asked = decide(observation, memory).agents
    assert decide(replace(observation, waiting=observation.waiting + more), memory).agents >= asked


@given(observations(), memories)
def test_never_more_new_nodes_than_tasks_that_are_there(
    observation: Observation, memory: ScalingMemory
) -> None:
    """Bounded cost of being wrong: each new node has a task at least."""
    there = observation.ready + len(observation.booting)
    tasks = observation.waiting + observation.running
    decision = decide(observation, replace(memory, agents=min(memory.agents, there)))
    assert decision.agents <= max(there, tasks, observation.limits.least)


@given(observations(), memories, st.lists(st.floats(0.1, 60.0), max_size=30))
def test_constant_load_does_not_swing(
    observation: Observation, memory: ScalingMemory, passed: list[float]
) -> None:
    """What is seen again and again is answered by a rise and a fall at most."""
    observation = replace(observation, spot_lost=0)
    answers = []
    for seconds in passed:
        observation = replace(observation, now=observation.now + seconds)
        decision = decide(observation, memory)
        memory = decision.memory
        answers.append(decision.agents)
    turns = [after - before for before, after in pairwise(answers) if after != before]
    assert len(turns) <= 2


@given(st.lists(st.tuples(st.floats(0.1, 30.0), counts), min_size=2, max_size=60))
def test_number_rises_a_few_times_in_a_boot_time(steps: list[tuple[float, int]]) -> None:
    """Four times, and once for each doubling, whatever the load does."""
    now, memory, rises = NOW, FRESH, []
    for seconds, waiting in steps:
        now += seconds
        decision = decide(seen(waiting, now=now, booting=(1.0,) * memory.agents), memory)
        if decision.agents > memory.agents:
            rises.append(now)
        memory = decision.memory
    for start in rises:
        assert len([rise for rise in rises if start <= rise < start + 100.0]) <= 4 + 10


@pytest.mark.parametrize("values", [[100.0], [100.0, 100.0, 100.0], [60.0, 300.0, 60.0, 300.0]])
def test_estimate_stays_within_what_was_seen(values: list[float]) -> None:
    """And knows the spread."""
    estimate = None
    for value in values:
        estimate = learn(estimate, value)
    assert estimate is not None
    assert min(values) <= estimate.mean <= max(values)
    assert (estimate.deviation > 0) == (len(set(values)) > 1)

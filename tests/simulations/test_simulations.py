"""What the simulations show of packing and of scale; and that the fast one agrees with the exact one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchflow.protocol.durations import Durations
from batchflow.protocol.packing import GUESS, PackingPolicy
from tests.simulations.costs import FAR, LOCAL, NEAR, PREMIUM, STANDARD, Costs
from tests.simulations.exact import Job, Report, World
from tests.simulations.fleet import Fleet, FleetWorld
from tests.simulations.limits import uses

BOTH = pytest.mark.parametrize("costs", [NEAR, FAR], ids=["0.1 ms", "20 ms"])


def burst(count: int, duration: float, nodes: int = 2, **options: object) -> Report:
    return World([Job(0.0, "x", duration)] * count, nodes=nodes, **options).run()  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("duration", [0.001, 0.005, 0.05])
def test_packs_keep_the_slots_busy(costs: Costs, duration: float) -> None:
    """Short and longer tasks, near the broker and far from it, fill the slots after the first round trips."""
    report = burst(int(8 / duration), duration, costs=costs)
    assert report.busy > 0.88
    assert report.handed_back == 0 or duration > GUESS
    assert report.handed_back < 0.5 * report.tasks


@BOTH
def test_chosen_work_of_a_pack_is_the_best_of_three(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it costs more messages for little time; twice as much brings little.

    Where the backlog, which allows more, is left out of account.
    """
    chosen = PackingPolicy(round_trip=costs.round_trip).work
    monkeypatch.setattr("batchflow.protocol.packing._OF_BACKLOG", 0.0)

    def with_work(work: float) -> Report:
        monkeypatch.setattr("batchflow.protocol.packing._WORK", (work, work))
        return burst(3000, 0.001, costs=costs)

    half, right, double = with_work(chosen / 2), with_work(chosen), with_work(chosen * 2)
    assert right.credits_per_task < half.credits_per_task
    assert right.rate >= half.rate * 0.97
    assert double.rate < right.rate * 1.03


@BOTH
@pytest.mark.parametrize("duration", [0.001, 0.005])
def test_backlog_travels_in_fewer_messages(
    costs: Costs, duration: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packs are larger, and the last of them leave no slot idle for long."""
    with_backlog = burst(int(6 / duration), duration, costs=costs)
    monkeypatch.setattr("batchflow.protocol.packing._OF_BACKLOG", 0.0)
    without = burst(int(6 / duration), duration, costs=costs)
    assert with_backlog.credits_per_task < 0.75 * without.credits_per_task
    assert with_backlog.rate > 0.97 * without.rate
    assert with_backlog.unfair == 0.0


@BOTH
def test_small_backlog_is_spread_over_the_slots(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a few hundred milliseconds for each slot no pack takes more than it otherwise would."""

    def known() -> Report:
        return burst(
            400, 0.001, costs=costs, policy=PackingPolicy(2, Durations({"x": 0.001}), costs.round_trip)
        )

    with_backlog = known()
    monkeypatch.setattr("batchflow.protocol.packing._OF_BACKLOG", 0.0)
    without = known()
    assert with_backlog.messages == without.messages
    assert with_backlog.rate == pytest.approx(without.rate, rel=0.03)


@BOTH
@pytest.mark.parametrize("duration", [0.05, 0.2, 2.0])
def test_long_tasks_of_an_unknown_command_run_on_every_node_at_once(costs: Costs, duration: float) -> None:
    """Some share messages, because their length is unknown; agents hand back those that would wait."""
    report = burst(80, duration, nodes=8, costs=costs)
    assert report.elapsed < 10 * duration + 0.6
    assert report.busy > 0.5


@BOTH
def test_short_tasks_of_an_unknown_command_share_messages(costs: Costs) -> None:
    """Many are submitted before the first of them has ended."""
    report = burst(2000, 0.0002, costs=costs)
    assert report.messages < 2000 / 8
    assert report.handed_back == 0


@BOTH
def test_lone_task_takes_its_round_trips_and_no_more(costs: Costs) -> None:
    """The way leads to the broker, to the agent, back to the broker and to the client."""
    report = World([Job(number, "x", 0.001) for number in range(20)], nodes=2, costs=costs).run()
    assert report.p99 < 0.001 + 2.5 * costs.round_trip + 0.005


@BOTH
def test_steady_stream_is_answered_at_once(costs: Costs) -> None:
    """At a quarter of the slots' capacity a task takes little more than its trips and its own time."""
    jobs = [Job(number / 400, "x", 0.005) for number in range(1200)]
    report = World(jobs, nodes=8, costs=costs).run()
    assert report.p99 < 0.03 + 4 * costs.round_trip


def test_no_ops_share_messages() -> None:
    """A no-op costs a tenth of a credit instead of four, near the broker and far from it."""
    assert burst(10_000, 0.0001, costs=NEAR).credits_per_task < 0.1
    assert burst(10_000, 0.0001, costs=FAR).credits_per_task < 0.1


@BOTH
def test_long_tasks_of_an_unknown_command_reach_every_slot(costs: Costs) -> None:
    """They run on all nodes after a few round trips."""
    report = burst(32, 1.0, nodes=32, costs=costs)
    assert report.messages == 32
    assert report.elapsed < 1.0 + 10 * costs.round_trip + 0.2
    assert report.unfair == 0.0


def test_no_agent_holds_what_another_could_run() -> None:
    """Mixed durations, several commands, 16 nodes: what is held unbegun beside an idle slot is brief."""
    durations = {"tiny": 0.0002, "short": 0.004, "medium": 0.02, "long": 0.4}
    names = list(durations)
    jobs = [Job(0.0, names[number % 4], durations[names[number % 4]]) for number in range(600)]
    report = World(jobs, nodes=16, costs=Costs(round_trip=0.002)).run()
    assert report.tasks == 600
    assert report.unfair < 0.05 * report.elapsed


@pytest.mark.parametrize("duration", [0.0001, 0.001, 0.005, 0.2])
@pytest.mark.parametrize("trip", [0.0001, 0.02])
def test_fast_simulation_agrees_with_the_exact_one(duration: float, trip: float) -> None:
    """Rate and credits are compared where both can go."""
    count = min(10_000, int(6 / duration))
    costs = Costs(round_trip=trip)
    exact = burst(count, duration, nodes=4, costs=costs)
    fast = FleetWorld(Fleet(nodes=4, tasks=count, duration=duration, tier=LOCAL, costs=costs)).run()
    assert fast.rate == pytest.approx(exact.rate, rel=0.25)
    assert fast.credits_per_task == pytest.approx(exact.credits_per_task, rel=0.6, abs=0.1)


def test_credits_bound_the_rate_of_one_namespace() -> None:
    """A task costs four: 250 long tasks a second, and four times as many over four namespaces.

    But one session's results all come through one of them.
    """
    one = FleetWorld(Fleet(nodes=1000, tasks=5000, duration=1.0)).run()
    sharded = Fleet(nodes=1000, tasks=5000, duration=1.0, clients=4, namespaces=4, queues=4)
    four = FleetWorld(sharded).run()
    alone = FleetWorld(replace(sharded, clients=1)).run()
    assert one.credits_per_task == pytest.approx(4.0, rel=0.01)
    assert one.rate == pytest.approx(STANDARD.credits / 4, rel=0.3)
    assert four.rate > 2.5 * one.rate
    assert alone.rate < 0.8 * four.rate


def test_report_names_the_limit_that_is_reached() -> None:
    """Ten thousand agents do not fit into one namespace."""
    first, *_ = uses(FleetWorld(Fleet(nodes=10_000, tasks=20_000, duration=60.0)).run())
    assert first.name == "connections of a namespace"
    assert first.share > 1
    busy = FleetWorld(Fleet(nodes=50, tasks=20_000, duration=0.001)).run()
    assert uses(busy)[0].name == "credits/s of a namespace"
    large = FleetWorld(Fleet(nodes=50, tasks=20_000, duration=0.001, tier=PREMIUM)).run()
    assert large.rate > 2 * busy.rate

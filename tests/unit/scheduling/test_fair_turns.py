"""Which lanes an agent listens to, and what share of its slots each gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.scheduling.fair_turns import STEP, FairTurns
from node_agent.scheduling.queue_rotation import PATIENCE


def jain(shares: list[float]) -> float:
    """Return Jain's index: 1 where all are equal, 1/n where one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(each * each for each in shares))


def play(turns: FairTurns, durations: list[float], seconds: float, until: dict[int, float]) -> list[float]:
    """Let lanes that always have work share one slot; return the slot time of each.

    `durations`: of a message's tasks, by lane. `until`: when a lane runs dry. Of the lanes that are listened
    to the one gives first that had least.
    """
    now, used = 0.0, [0.0] * len(durations)
    turns.want(True, now)
    while now < seconds:
        ready = [lane for lane in turns.listening() if now < until.get(lane, seconds)]
        if not ready:
            deadline = turns.next_deadline()
            if deadline is None:
                return used
            now = max(now, deadline)
            turns.advance(now)
            continue
        lane = min(ready, key=lambda each: used[each])
        turns.arrived(lane, now)
        turns.charge(lane, 0.05)
        used[lane] += durations[lane]
        now += durations[lane]
        turns.charge(lane, durations[lane] - 0.05)
        turns.want(False, now)
        turns.want(True, now)
    return used


def test_lanes_share_the_time_whatever_their_tasks_take() -> None:
    """A lane with tasks of a second gets as much as one with tasks of a hundredth."""
    used = play(FairTurns(["normal"] * 4), [1.0, 0.01, 0.1, 0.3], 200.0, {})
    assert jain(used) > 0.99


def test_priorities_have_their_weights_and_none_starves() -> None:
    turns = FairTurns(["interactive", "normal", "bulk"])
    interactive, normal, bulk = play(turns, [0.05, 0.05, 0.05], 210.0, {})
    assert bulk > 5.0
    assert 3.0 < normal / bulk < 5.0
    assert 3.0 < interactive / normal < 6.0


def test_what_a_lane_does_not_use_the_others_get() -> None:
    """No slot waits for a lane that has run dry for longer than a step."""
    used = play(FairTurns(["normal"] * 3), [0.1, 0.1, 0.1], 60.0, {0: 6.0})
    assert sum(used) > 59.0
    assert jain(used[1:]) > 0.99


def test_a_lane_that_comes_back_has_saved_nothing_up() -> None:
    """It gets its turn at once, and then its share: not all that it has not used."""
    turns = FairTurns(["normal", "normal"])
    play(turns, [0.1, 0.1], 30.0, {0: 0.0})
    used = play(turns, [0.1, 0.1], 10.0, {})
    assert jain(used) > 0.98


def test_interactive_lanes_are_listened_to_when_nothing_else_is_wanted() -> None:
    turns = FairTurns(["interactive", "normal"])
    turns.want(False, 0.0, express=True)
    assert turns.listening() == {0}
    turns.want(False, 0.0)
    assert turns.listening() == frozenset()
    turns.want(True, 0.0)
    turns.arrived(1, 0.0)
    turns.arrived(0, 0.0)
    turns.charge(0, 1000.0)
    turns.want(False, 0.0, express=True)
    assert turns.listening() == frozenset(), "it has had more than its share"


def test_a_slow_broker_does_not_make_busy_lanes_look_dry() -> None:
    """Where a message takes 20 ms, the next lane is listened to after 40 ms only."""
    turns, now = FairTurns(["normal", "normal"]), 0.0
    turns.want(True, now)
    turns.arrived(0, now)
    turns.arrived(1, now)
    for _ in range(40):
        (lane,) = turns.listening()
        now += 0.9 * STEP
        turns.advance(now)
        turns.arrived(lane, now)
        turns.charge(lane, 0.1)
    now += 1.5 * STEP
    deadline = turns.next_deadline()
    assert deadline is not None
    assert deadline > now


@given(
    st.lists(st.sampled_from(["interactive", "normal", "bulk"]), min_size=1, max_size=5),
    st.lists(
        st.tuples(st.sampled_from(["want", "arrive", "wait", "charge"]), st.integers(0, 4)), max_size=60
    ),
)
def test_every_lane_is_listened_to_in_the_end(lanes: list[str], steps: list[tuple[str, int]]) -> None:
    """Whatever happened, each is listened to within its patience once messages are wanted."""
    turns, now = FairTurns(lanes), 0.0
    for what, number in steps:
        match what:
            case "want":
                turns.want(number % 2 == 0, now, express=number > 2)
            case "arrive":
                turns.arrived(number % len(lanes), now)
            case "charge":
                turns.charge(number % len(lanes), number - 1.0)
            case "wait":
                now += number / 50
                turns.advance(now)
        assert turns.listening() <= set(range(len(lanes)))
    turns.want(True, now)
    for _ in range(200):
        if (deadline := turns.next_deadline()) is None:
            break
        assert deadline <= now + PATIENCE
        now = max(now, deadline)
        turns.advance(now)
    assert turns.listening() == set(range(len(lanes)))

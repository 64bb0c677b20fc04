"""How many tasks share a message: by expected work, number and size, spread over the slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchflow.packing import MOST_BYTES, MOST_TASKS, WORK, PackingPolicy

DURATIONS = {"unknown": None, "tiny": 0.0001, "small": 0.001, "medium": 0.01, "half": 0.016, "long": 5.0}


def policy(slots: int = 1) -> PackingPolicy:
    return PackingPolicy(slots, {name: seconds for name, seconds in DURATIONS.items() if seconds is not None})


def fill(policy: PackingPolicy, tasks: list[tuple[str, int]]) -> list[str]:
    """The commands of the first message made of these tasks: their commands and sizes."""
    pack = policy.pack(len(tasks))
    taken = []
    for command, size in tasks:
        if not pack.admits(command, size):
            break
        taken.append(command)
    return taken


@given(
    st.lists(
        st.tuples(st.sampled_from(list(DURATIONS)), st.integers(1, MOST_BYTES)), min_size=1, max_size=250
    ),
    st.integers(0, 64),
)
def test_a_pack_never_holds_too_much(tasks: list[tuple[str, int]], slots: int) -> None:
    """At least one task, and beyond the first never more than the work, the number or the bytes allowed."""
    taken = fill(policy(slots), tasks)
    assert taken
    if len(taken) > 1:
        work = [DURATIONS[command] for command in taken]
        assert None not in work
        assert sum(seconds or 0.0 for seconds in work) <= WORK * (1 + 1e-6)
        assert len(taken) <= MOST_TASKS
        assert sum(size for _, size in tasks[: len(taken)]) <= MOST_BYTES


@given(st.integers(1, 300), st.integers(1, 64))
def test_what_waits_is_spread_over_the_slots(waiting: int, slots: int) -> None:
    """With as many messages as slots, no message holds more than its share."""
    assert len(fill(policy(slots), [("tiny", 1)] * waiting)) <= -(-waiting // slots)


def test_tiny_tasks_ride_together() -> None:
    """A hundred of them to a message, on a single slot."""
    assert len(fill(policy(), [("tiny", 10)] * 1000)) == MOST_TASKS


def test_an_unknown_command_rides_alone() -> None:
    """Whether it comes first or after a known one."""
    assert fill(policy(), [("unknown", 1), ("tiny", 1)]) == ["unknown"]
    assert fill(policy(), [("tiny", 1), ("unknown", 1)]) == ["tiny"]
    assert fill(policy(), [("unknown", 1), ("unknown", 1)]) == ["unknown"]


def test_a_long_task_rides_alone() -> None:
    """Nothing waits behind it, and it waits behind nothing."""
    assert fill(policy(), [("long", 1), ("tiny", 1)]) == ["long"]
    assert fill(policy(), [("tiny", 1), ("long", 1)]) == ["tiny"]


def test_mixed_commands_are_measured_by_what_they_add_up_to() -> None:
    """Two that each could ride with small ones do not ride together."""
    assert fill(policy(), [("half", 1), ("medium", 1), ("half", 1), ("tiny", 1)]) == ["half", "medium"]


def test_a_task_above_the_size_rides_alone() -> None:
    """The broker may still take it; the policy does not lose it."""
    assert fill(policy(), [("tiny", MOST_BYTES + 1), ("tiny", 1)]) == ["tiny"]


def test_what_was_seen_is_what_is_expected() -> None:
    """A running mean, which follows a command that has become slower."""
    learning = PackingPolicy()
    assert len(fill(learning, [("x", 1)] * 50)) == 1
    learning.seen("x", 0.001)
    assert len(fill(learning, [("x", 1)] * 50)) == 30
    for _ in range(50):
        learning.seen("x", 1.0)
    assert len(fill(learning, [("x", 1)] * 50)) == 1


def test_a_duration_of_nothing_or_less_is_something() -> None:
    """Clocks step back, and no task costs its agent nothing."""
    learning = PackingPolicy()
    learning.seen("x", -5.0)
    assert len(fill(learning, [("x", 1)] * 1000)) == MOST_TASKS


def test_room_is_the_same_decision_for_one_command() -> None:
    """`room` tells beforehand how many of one command a pack admits."""
    for command in DURATIONS:
        assert policy(3).room(command, 40) == len(fill(policy(3), [(command, 1)] * 40))

"""How many tasks share a message: by expected work, number, size, arrivals and the broker's round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.protocol.documents import Heartbeat, Running
from batchflow.protocol.durations import Durations
from batchflow.protocol.packing import (
    GUESS,
    LAST,
    MOST_BYTES,
    MOST_MESSAGES,
    MOST_SENT,
    MOST_TASKS,
    MOST_WORK,
    PACE,
    PROBES,
    PackingPolicy,
    open_slots,
)

DURATIONS = {"unknown": None, "tiny": 0.0001, "small": 0.001, "medium": 0.01, "half": 0.016, "long": 5.0}
NEAR, FAR = 0.0001, 0.02
"""Round trips."""
LONGEST_PACK = 0.05
"""Seconds: some tens of milliseconds, whatever the round trip, where there is no backlog."""


def policy(slots: int = 1, round_trip: float | None = None) -> PackingPolicy:
    durations = {name: seconds for name, seconds in DURATIONS.items() if seconds is not None}
    return PackingPolicy(slots, Durations(durations), round_trip)


def fill(
    policy: PackingPolicy, tasks: list[tuple[str, int]], under_way: int = 0, room: int = MOST_BYTES
) -> list[str]:
    """The commands of the first message made of these tasks: their commands and sizes."""
    pack = policy.pack(len(tasks), under_way, room)
    taken = []
    for command, size in tasks:
        if not pack.admits(command, size):
            break
        taken.append(command)
    return taken


tasks_of_all_kinds = st.lists(
    st.tuples(st.sampled_from(list(DURATIONS)), st.integers(1, MOST_BYTES)), min_size=1, max_size=250
)
round_trips = st.none() | st.floats(0.0, 10.0)


@given(
    tasks_of_all_kinds,
    st.integers(0, 64),
    round_trips,
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.lists(st.sampled_from([0.0001, 0.01, 20.0]), max_size=20),
)
def test_a_pack_never_holds_too_much(
    tasks: list[tuple[str, int]],
    slots: int,
    round_trip: float | None,
    under_way: int,
    arrived: int,
    seen: list[float],
) -> None:
    """At least one task, and beyond the first never more than the work, the number or the bytes allowed."""
    deciding = policy(slots, round_trip)
    for duration in seen:
        deciding.seen("other", duration)
    deciding.submitted(arrived, 1.0)
    taken = fill(deciding, tasks, under_way)
    assert taken
    if len(taken) > 1:
        work = [DURATIONS[command] for command in taken]
        assert None not in work
        assert sum(seconds or 0.0 for seconds in work) <= max(deciding.work, MOST_WORK) * (1 + 1e-6)
        assert round_trip is None or deciding.work <= LONGEST_PACK < MOST_WORK < 0.1
        assert len(taken) <= MOST_TASKS
        assert sum(size for _, size in tasks[: len(taken)]) <= MOST_BYTES


@given(tasks_of_all_kinds, st.integers(0, MOST_BYTES))
def test_a_pack_that_shares_its_send_keeps_to_what_is_left(tasks: list[tuple[str, int]], room: int) -> None:
    """Not even its first task may be larger, unless the send is its own."""
    taken = fill(policy(), tasks, room=room)
    assert sum(size for _, size in tasks[: len(taken)]) <= room


@given(st.integers(1, 300), st.integers(1, 64))
def test_what_waits_is_spread_over_the_slots(waiting: int, slots: int) -> None:
    """With as many messages as slots, no message holds more than its share."""
    assert len(fill(policy(slots), [("tiny", 1)] * waiting)) <= -(-waiting // slots)


@given(st.integers(1, 64), st.integers(1, 300), st.sampled_from([NEAR, FAR]))
def test_less_work_than_a_message_costs_is_not_spread(slots: int, waiting: int, round_trip: float) -> None:
    """Beyond its share a message holds little work, and it holds that little if there is so much."""
    deciding = policy(slots, round_trip)
    taken = len(fill(deciding, [("tiny", 1)] * waiting))
    share = -(-waiting // slots)
    worth = int(deciding.least / 0.0001 + 1e-6)
    assert taken == min(waiting, MOST_TASKS, max(share, worth))


def test_tiny_tasks_ride_together() -> None:
    """Hundreds of them to a message, on a single slot."""
    assert len(fill(policy(), [("tiny", 10)] * 1000)) == MOST_TASKS


def test_an_unknown_command_rides_alone() -> None:
    """Whether it comes first or after a known one, whatever else is under way."""
    for deciding in (policy(), policy(2, NEAR), policy(2, FAR)):
        for under_way in (0, 10_000):
            assert fill(deciding, [("unknown", 1), ("tiny", 1)], under_way) == ["unknown"]
            assert fill(deciding, [("tiny", 1), ("unknown", 1)], under_way) == ["tiny"]
            assert fill(deciding, [("unknown", 1), ("unknown", 1)], under_way) == ["unknown"]


@given(st.integers(1, 1500), st.integers(1, 16), st.sampled_from([NEAR, FAR]))
def test_the_end_of_a_burst_is_cut_finer(waiting: int, slots: int, round_trip: float) -> None:
    """Each pack takes half of what every slot has left, down to some work; before the end they are full."""
    deciding = policy(slots, round_trip)
    for _ in range(100):
        deciding.seen("small", 0.001)
    under_way = 1000 * slots
    pack = deciding.pack(waiting, under_way)
    assert sum(pack.admits("small", 1) for _ in range(waiting)) == min(waiting, 99)
    while waiting:
        pack = deciding.pack(waiting, under_way, is_last=True)
        taken = sum(pack.admits("small", 1) for _ in range(waiting))
        floor = int(max(LAST, deciding.least) / 0.001 + 1e-6)
        assert taken == min(waiting, 99, max(-(-waiting // (2 * slots)), floor))
        waiting -= taken


@given(st.integers(1, 300), st.integers(1, 64), round_trips, st.sampled_from(["tiny", "small", "unknown"]))
def test_the_end_of_a_burst_is_spread_over_idle_slots_as_ever(
    waiting: int, slots: int, round_trip: float | None, command: str
) -> None:
    """Where not every slot is busy, each gets its share of what waits, whether more is to come or not."""
    packs = [policy(slots, round_trip).pack(waiting, is_last=is_last) for is_last in (False, True)]
    taken = [sum(pack.admits(command, 1) for _ in range(waiting)) for pack in packs]
    assert taken[0] == taken[1]


@given(st.integers(0, 8), st.integers(1, 400), st.sampled_from([NEAR, FAR]))
def test_an_unknown_command_rides_in_company_once_enough_of_it_are_under_way(
    slots: int, number: int, round_trip: float
) -> None:
    """Two for each slot go alone; then few go together, of this command only, until its duration is seen."""
    deciding = policy(slots, round_trip)
    probes = PROBES * max(1, slots)
    for _ in range(probes):
        assert fill(deciding, [("unknown", 1)] * number) == ["unknown"]
    taken = fill(deciding, [("unknown", 1)] * number)
    assert 1 <= len(taken) <= MOST_WORK / GUESS
    assert len(taken) == min(int(MOST_WORK / GUESS), max(1, int(0.1 * number / max(1, slots) + 1e-6)))
    assert fill(deciding, [("unknown", 1), ("tiny", 1)]) == ["unknown"]
    assert fill(deciding, [("tiny", 1), ("unknown", 1)]) == ["tiny"]
    assert fill(deciding, [("unknown", 1), ("other", 1)]) == ["unknown"]
    assert fill(deciding, [("other", 1), ("other", 1)]) == ["other"]
    deciding.seen("unknown", 5.0)
    assert fill(deciding, [("unknown", 1)] * number) == ["unknown"]


def test_who_sends_nothing_takes_unknown_commands_one_by_one() -> None:
    """An agent, of a message that holds several."""
    deciding = policy()
    for _ in range(50):
        assert fill(deciding, [("unknown", 1)] * 50) == ["unknown"]


def test_a_long_task_rides_alone() -> None:
    """Nothing waits behind it, and it waits behind nothing."""
    assert fill(policy(), [("long", 1), ("tiny", 1)]) == ["long"]
    assert fill(policy(), [("tiny", 1), ("long", 1)]) == ["tiny"]


def test_mixed_commands_are_measured_by_what_they_add_up_to() -> None:
    """Two that each could ride with small ones do not ride together."""
    tasks = [("half", 1), ("medium", 1), ("half", 1), ("tiny", 1)]
    assert fill(policy(round_trip=NEAR), tasks) == ["half", "medium"]


def test_a_task_above_the_size_rides_alone() -> None:
    """The broker may still take it; the policy does not lose it. But it shares no send."""
    assert fill(policy(), [("tiny", MOST_BYTES + 1), ("tiny", 1)]) == ["tiny"]
    assert fill(policy(), [("tiny", MOST_BYTES + 1)], room=MOST_BYTES - 1000) == []


def test_two_tasks_of_100_kb_share_a_message() -> None:
    """The message is what they cost most, not their bytes; a third would be too large for the broker."""
    assert len(fill(policy(2, NEAR), [("tiny", 102_400 + 512)] * 20)) == 2


def test_what_was_seen_is_what_is_expected() -> None:
    """A running mean, which follows a command that has become slower."""
    learning = PackingPolicy(round_trip=NEAR)
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


def test_nothing_is_spread_while_every_slot_has_enough_to_do() -> None:
    """Two slots with a second of work each: another message for each would wait behind that."""
    busy = policy(2, NEAR)
    for _ in range(50):
        busy.seen("small", 0.001)
    assert len(fill(busy, [("small", 1)] * 20)) == 10
    assert len(fill(busy, [("small", 1)] * 20, under_way=2000)) == 20


def loaded(slots: int, command: str, round_trip: float = NEAR) -> PackingPolicy:
    """Has seen a lot of one command."""
    busy = policy(slots, round_trip)
    for _ in range(50):
        busy.seen(command, DURATIONS[command] or 0.0)
    return busy


def held(policy: PackingPolicy, command: str, waiting: int, under_way: int) -> float:
    """Seconds of work in a pack of many such tasks."""
    return len(fill(policy, [(command, 1)] * waiting, under_way)) * (DURATIONS[command] or 0.0)


def test_a_backlog_makes_packs_larger() -> None:
    """A tenth of what every slot has to do, between what a pack holds without one and the most of all."""
    busy = loaded(2, "small")
    sizes = [held(busy, "small", 400, under_way) for under_way in (0, 200, 600, 1000, 1600, 10_000)]
    assert sizes == pytest.approx([0.03, 0.03, 0.05, 0.07, 0.099, 0.099], abs=0.0011)


@given(st.integers(1, 64), st.integers(1, 300), st.integers(0, 10_000), st.sampled_from([NEAR, FAR]))
def test_with_little_to_do_packs_are_as_without_a_backlog(
    slots: int, waiting: int, under_way: int, round_trip: float
) -> None:
    """And with more no pack is more than a tenth of it, so that the last ones end soon after each other."""
    busy = loaded(slots, "small", round_trip)
    left = (waiting + under_way) * 0.001 / slots
    assert held(busy, "small", waiting, under_way) <= max(busy.work, left / 10) * (1 + 1e-6)


@given(st.integers(1, 8), st.integers(1, 5000), st.sampled_from([NEAR, FAR]))
def test_the_last_tasks_are_spread(slots: int, count: int, round_trip: float) -> None:
    """Of a backlog that waits in one piece, as it runs out: as many packs as slots share the last of it."""
    busy = loaded(slots, "small", round_trip)
    waiting, sizes = count, []
    while waiting:
        pack = busy.pack(waiting)
        taken = 0
        while taken < waiting and pack.admits("small", 1):
            taken += 1
        sizes.append(taken)
        waiting -= taken
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= max(busy.least / 0.001, -(-count // slots))


def test_two_java_programs_share_a_message_where_many_wait() -> None:
    """Of 45 ms each; three would be too much, and without a backlog each leaves alone."""
    busy = policy(2, NEAR)
    for _ in range(50):
        busy.seen("java", 0.045)
    assert len(fill(busy, [("java", 1)] * 50, under_way=50)) == 2
    assert len(fill(busy, [("java", 1)] * 4)) == 1


def test_a_few_long_tasks_are_no_backlog() -> None:
    """However long they are: short ones beside them are spread, in packs that are no larger."""
    busy = policy(2, NEAR)
    for _ in range(50):
        busy.seen("long", 600.0)
    assert len(fill(busy, [("small", 1)] * 20)) == 10
    assert held(busy, "small", 200, under_way=2) == pytest.approx(0.03)


def test_many_arrivals_are_not_spread() -> None:
    """More messages a second than a namespace's credits allow are not made, however many slots are free."""
    busy = policy(1000, NEAR)
    for tenth in range(1, 31):
        busy.submitted(tenth * 200, tenth / 10)
    assert busy.rate == pytest.approx(2000, rel=0.2)
    taken = len(fill(busy, [("small", 1)] * 50))
    assert taken == -(-int(busy.rate) // int(MOST_MESSAGES)) or taken == int(busy.rate / MOST_MESSAGES) + 1
    busy.submitted(6000, 10.0)
    assert len(fill(busy, [("small", 1)] * 50)) == 2


@given(st.lists(st.floats(NEAR, 0.001), min_size=1), st.floats(0.001, 1.0))
def test_a_slow_send_is_load_rather_than_distance(quick: list[float], slow: float) -> None:
    """The measured round trip stays near the quick ones."""
    learning = PackingPolicy()
    for took in quick:
        learning.sent(took)
    before = learning.round_trip or 0.0
    learning.sent(slow)
    assert min(quick) <= (learning.round_trip or 0.0) <= before + 0.02 * slow
    for _ in range(12):
        learning.sent(NEAR)
    assert (learning.round_trip or 0.0) < 2 * NEAR + 0.001


def test_sends_are_paced_only_under_load() -> None:
    """One task after the other never waits; a stream of them leaves every two milliseconds."""
    alone = PackingPolicy(round_trip=NEAR)
    for number in range(1000):
        assert alone.pause(number / 700) == 0.0
        alone.submitted(number, number / 700)
    loaded = PackingPolicy(round_trip=NEAR)
    loaded.submitted(5000, 1.0)
    assert loaded.pause(1.0005) == pytest.approx(PACE - 0.0005)
    assert loaded.pause(1.0 + PACE) == 0.0
    loaded.submitted(5001, 1.01)
    assert loaded.pause(1.0101) == 0.0, "a lone task after many"
    loaded.submitted(5011, 1.012)
    assert loaded.pause(1.0121) == pytest.approx(PACE - 0.0001)


@given(st.integers(0, 20_000), st.integers(1, 64))
def test_sends_are_further_apart_while_much_is_under_way(under_way: int, slots: int) -> None:
    """So that packs are filled: a twentieth of the time that this takes, 20 ms at most."""
    busy = loaded(slots, "small")
    assert busy.pause(1.0, under_way) == 0.0
    busy.submitted(5000, 1.0)
    left = under_way * 0.001 / slots
    by_rate = under_way / 5000
    assert busy.pause(1.0, under_way) == pytest.approx(
        min(0.02, max(PACE, left / 20, by_rate / 20)), rel=0.001
    )
    apart = pytest.approx(min(0.02, max(PACE, left / 20)), rel=0.001)
    busy.submitted(5001, 1.01)
    alone = busy.pause(1.01, under_way)
    if left < busy.work * 0.999:
        assert alone == 0.0, "a lone task that may begin soon"
    elif left > busy.work * 1.001:
        assert alone == apart, "one behind many"
        assert busy.pause(1.01, under_way, MOST_BYTES) == 0.0, "nothing more would fit"


def streaming(slots: int, rate: int) -> PackingPolicy:
    """Has seen a stream of no-ops for a while; the last send was at 3.0 s."""
    deciding = loaded(slots, "tiny")
    for hundredth in range(301):
        deciding.submitted(rate * hundredth // 100, hundredth / 100)
    return deciding


@given(st.integers(1, 300), st.integers(2000, 20_000))
def test_packs_of_a_stream_are_as_full_with_many_slots_as_with_two(slots: int, rate: int) -> None:
    """While the slots are faster than what brings them tasks, more of them do not make messages smaller."""
    deciding = streaming(slots, rate)
    assert deciding.pause(3.0, 10_000) == pytest.approx(0.02)
    assert deciding.messages(400, 10_000) == 2
    assert len(fill(deciding, [("tiny", 1)] * 400, 10_000)) == MOST_TASKS


@given(st.integers(2, 300), st.integers(2000, 20_000))
def test_tasks_of_a_stream_are_spread_while_few_are_under_way(slots: int, rate: int) -> None:
    """Then each is back soon, and what waits for a full pack would be missed."""
    deciding = streaming(slots, rate)
    few = int(deciding.work * rate / 2)
    share = max(1, few // slots)
    taken = len(fill(deciding, [("tiny", 1)] * few, few))
    assert taken <= max(share + 1, int(deciding.least / 0.0001) + 1, rate / MOST_MESSAGES + 1)
    assert deciding.pause(3.0, few) == pytest.approx(PACE, abs=0.0005)


def test_long_tasks_under_way_do_not_hold_up_a_few_short_ones() -> None:
    """Only a stream has a time that its tasks are under way."""
    deciding = loaded(1000, "small")
    deciding.submitted(5, 1.0)
    assert deciding.pause(1.0, 5000) == 0.0
    assert len(fill(deciding, [("small", 1)] * 5, 5000)) <= 2


def test_a_map_does_not_come_down_to_tasks_that_ride_alone() -> None:
    """With a full window each result brings one task: they gather again, whatever went before."""
    deciding = loaded(2, "tiny")
    now, submitted, window = 1.0, 10_000, 10_000
    deciding.submitted(submitted, now)
    sizes: list[int] = []
    for _ in range(200):  # results come one by one, each after a no-op
        now += 0.0005
        submitted += 1
        waiting = submitted - 10_000 - sum(sizes)
        if deciding.pause(now, window - waiting, waiting * 200) == 0.0:
            deciding.submitted(submitted, now)
            sizes.append(len(fill(deciding, [("tiny", 1)] * waiting, under_way=window - waiting)))
    assert min(sizes) >= 39


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_the_thresholds_follow_the_round_trip(one: float, other: float) -> None:
    """A longer way never makes packs hold less; all stays within some tens of milliseconds."""
    near, far = (PackingPolicy(round_trip=trip) for trip in sorted((one, other)))
    assert near.work <= far.work <= LONGEST_PACK
    assert near.least <= far.least < near.work


def test_the_thresholds_near_and_far() -> None:
    """What the simulation found to be right."""
    near, far = PackingPolicy(round_trip=NEAR), PackingPolicy(round_trip=FAR)
    assert (near.work, near.least) == (0.03, 0.002)
    assert (far.work, far.least) == (0.04, 0.01)


@given(st.integers(0, 100_000))
def test_a_send_has_messages_for_every_slot(slots: int) -> None:
    """Two for each, within what the broker takes."""
    assert PackingPolicy(slots).messages(10**6) == max(2, min(MOST_SENT, 2 * slots))


@given(st.integers(1, 2000), st.integers(1, 4), st.booleans())
def test_what_would_not_fill_a_message_waits_under_load(waiting: int, slots: int, is_last: bool) -> None:
    """Unless there is nothing else, or nothing more is coming."""
    few = min(MOST_SENT, 2 * slots)
    deciding = loaded(slots, "tiny")
    assert deciding.messages(waiting, 10_000, is_last=is_last) == (
        few if is_last else max(1, min(few, waiting // MOST_TASKS))
    )
    assert deciding.messages(waiting) == few


def beat(state: str, slots: int, *since: float) -> Heartbeat:
    running = tuple(Running("u", "t", "c", "j", "x", at) for at in since)
    return Heartbeat("a", "n", "h", "b", 1, state, slots, 0.0, 100.0, 5.0, running)  # type: ignore[arg-type]


def test_a_message_is_filled_while_others_keep_the_slots_busy() -> None:
    """Not longer than it takes to fill it: by tasks, by their work, or by bytes."""
    policy = PackingPolicy(2, round_trip=0.002)
    policy.durations.overall = 0.0001
    assert not policy.gathers(10, 1000)
    policy.elsewhere = 1.0
    assert policy.gathers(10, 1000)
    assert policy.gathers(MOST_TASKS - 1, 1000)
    assert not policy.gathers(MOST_TASKS, 1000)
    assert not policy.gathers(2, MOST_BYTES)
    policy.durations.overall = MOST_WORK / 4
    assert policy.gathers(3, 1000)
    assert not policy.gathers(4, 1000)


def test_slots_that_can_be_counted_on() -> None:
    """Not those that long tasks hold, nor those of agents that leave."""
    assert open_slots([]) == 0
    assert open_slots([beat("ready", 4), beat("starting", 2)]) == 6
    assert open_slots([beat("ready", 4, 99.9, 90.0, 10.0)]) == 2
    assert open_slots([beat("draining", 4), beat("exiting", 4)]) == 0

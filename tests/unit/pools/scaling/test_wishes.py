"""One wish of many: the greatest that lives counts, and each ends by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchflow.pools.scaling.values import ScalingMemory
from batchflow.pools.scaling.wishes import MOST_SKEW, MOST_WISH_SECONDS, MergedWish, Wish, merge

NOW = 1_000_000.0

wishes = st.builds(
    Wish,
    who=st.sampled_from("abcd"),
    agents=st.integers(0, 50),
    written_at=st.floats(NOW - 5000, NOW + 1000),
    until=st.floats(NOW - 5000, NOW + 100_000),
    dedicated=st.integers(0, 50),
    surplus=st.integers(0, 60),
)


def test_greatest_living_wish_counts() -> None:
    """Wishes are for the whole pool, so they are not added up."""
    merged = merge([Wish("a", 3, NOW, NOW + 60), Wish("b", 5, NOW, NOW + 30, dedicated=2)], NOW)
    assert (merged.agents, merged.dedicated, merged.spot, merged.until) == (5, 2, 3, NOW + 30)


def test_newest_wish_of_a_client_replaces_its_earlier_ones() -> None:
    """Also when it wants less."""
    merged = merge([Wish("a", 1, NOW, NOW + 60), Wish("a", 9, NOW - 10, NOW + 500)], NOW)
    assert merged.agents == 1


def test_wish_of_a_dead_client_ends() -> None:
    """What it remembered is kept for the client that comes next."""
    memory = ScalingMemory(agents=7, spot_losses=2.0)
    merged = merge([Wish("a", 7, NOW - 400, NOW - 100, memory=memory)], NOW)
    assert merged == MergedWish(memory=memory)


def test_agents_drain_that_no_client_needs() -> None:
    """A wish of an earlier version lets none drain."""
    wishes = [Wish("a", 9, NOW, NOW + 60, surplus=6), Wish("b", 9, NOW, NOW + 60, surplus=4)]
    assert (merge(wishes, NOW).agents, merge(wishes, NOW).needed) == (9, 5)
    assert merge([*wishes, Wish("c", 8, NOW, NOW + 60)], NOW).needed == 8


def test_wish_travels_as_a_document() -> None:
    """With the memory."""
    wish = Wish("a", 7, NOW, NOW + 1, 3, "why", ScalingMemory(agents=7, low_since=5.0))
    assert Wish.decode(wish.encode()) == wish


@given(st.lists(wishes))
def test_clients_agree_whatever_the_order(given_wishes: list[Wish]) -> None:
    """Two clients that read the same documents make the same of them."""
    shuffled = sorted(given_wishes * 2, key=repr)
    merged, again = merge(given_wishes, NOW), merge(shuffled, NOW)
    assert (merged.agents, merged.dedicated, merged.until) == (again.agents, again.dedicated, again.until)
    assert 0 <= merged.dedicated <= merged.agents
    assert 0 <= merged.needed <= merged.agents


@given(st.lists(wishes))
def test_every_wish_ends(given_wishes: list[Wish]) -> None:
    """However far away its end is said to be, and however wrong its writer's clock is."""
    assert merge(given_wishes, NOW + MOST_SKEW + MOST_WISH_SECONDS + 1000).agents == 0

"""Which workers a slot keeps for other sessions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.execution.warm_workers import WarmWorkers


def test_a_kept_worker_is_returned_once() -> None:
    """The next time there is none."""
    warm = WarmWorkers[str](100, 10)
    assert warm.keep(("a",), "of a", 1) == []
    assert warm.take(("b",)) is None
    assert warm.take(("a",)) == "of a"
    assert warm.take(("a",)) is None


def test_the_least_recently_kept_worker_goes_first() -> None:
    """Past the number, and past the memory."""
    warm = WarmWorkers[str](100, 2)
    warm.keep(("a",), "a", 10)
    warm.keep(("b",), "b", 10)
    warm.take(("a",))
    warm.keep(("a",), "a", 10)
    assert warm.keep(("c",), "c", 10) == ["b"]
    assert warm.keep(("d",), "d", 95) == ["a", "c"]


def test_a_worker_above_the_limit_alone_is_not_kept() -> None:
    """Nor is any other, because it came last."""
    warm = WarmWorkers[str](100, 5)
    warm.keep(("a",), "a", 10)
    assert warm.keep(("b",), "b", 101) == ["a", "b"]
    assert len(warm) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=60))
def test_each_worker_is_kept_or_given_back_once(steps: list[tuple[int, int]]) -> None:
    """None is lost and none is returned twice; the limits hold after each step."""
    warm = WarmWorkers[int](100, 3)
    inside: dict[int, int] = {}
    for number, (name, memory) in enumerate(steps):
        if (found := warm.take((str(name),))) is not None:
            del inside[found]
        inside[number] = memory
        for gone in warm.keep((str(name),), number, memory):
            del inside[gone]
        assert len(warm) == len(inside) <= 3
        assert sum(inside.values()) <= 100
    assert warm.take_all() == list(inside)

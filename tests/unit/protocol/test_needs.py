"""What tasks require of their nodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.protocol.needs import ALL, KnownNode, Needs, unmet


@given(
    st.builds(
        Needs,
        slots=st.integers(0, 99),
        memory=st.integers(0, 1 << 50),
        gpus=st.integers(0, 9),
        tags=st.lists(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True), max_size=4, unique=True).map(tuple),
    )
)
def test_what_travels_is_read_again(needs: Needs) -> None:
    assert Needs.read(needs.fields()) == needs


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([], "table"),
        ("slots", "table"),
        ({"cores": 2}, "cores"),
        ({"slots": 0}, "slots"),
        ({"slots": True}, "slots"),
        ({"slots": 1.5}, "slots"),
        ({"slots": "most"}, "slots"),
        ({"memory": -1}, "memory"),
        ({"memory": "8 GB"}, "memory"),
        ({"gpus": None}, "gpus"),
        ({"tags": "ssd"}, "tags"),
        ({"tags": ["two words"]}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"tags": ["x"] * 33}, "tags"),
        ({"tags": 3}, "tags"),
    ],
)
def test_what_is_wrong_is_named(value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Needs.read(value)


def test_no_node_can_run_what_each_of_them_lacks() -> None:
    small, large = KnownNode(1, None, 0), KnownNode(4, 1000, 1, frozenset({"ssd"}))
    assert unmet(Needs(slots=ALL), [small]) is None
    assert unmet(Needs(slots=2, tags=("ssd",)), [small, large]) is None
    assert unmet(Needs(memory=1 << 40), [small]) is None  # its memory is not known
    assert "4" in (unmet(Needs(slots=5), [large]) or "")
    assert "'ssd'" in (unmet(Needs(tags=("ssd",)), [small]) or "")
    assert unmet(Needs(slots=99), []) is None

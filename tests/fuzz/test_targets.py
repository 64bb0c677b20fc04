"""Every parser of the local cloud, for a moment: `make fuzz` goes on for as long as one likes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.budget import BYTES, BYTES_FOR_BYTE
from tests.fuzz.targets import TARGETS
from tests.support.work import peak, steps

STEPS = 150_000
STEPS_FOR_BYTE = 2_000
"""Instructions of Python; time would depend on the machine."""

_PIECES = (
    b"9" * 400, b"-1", b"0", b"1e309", b"(", b"[" * 70, b"{", b'"', b"'", b"\\ud800", b"\xff", b"%00",
    b"\x00", b"\xed\xa0\x80", b"<!DOCTYPE a>", b'encoding="x"', b"P99999999999D", b" not ", b"*" * 9, b"/0",
    b"null", b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x45",
)  # fmt: skip


@st.composite
def inputs(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Bytes of any kind, or a valid input with pieces put in, left out and repeated."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(_PIECES) | st.binary(max_size=6))
        data = data[:start] + piece * draw(st.sampled_from((0, 1, 1, 1, 40))) + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_answers_or_refuses_within_its_budget(name: str) -> None:
    """Whatever the bytes: no other error, and work and memory in proportion to them."""
    target = TARGETS[name]

    @given(inputs(target.seeds))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def read(data: bytes) -> None:
        assert steps(lambda: target.read(data)) <= STEPS + STEPS_FOR_BYTE * len(data)
        assert peak(lambda: target.read(data)) <= BYTES + BYTES_FOR_BYTE * len(data)

    read()


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, seed) for name, target in TARGETS.items() for seed in target.seeds],
)
def test_a_seed_is_read(name: str, data: bytes) -> None:
    """What others are made of is cheap."""
    assert steps(lambda: TARGETS[name].read(data)) <= STEPS

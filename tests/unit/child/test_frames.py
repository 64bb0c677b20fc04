"""The frames between an agent and its child."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.child import frames

_FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=8)


@given(sent=_FRAMES, cuts=st.lists(st.integers(1, 40), max_size=20))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """Cutting the stream anywhere changes nothing."""
    stream = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    decoder = frames.Decoder(100)
    received = []
    for cut in [*cuts, len(stream)]:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert received == sent


def test_a_frame_above_the_limit_is_refused_by_its_header() -> None:
    """A gigabyte that was announced is refused at once."""
    decoder = frames.Decoder(10)
    assert decoder.feed(frames.encode(frames.NOTE, b"x" * 10)) == [(frames.NOTE, b"x" * 10)]
    with pytest.raises(frames.FrameError, match="11 bytes, above the limit of 10"):
        decoder.feed(frames.encode(frames.NOTE, b"x" * 11)[: frames.HEADER_SIZE])

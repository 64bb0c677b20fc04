"""What is kept of an output, and its lines: the cores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.execution.capture import LONGEST_LINE, Lines
from node_agent.system.tail import Tail


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(0, 100))
def test_a_tail_is_the_end_of_what_came_and_no_longer_than_its_limit(chunks: list[bytes], limit: int) -> None:
    """Whole below the limit; above it, marked, and the end of the stream."""
    tail = Tail(limit)
    for chunk in chunks:
        tail.add(chunk)
    everything = b"".join(chunks)
    text = tail.text()
    if len(everything) <= limit:
        assert text == everything.decode("utf-8", "replace")
    else:
        mark, _, rest = text.partition("\n")
        assert mark.endswith("bytes left out]")
        assert everything.decode("utf-8", "replace").endswith(rest)


def test_a_tail_says_how_much_it_left_out() -> None:
    """The mark counts within the limit."""
    tail = Tail(50)
    for _ in range(1000):
        tail.add(b"0123456789")
    assert tail.text() == "[9973 bytes left out]\n345678901234567890123456789"
    assert tail.size == 10_000


def test_a_tail_does_not_begin_within_a_character() -> None:
    """Half a character at the cut is dropped, not shown as a wrong one."""
    tail = Tail(40)
    tail.add("é".encode() * 100)
    assert set(tail.text().partition("\n")[2]) == {"é"}


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_lines_are_the_same_however_the_stream_is_cut(chunks: list[bytes]) -> None:
    """Only newlines cut."""
    whole = b"".join(chunks)
    one = Lines()
    expected = one.add(whole) + one.finish()
    other = Lines()
    assert [line for chunk in chunks for line in other.add(chunk)] + other.finish() == expected


def test_an_endless_line_comes_in_pieces() -> None:
    """Memory stays bounded without a newline."""
    lines = Lines()
    pieces = lines.add(b"x" * (3 * LONGEST_LINE + 5))
    assert [len(piece) for piece in pieces] == [LONGEST_LINE] * 3
    assert lines.finish() == ["xxxxx"]

"""The large values that an agent has in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.bundles.values import StoredValue, ValueCache


def test_a_value_is_a_file_that_cannot_be_changed() -> None:
    """It lasts as long as its object."""
    value = StoredValue(b"data")
    path = Path(value.path)
    assert path.read_bytes() == b"data"
    with path.open("r+b", buffering=0) as file, pytest.raises(PermissionError):
        file.write(b"x")
    del value
    assert not path.exists()


def test_values_used_least_recently_go_first() -> None:
    """Past the limit of bytes, or of descriptors. One that does not fit is not kept."""
    cache = ValueCache(limit=10, most=2)
    kept = cache.add("a", b"1234")
    assert cache.add("a", b"other") is kept
    cache.add("b", b"1234")
    assert cache.get("a") is kept
    cache.add("c", b"12345")
    assert [cache.get(name) is not None for name in "abc"] == [True, False, True]
    cache.add("d", b"1")
    assert (cache.get("a"), cache.size) == (None, 6)
    assert cache.add("e", b"x" * 11).size == 11
    assert cache.get("e") is None
    cache.keep("f", b"12")
    assert cache.get("f") is not None


def test_a_value_that_is_too_large_to_be_kept_is_not_copied_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As nothing but the cache would have it."""
    monkeypatch.setattr("os.memfd_create", lambda *arguments: pytest.fail("it was copied"))
    cache = ValueCache(limit=10)
    cache.keep("a", b"x" * 11)
    assert (cache.get("a"), cache.size) == (None, 0)

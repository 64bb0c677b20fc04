"""Packages that tasks require: locked and built by the client, unpacked by the agents."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from batchflow import ConfigurationError, Pool, Session, TaskError
from tests.support.wheels import make_wheel, requirements_file


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, so that each test locks and builds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "depth_u", "1.0", "def twice(x):\n    return 2 * x\n")
    make_wheel(folder, "price_u", "1.0", "from depth_u import twice\nVERSION = 1\n", "depth_u")
    make_wheel(folder, "price_u", "2.0", "from depth_u import twice\nVERSION = 2\n", "depth_u")
    return folder


@asynccontextmanager
async def _session(pool: Pool, requirements: Any) -> AsyncIterator[Session]:
    async with pool.session(f"test-{uuid.uuid4().hex[:8]}", requirements=requirements) as session:
        yield session


def _versions() -> list[Any]:
    import price_u  # type: ignore[import-not-found]

    return [price_u.VERSION, price_u.twice(21), price_u.__file__]


async def test_tasks_find_what_their_session_requires_and_never_what_another_does(
    pool: Pool, wheels: Path
) -> None:
    async with (
        _session(pool, requirements_file(wheels, "price_u==1.0")) as same,
        _session(pool, None) as without,
    ):
        version, value, file = await same.run(_versions)
        assert (version, value) == (1, 42)
        assert "environments" in file
        with pytest.raises(TaskError, match="No module named 'price_u'"):
            await without.run(_versions)
        async with _session(pool, requirements_file(wheels, "price_u==2.0")) as second:
            for _ in range(2):
                assert (await second.run(_versions))[0] == 2
                assert (await same.run(_versions))[0] == 1


async def test_what_cannot_be_resolved_is_each_tasks_outcome_in_the_resolvers_words(
    pool: Pool, wheels: Path
) -> None:
    async with _session(pool, requirements_file(wheels, "price_u", "absent_u")) as session:
        task = await session.submit(_versions)
        outcome = await task.outcome()

    assert outcome.kind == "SubmitFailed"
    assert "absent-u" in (outcome.error or "") or "absent_u" in (outcome.error or "")


async def test_what_is_no_requirement_is_refused_at_once(pool: Pool) -> None:
    with pytest.raises(ConfigurationError, match="'--index-url=x' is an option"):
        pool.session(requirements=["--index-url=x"])
    with pytest.raises(ConfigurationError, match="a requirement such as"):
        pool.session(requirements=["numpy", ""])
    with pytest.raises(ConfigurationError, match=r'"current" is needed'):
        pool.session(requirements=3)  # type: ignore[arg-type]

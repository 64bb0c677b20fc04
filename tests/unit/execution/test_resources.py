"""What tasks read in the cache itself is checked before they do."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchflow.protocol.functions import PYTHON, pickle_name
from node_agent.execution.resources import TaskResources
from tests.support.agent_world import FakeEnvironments, FakeRunning
from tests.support.slot_bench import materialise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batchflow.protocol.bundle import Bundle


class Cache:
    """A cache of one bundle, which is fetched again after it was distrusted."""

    def __init__(self, root: Path) -> None:
        self.bundle, self.folder = materialise(root, {pickle_name(PYTHON): "a pickle"})
        self.file = self.folder / self.bundle.files[0].name
        self.fetched = 0

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[tuple[Bundle, Path]]:
        yield self.bundle, self.folder

    def distrust(self, bundle_hash: str) -> None:
        self.fetched += 1
        self.file.write_text("a pickle")


@pytest.mark.parametrize(("content", "fetched"), [("a pickle", 0), ("a forgery", 1)])
async def test_a_function_by_value_is_checked_before_a_task_opens_it(
    tmp_path: Path, content: str, fetched: int
) -> None:
    """One that was changed is fetched again: to open a pickle is to execute it."""
    cache = Cache(tmp_path)
    cache.file.chmod(0o644)
    cache.file.write_text(content)
    nowhere: Any = None
    resources = TaskResources("agent", cache, FakeEnvironments(), nowhere, nowhere, FakeRunning(), 1, 1)
    async with AsyncExitStack() as stack:
        assert await resources.fetch_function(cache.bundle.hash, stack) == cache.file
    assert (cache.file.read_text(), cache.fetched) == ("a pickle", fetched)

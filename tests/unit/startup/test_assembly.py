"""An agent has the pool's default bundle on its disk before a task asks for it."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from batchflow.files import collect, upload
from batchflow.testing import MemoryBroker, MemoryStorage
from node_agent.startup import assembly
from tests.support.agent_world import config
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from batchflow.testing import MemoryContainer


@asynccontextmanager
async def put_together(directory: Path, ctl: MemoryContainer, bundle: str) -> AsyncIterator[None]:
    """An agent that does not run yet."""
    services = assembly.Adaptors(MemoryBroker(), ctl, ctl)
    with ExitStack() as stack:
        agent = assembly.agent(config(bundle=bundle), directory, services, stack)
        yield
        for slot in agent.parts.slots:
            await slot.aclose()


async def control_container() -> MemoryContainer:
    storage = MemoryStorage()
    await storage.create_container("ctl")
    return storage.container("ctl")


async def test_the_default_bundle_is_fetched_before_a_task_comes(tmp_path: Path) -> None:
    """As soon as the agent is put together, while its links open."""
    ctl = await control_container()
    bundle = await upload(await collect({"task.py": b"code"}), ctl)
    async with put_together(tmp_path, ctl, bundle.hash):
        file = tmp_path / "cache" / "bundles" / bundle.hash / "task.py"
        await eventually(file.is_file)
        assert file.read_bytes() == b"code"


async def test_a_bundle_that_is_gone_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pool has other files by now: whoever wants these is told when a task of his comes."""
    caplog.set_level("INFO")
    async with put_together(tmp_path, await control_container(), "b" * 64):
        await eventually(lambda: "no_bundle_ahead" in caplog.messages)

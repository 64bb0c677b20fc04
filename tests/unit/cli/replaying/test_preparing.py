"""What a task ran with is laid out on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchflow.cli.exits import CommandError
from batchflow.cli.replaying.finding import FoundTask
from batchflow.cli.replaying.preparing import prepare
from batchflow.errors import ProtocolError
from batchflow.protocol.passed import PassedFile, places_document
from batchflow.protocol.wire import TaskItem
from batchflow.testing.storage import MemoryStorage


async def test_files_of_other_tasks_are_where_the_task_found_them(tmp_path: Path) -> None:
    """Nothing else of the pool can be named in their place, and one that is gone is named."""
    storage = MemoryStorage()
    for name in ("ctl", "out"):
        await storage.create_container(name)
    ctl, out = storage.container("ctl"), storage.container("out")
    await out.put("outputs/a", b"a")
    await ctl.put("args/b", b"b")
    taken = [PassedFile("deep/a.csv", "outputs/a", "ended"), PassedFile("a.csv", "args/b", None)]

    own = tmp_path / "x.py"
    own.touch()

    async def laid_out(folder: str, *files: Any) -> Path:
        item = TaskItem("c", "j", "t", "x.py", ["inputs/0/deep/a.csv"], "i:1", "", files=list(files))
        found = FoundTask(item, files=[str(own)])
        return (await prepare(found, ctl, tmp_path / folder, out=out)).folder / "files"

    there = await laid_out("good", *[each.fields() for each in taken])
    assert (there / "x.py").is_file()
    assert (there / "inputs/0/deep/a.csv").read_text() == "a"
    assert (there / "inputs/1/a.csv").read_text() == "b"
    await ctl.put("args/places", places_document([], taken))
    many = FoundTask(TaskItem("c", "j", "t", "x.py", [], "i:1", "", places="args/places"), files=[str(own)])
    there = (await prepare(many, ctl, tmp_path / "many", out=out)).folder / "files"
    assert (there / "inputs/1/a.csv").read_text() == "b"
    with pytest.raises(CommandError, match=r"file 'a.csv' of another task is in the pool no longer"):
        await laid_out("gone", PassedFile("a.csv", "outputs/gone", "sig").fields())
    for number, (name, blob, signature) in enumerate(
        [("a", "agents/x.json", "sig"), ("a", "pool.json", None), ("../a", "outputs/a", "sig")]
    ):
        with pytest.raises(ProtocolError):
            await laid_out(f"bad{number}", PassedFile(name, blob, signature).fields())

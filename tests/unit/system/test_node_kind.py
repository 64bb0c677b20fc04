"""What a node has, as its agent finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.system.node_kind import TAGS_FILE, gpu_count, memory_total, node_kind


def test_memory_and_gpus_are_read_from_the_machine(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    assert memory_total(info) == 16 * 1024**2
    assert memory_total(tmp_path / "none") is None
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpu_count(tmp_path) == 2
    assert gpu_count(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("written", "found"), [(None, set()), ("fast rack-1\n", {"fast", "rack-1"}), ("x" * 99, set())]
)
def test_tags_come_from_the_pool_the_node_and_its_start_task(
    written: str | None, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZ_BATCH_NODE_SHARED_DIR", str(tmp_path))
    if written is not None:
        (tmp_path / TAGS_FILE).write_text(written)
    assert node_kind(2, ["ssd"], dedicated=False).tags == {"ssd", "spot"} | found
    assert node_kind(2, [], dedicated=True).tags == {"dedicated"} | found

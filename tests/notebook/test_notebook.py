"""The example notebook, executed in a kernel of its own, cell after cell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

EXAMPLE = Path(__file__).parents[2] / "examples" / "08_notebook"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook with its outputs."""
    folder = tmp_path_factory.mktemp("notebook") / "example"
    shutil.copytree(EXAMPLE, folder)
    notebook = nbformat.read(folder / "first_steps.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def outputs(notebook: Any, text: str, kind: str) -> list[str]:
    """What the one cell that has `text` gave, of that MIME type."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source]
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def test_it_is_kept_without_outputs() -> None:
    """What is in the repository is what somebody wrote."""
    notebook = nbformat.read(EXAMPLE / "first_steps.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_a_notebook_awaits_across_its_cells(executed: Any) -> None:
    """A client that was opened in one cell is used and closed in others."""
    (value,) = outputs(executed, 'run("pi.py", 0', "text/plain")
    assert "'pi': 3." in value
    assert "closed" in outputs(executed, "aclose", "text/html")[0]


def test_everything_has_a_view(executed: Any) -> None:
    """Client, pool, session, results, one result, an explanation: HTML for people, text for others."""
    for text, shown in (
        ("Client.local", "open"),
        ("ensure_pool", "created"),
        ("outcome", "TaskFailed: "),
        ("explain", "agents alive"),
    ):
        assert shown in outputs(executed, text, "text/html")[-1]
    assert outputs(executed, "ensure_pool", "text/plain") == ["<Pool 'notebook'>"]


def test_progress_is_one_output_that_changes(executed: Any) -> None:
    """It ends at the last result; no stream of lines is left in the notebook."""
    html = outputs(executed, "progress", "text/html")
    assert len(html) == 2  # the display and the table
    assert "40 of 40" in html[0]
    assert "width:100.00%" in html[0]
    assert "40 of 40" in outputs(executed, "progress", "text/plain")[0]


def test_no_cell_wrote_to_stderr(executed: Any) -> None:
    """Nothing warns, and nothing prints where it should show."""
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "stream"]

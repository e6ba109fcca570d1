"""The notebook in scripts/ runs from data to push."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.hub_client import OWNER, connected_hub

NOTEBOOK = Path(__file__).resolve().parents[2] / "scripts" / "notebook.ipynb"


def test_it_is_stored_without_results() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert len(cells) > 10
    assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


@pytest.mark.slow
def test_it_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = {line.partition(" = ")[0] for line in parameters.source.splitlines()}
    given = {"model": str(tiny_checkpoint), "folder": str(tmp_path / "made"), "repository": f"{OWNER}/edited"}
    given |= {"max_kl": 0.5}
    assert given.keys() == names
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    with connected_hub(tmp_path / "home") as hub:
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
        held = hub.repositories[f"{OWNER}/edited"].files("main")
    made = tmp_path / "made" / "out"
    assert held["model.safetensors"] == (made / "model.safetensors").read_bytes()
    said = "\n".join(str(cell.get("outputs")) for cell in notebook.cells)
    for words in ("LoadedBase", "SpectralEdit", "Verifying", "relative_change", "/commit/"):
        assert words in said, words

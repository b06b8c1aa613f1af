"""The notebooks run from top to bottom, with small settings in the place of their cell of parameters."""

import os
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE

nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")

TINY = {
    "own_patches": {
        "num_train": 12,
        "num_scored": 3,
        "size_px": 64,
        "settings": {"classifier_epochs": 1, "classifier_batch_size": 4, "epochs": 1, "batch_size": 4},
    },
    "slide": {
        "side_px": 512,
        "settings": {"classifier_epochs": 1, "classifier_batch_size": 16, "epochs": 1, "batch_size": 16},
    },
    "few_labels": {
        "num_images": 3,
        "num_patches": 12,
        "size_px": 64,
        "settings": {"classifier_epochs": 1, "classifier_batch_size": 4, "epochs": 1, "batch_size": 4},
        "adapt_options": "--epochs 1 --batch-size 2",
    },
}


def test_every_notebook_has_small_settings():
    assert {path.stem for path in (BUNDLE / "docs" / "notebooks").glob("*.ipynb")} == set(TINY)


@pytest.mark.e2e
@pytest.mark.parametrize("name", TINY)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # for !weakhisto
    notebook = nbformat.read(BUNDLE / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    cells[0].source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in TINY[name].items())
    for cell in notebook.cells:  # a shell command that fails must fail the test too
        if cell.cell_type == "code" and "\n!" in f"\n{cell.source}":
            cell.source += "\nassert _exit_code == 0"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)

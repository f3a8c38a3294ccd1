"""The notebook under examples/ is what its script writes, and runs from top to bottom."""

import json
import runpy

import pytest

from tests.test_docs import ROOT

MAKE = ROOT / "examples" / "make_quickstart.py"


def test_the_notebook_is_what_the_script_writes():
    made = runpy.run_path(str(MAKE))
    assert made["NOTEBOOK"].read_text() == made["notebook"]()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(MAKE.with_name("quickstart.ipynb"), as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    codes = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    results = [[output.data for output in outputs if "data" in output] for outputs in codes]
    assert "val_accuracy" in results[0][-1]["text/plain"]
    assert "<table" in results[1][-1]["text/html"] and results[1][-1]["text/html"].count("<tr") > 4
    assert sum("image/png" in data for data in results[2]) >= 8
    fused, tuned = ("".join(output.get("text", "") for output in codes[number]) for number in (3, 4))
    assert "the sweep's answer" in fused and "joint-ridge" in fused
    assert "finetune" in tuned and "200" in tuned
    [folder] = tmp_path.glob("out/layer-noise-*")
    names = json.loads((folder / "model" / "winner.json").read_text())["class_names"]
    assert results[5][-1]["text/plain"].strip("'") in names

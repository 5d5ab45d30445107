"""The notebook runs from the first cell to the last, with few steps, and the stored one has its pictures."""

import nbclient
import nbformat
from jobs import ROOT

TOUR = ROOT / "examples/tour.ipynb"


def pictures(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUR_STEPS", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    stored = nbformat.read(TOUR, as_version=4)
    notebook = nbclient.NotebookClient(stored, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == pictures(nbformat.read(TOUR, as_version=4)) == 5


def test_the_stored_notebook_names_no_machine():
    text = TOUR.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert "/opt/" not in text

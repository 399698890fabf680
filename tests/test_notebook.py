"""The notebook among the examples: it runs, and is committed as it ran."""

import json
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install 'lrrt-stage[test]'")
nbclient = pytest.importorskip("nbclient", reason="no nbclient: pip install 'lrrt-stage[test]'")
pytest.importorskip("ipykernel", reason="no ipykernel: pip install 'lrrt-stage[test]'")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def outputs(notebook, kind):
    """All outputs of a kind, as text, in their order."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    streams = [each.text for each in shown if each.get("name") == kind]
    return streams + [each.data[kind] for each in shown if kind in each.get("data", {})]


def check(notebook):
    """What it shows: the curve with its table, the seeds' picture, and that training went well."""
    (html,) = outputs(notebook, "text/html")
    assert '<img alt="Loss over learning rate' in html
    assert "robust (default)" in html
    (picture,) = outputs(notebook, "image/png")
    assert len(picture) > 10_000
    printed = "".join(outputs(notebook, "stdout"))
    assert "suggested range:" in printed
    assert "safe for all three:" in printed
    (accuracy,) = re.findall(r"validation accuracy ([\d.]+)", printed)
    assert float(accuracy) > 0.95


def test_every_cell_runs_and_shows_what_it_should(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # The kernel takes its own backend, not that of the other tests.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    resources = {"metadata": {"path": str(tmp_path)}}
    # It raises where a cell raises.
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources=resources
    ).execute()
    check(notebook)


def test_the_committed_outputs_are_complete_small_and_of_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    assert outputs(notebook, "stderr") == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = json.dumps([cell.outputs for cell in code])
    assert not re.search(r"/(home|root|tmp|work|Users)/|site-packages", shown)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(cell.metadata == {} for cell in notebook.cells)

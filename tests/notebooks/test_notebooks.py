"""The notebooks: each agrees with its script, and runs from top to bottom."""

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {'"demo", 300, 80': '"tiny", 40, 20'}  # the preset of the quickstart, and its steps


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook as it stands after it ran in a folder, with the code of this clone."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for slow, quick in QUICK.items():
            cell.source = cell.source.replace(slow, quick)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
    return client.execute(env=environment)


def shown(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """What its cells show, of one MIME type."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def test_every_script_has_its_notebook():
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_script_agree_and_outputs_are_cleared(path):
    notebook, script = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    nbformat.validate(notebook)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_a_badge_and_installs_what_is_missing(path):
    first, second = nbformat.read(path, as_version=4).cells[:2]
    assert f"github/OWNER/mde/blob/main/notebooks/{path.name}" in first.source
    assert 'find_spec("mde") is None' in second.source


def test_a_swarm_of_ones_own_runs(tmp_path):
    done = execute(ROOT / "notebooks" / "03_your_swarm.ipynb", tmp_path)
    assert len(shown(done, "application/vnd.plotly.v1+json")) == 2
    tables = " ".join(shown(done, "text/html"))
    assert "Regressors, cross-validated" in tables
    assert "group prose is at its" in tables


def test_the_budget_of_somebody_elses_runs(tmp_path):
    done = execute(ROOT / "notebooks" / "04_autoscale.ipynb", tmp_path)
    assert len(shown(done, "application/vnd.plotly.v1+json")) == 1
    assert "Best mixture along the budget" in " ".join(shown(done, "text/html"))


@pytest.mark.slow
def test_the_quickstart_and_what_explores_it_run(tmp_path):
    done = execute(ROOT / "notebooks" / "01_quickstart.ipynb", tmp_path)
    assert (tmp_path / "studies" / "quickstart" / "report.html").exists()
    assert len(shown(done, "application/vnd.plotly.v1+json")) == 3
    done = execute(ROOT / "notebooks" / "02_explore.ipynb", tmp_path)
    assert "Recommended mixture" in " ".join(shown(done, "text/html"))
    done = execute(ROOT / "notebooks" / "05_ablation.ipynb", tmp_path)
    assert "Shapley values" in " ".join(shown(done, "text/html"))

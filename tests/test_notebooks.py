"""A notebook shows figures as images, and keeps the backend that its user has."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib_inline")

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
BEFORE = "import matplotlib\nbackend = matplotlib.get_backend()"
AFTER = "import matplotlib.pyplot\nassert matplotlib.get_backend() == backend\nbackend"
SMALL = """
import jax, jax.numpy as jnp
from jaxlimit import StudySettings, study
x = jax.random.normal(jax.random.key(1), (1, 64, 8)) * jnp.array([9.0, 9.0] + 6 * [0.01])
loss = lambda w, batch: 0.5 * jnp.mean((batch @ (w - jnp.arange(8.0))) ** 2)
found = study(loss, jnp.arange(8.0), x, key=jax.random.key(0), budget=0.0,
              settings=StudySettings(epsilon=0.1, quiet=True, num_ratios=9))
"""
FIGURE = "from jaxlimit import plotting\nplotting.plot_two_sides({'net': {'magnitude': 0.1}})"


def executed(cells, folder):
    """Run cells between those that look at the backend; return the outputs of each."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in (BEFORE, *cells, AFTER)]
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return [cell.outputs for cell in notebook.cells[1:-1]]


def kinds(outputs):
    return {kind for output in outputs for kind in output.get("data", {})}


def test_a_study_and_a_figure_are_shown(tmp_path):
    of_study, of_figure = executed([SMALL + "found", FIGURE], tmp_path)
    assert {"text/html", "text/plain"} <= kinds(of_study)
    (shown,) = [output.data for output in of_study if "data" in output]
    assert "data:image/png;base64," in shown["text/html"]
    assert len(shown["text/plain"].splitlines()) <= 25
    assert "image/png" in kinds(of_figure)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_shows_its_figures(page, tmp_path):
    jupytext = pytest.importorskip("jupytext")
    cells = [cell.source for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    outputs = executed(cells, tmp_path)
    images = [kinds(output) for output in outputs if "image/png" in kinds(output)]
    inline = [output for output in outputs if "data:image/png" in str(output)]
    assert images or inline

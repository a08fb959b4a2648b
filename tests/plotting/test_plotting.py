"""Figures: what they draw, what they refuse, and that they leave the user's pyplot alone."""

import itertools
import subprocess
import sys
import warnings
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jaxlimit import limits, plotting, spectrum
from jaxlimit.pruning import SweepResult


@pytest.fixture(scope="module")
def measure():
    return spectrum.exact_measure(jnp.asarray([-0.5, *np.geomspace(1e-4, 10, 99)], jnp.float32))


@pytest.fixture(scope="module")
def sweep():
    ratios = np.geomspace(1e-3, 1, 50)
    nothing = np.zeros(50)
    return SweepResult(ratios, 1 / (1 + 100 * ratios), nothing, 2 * (1 - ratios), nothing)


def texts(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_the_backend_and_the_figures_of_the_user_are_left_alone(measure, tmp_path):
    """In a process of its own, in which the user has chosen another backend and has a figure."""
    code = f"""
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
mine = plt.figure()
import jax.numpy as jnp
from jaxlimit import plotting, spectrum
from jaxlimit.lab import figures
measure = spectrum.exact_measure(jnp.linspace(-1, 1, 9))
figure = plotting.plot_density(measure, threshold=0.1, title="")
plotting.save(figure, {str(tmp_path / "density.png")!r})
rows = [{{"ratio": 0.1, "one_shot": 0.5, "fine_tuned": 0.6}}]
plotting.save(figures.plot_lomp(rows, 0.9, None, title=""), {str(tmp_path / "lomp.svg")!r})
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert plt.get_fignums() == [1] and plt.gcf() is mine
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "density.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "lomp.svg").read_text().rstrip().endswith("</svg>")


def test_a_notebook_shows_a_figure_without_pyplot(measure):
    formatters = pytest.importorskip("IPython.core.formatters")
    figure = plotting.plot_density(measure, threshold=0.1, title="")
    shown, _ = formatters.DisplayFormatter().format(figure)
    assert shown["image/png"][:4] == b"\x89PNG"


def test_density_counts_what_lies_beyond_c(measure):
    figure = plotting.plot_density(measure, threshold=0.1, title="")
    beyond = np.mean(np.abs(np.asarray(measure.nodes)) > 0.1)
    assert f"{100 * beyond:.3g} % of all directions" in texts(figure)
    # The step line of the positive side ends at the share of positive eigenvalues.
    line = figure.axes[1].lines[0]
    assert line.get_ydata()[-1] == pytest.approx(0.99, rel=1e-5)
    assert len(plotting.png(figure)) < 200_000


@pytest.mark.parametrize("measured", [0.02, 0.6, 1.0])
def test_theory_and_practice_has_the_crossing_in_view(measure, sweep, measured):
    weights = jnp.linspace(0.01, 1.0, 100)
    prediction = limits.pruning_limit(measure, weights, 0.01)
    estimate = SimpleNamespace(prediction=prediction, measure=measure, epsilon=0.01)
    figure = plotting.plot_theory_and_practice(estimate, sweep, measured, title="")  # pyright: ignore
    (axes,) = figure.axes
    for x, y in ((float(prediction.radius), float(prediction.ratio)),):
        assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < y < axes.get_ylim()[1]
    assert f"{100 * float(prediction.ratio):.3g} %" in texts(figure)
    assert f"{100 * measured:.3g} %" in texts(figure)
    figure.canvas.draw()
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
        boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
        boxes = [box for box in boxes if box.width]
        assert len(boxes) >= 2
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
    assert len(plotting.png(figure)) < 200_000


def test_two_sides_draw_what_is_there_and_nothing_else():
    rows = {
        "whole": {"certificate": 0.0028, "found": 0.0029, "magnitude": 0.0058, "predicted": 0.0057},
        "bare": {"predicted": 0.13, "magnitude": 0.4, "found": None},
    }
    figure = plotting.plot_two_sides(rows)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["whole", "bare"]
    points = {float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {0.0028, 0.0029, 0.0058, 0.0057, 0.13, 0.4}
    (bar,) = (line for line in axes.lines if len(line.get_xdata()) == 2)
    assert list(bar.get_xdata()) == [0.0028, 0.0029]
    low, high = axes.get_xlim()
    assert low < min(points)
    assert max(points) < high
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) == 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [({}, "at least one network"), ({"a": {"fund": 0.1}}, "certificate, found, .* got 'fund'")],
)
def test_two_sides_refuse_what_they_cannot_draw(rows, says):
    with pytest.raises(ValueError, match=says):
        plotting.plot_two_sides(rows)


def colours(figure):
    return [to_hex(container[0].get_facecolor()) for container in figure.axes[0].containers]


def test_layers_are_bars_of_their_shares():
    shares = {"found": [0.5, 0.001], "magnitude": [0.25, 0.1]}
    figure = plotting.plot_layers(["Dense_0", "Head"], shares)
    (axes,) = figure.axes
    drawn = [[bar.get_width() / 100 for bar in container] for container in axes.containers]
    np.testing.assert_allclose(drawn, list(shares.values()))
    assert "0.1 %" in texts(figure)
    assert colours(figure) == [plotting.FOUND, plotting.MEASURED]
    named = plotting.plot_layers(["Dense_0", "Head"], shares, colors={"found": plotting.PREDICTED})
    assert colours(named) == [plotting.PREDICTED, plotting.MEASURED]
    with pytest.raises(ValueError, match=r"shares\['found'\] .* each of the 3 layers"):
        plotting.plot_layers(["a", "b", "c"], shares)
    with pytest.raises(ValueError, match="at least one entry"):
        plotting.plot_layers([], {})


def test_save_writes_what_the_name_says(measure, tmp_path):
    figure = plotting.plot_density(measure, threshold=0.1, title="")
    assert isinstance(figure, Figure)
    plotting.save(figure, tmp_path / "deep" / "a.png")
    plotting.save(figure, tmp_path / "a.svg")
    with pytest.raises(ValueError, match=r"path must end in \.png or \.svg, got .*a\.jpg"):
        plotting.save(figure, tmp_path / "a.jpg")


def test_names_that_moved_are_still_here_with_a_warning():
    from jaxlimit.lab import figures

    with pytest.warns(DeprecationWarning, match=r"now jaxlimit\.lab\.figures\.plot_depth"):
        assert plotting.plot_depth is figures.plot_depth  # pyright: ignore
    with pytest.raises(AttributeError, match="no attribute 'plot_nothing'"):
        plotting.plot_nothing  # noqa: B018  # pyright: ignore
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plotting.plot_density

"""Figures of one run: its spectrum, theory against practice, and its sweep."""

from typing import Any, Protocol

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxlimit import limits
from jaxlimit._core.checks import check_type
from jaxlimit.plotting._style import (
    MEASURED,
    NEUTRAL,
    PREDICTED,
    few_labels,
    new_axes,
    new_panels,
    percent_axis,
)
from jaxlimit.pruning import SweepResult
from jaxlimit.spectrum import SpectralMeasure


class Predicted(Protocol):
    """The part of a `LimitEstimate` that a figure needs."""

    @property
    def prediction(self) -> Any:
        """The predicted limit, with `ratio` and `radius`."""
        ...

    @property
    def measure(self) -> SpectralMeasure:
        """The spectrum."""
        ...

    @property
    def epsilon(self) -> Any:
        """The tolerated rise of the loss."""
        ...


def plot_density(measure: SpectralMeasure, *, threshold: float, title: str) -> Figure:
    """Draw the share of the spectrum beyond λ, negative and positive side by side.

    A cumulative share needs no bins, so a gap in the figure is a gap in the spectrum.

    Args:
        measure: the spectrum.
        threshold: c = 2ε/R², the eigenvalue below which a direction counts as flat.
        title: of the figure.

    Returns:
        The figure.

    Raises:
        TypeError: if `measure` is no `SpectralMeasure`.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> measure = exact_measure(jnp.array([-1.0, 0.0, 3.0]))
    >>> len(plot_density(measure, threshold=0.1, title="three eigenvalues").axes)
    2
    """
    check_type("measure", measure, SpectralMeasure)
    figure, panels = new_panels(1, 2, width=8.6, height=4.4, sharey=True)
    nodes, weights = np.asarray(measure.nodes).ravel(), np.asarray(measure.weights).ravel()
    weights = weights / np.shape(measure.nodes)[0]
    size = np.abs(nodes)
    left, right, least = min(threshold / 300, size.max() / 1e4), 2 * size.max(), 1.0
    for axes, sign, name in zip(panels, (-1, 1), ("negative", "positive"), strict=True):
        side = np.sign(nodes) == sign
        order = np.argsort(size[side])[::-1]
        beyond, share = size[side][order], np.cumsum(weights[side][order])
        x, y = np.append(beyond, left), np.append(share, share[-1:] if len(share) else 0)
        shown = (x >= left) & (y > 0)
        least = min(least, float(y[shown].min(initial=1.0)))
        axes.fill_between(x[shown], y[shown], 1e-12, step="pre", color=NEUTRAL, alpha=0.35, lw=0)
        axes.step(x[shown], y[shown], where="pre", color=NEUTRAL)
        axes.axvline(threshold, color=PREDICTED, linestyle="--")
        axes.axvspan(left, threshold, color=PREDICTED, alpha=0.07, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel=f"|λ|, {name} eigenvalues", xlim=(left, right))
        axes.grid(alpha=0.25)
    panels[0].invert_xaxis()
    panels[0].set_ylabel("share of eigenvalues beyond |λ|")
    panels[0].set_ylim(max(least, 1e-9) / 2, 2)
    steep = weights[size > threshold].sum()
    panels[1].text(
        threshold, 1.05,
        f" c = {threshold:.2g}\n"
        f" steeper: {100 * steep:.3g} % of all directions;\n"
        " to move R along one\n costs more than ε",
        color=PREDICTED, fontsize=8, va="top",
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2},
    )  # fmt: skip
    panels[1].text(threshold, panels[0].get_ylim()[0] * 1.3, "flat  ", color=PREDICTED,
                   fontsize=8, ha="right")  # fmt: skip
    figure.suptitle(title)
    return figure


def plot_theory_and_practice(
    estimate: Predicted, sweep: SweepResult, measured: float, *, title: str
) -> Figure:
    """Draw the bound ρ_L(R) and the network's own curve (R(ρ), ρ), which cross at the prediction.

    Args:
        estimate: from `estimate_limit`; its prediction, measure and ε are drawn.
        sweep: from `magnitude_sweep`, for R(ρ).
        measured: the empirical limit by loss.
        title: of the figure.

    Returns:
        The figure.

    Raises:
        TypeError: if `sweep` is no `SweepResult`.
    """
    check_type("sweep", sweep, SweepResult)
    figure, axes = new_axes(title, "R, norm of the removed weights", "ρ, weights kept")
    figure.set_figheight(4.8)
    predicted, radius = float(estimate.prediction.ratio), float(estimate.prediction.radius)
    ratios, radii = np.asarray(sweep.ratios, float), np.asarray(sweep.radii, float)
    xlim, ylim = _window(predicted, measured, radius, ratios, radii)
    grid = np.geomspace(xlim[0], xlim[1], 200)
    bound = jax.device_get(limits.lower_bound(estimate.measure, grid, estimate.epsilon))
    lower, value, upper = (np.maximum(x, 1e-12) for x in (bound.lower, bound.value, bound.upper))
    axes.fill_between(grid, value, ylim[1], color=MEASURED, alpha=0.07, linewidth=0)
    axes.fill_between(grid, lower, upper, color=PREDICTED, alpha=0.2, linewidth=0)
    axes.plot(grid, value, color=PREDICTED)
    order = np.argsort(radii)
    axes.plot(radii[order], ratios[order], color=MEASURED)
    axes.set(xscale="log", yscale="log", xlim=xlim, ylim=ylim)
    percent_axis(axes, "y")
    few_labels(axes.xaxis)
    _label_regions(axes, grid, value, radii[order], ratios[order])
    at = float(np.interp(measured, ratios, radii))
    away = -1 if at < radius else 1  # on the side where the other is not
    # Beside the crossing, between the lines that leave it upwards and downwards.
    _mark(
        axes, radius, predicted, "o", PREDICTED, f"predicted ρ*\n{_percent(predicted)}", (-away, 0)
    )
    _mark(axes, at, measured, "D", MEASURED, f"measured limit\n{_percent(measured)}", (away, away))
    return figure


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _window(predicted: float, measured: float, radius: float, ratios: Any, radii: Any) -> tuple:
    """Choose the ends of both axes with the crossing in the middle."""
    span = 8.0
    found = [x for x in (predicted, measured) if 0 < x < 1] or [float(np.median(ratios))]
    ylim = max(min(found) / span, 1e-9), min(max(found) * span, 1.0)
    positive = radii[radii > 0]
    middle = radius if radius > 0 else float(np.median(positive)) if positive.size else 1.0
    inside = radii[(ratios >= ylim[0]) & (ratios <= ylim[1]) & (radii > 0)]
    low, high = (inside.min(), inside.max()) if inside.size else (middle, middle)
    return (max(low, middle / 30, 1e-9) / 1.3, max(high, 1.3 * middle) * 1.5), ylim


def _label_regions(axes: Axes, grid: Any, value: Any, radii: Any, ratios: Any) -> None:
    """Write at the lines and on both sides of the bound what they are."""
    words = {"fontsize": 8, "transform": axes.transAxes}
    # The network's curve has the upper left corner, where next to nothing is removed.
    axes.text(0.02, 0.45, "enough weights kept:\nby the theory the loss\ncan stay within ε",
              color=MEASURED, ha="left", va="center", **words)  # fmt: skip
    axes.text(0.5, 0.03, "too few kept", color=PREDICTED, ha="center", va="bottom", **words)
    (left, right), (bottom, top) = np.log(axes.get_xlim()), np.log(axes.get_ylim())
    lines = (
        (grid, value, 0.18, "theory: $ρ_L(R)$; the\nband is 95 %, of\nprobes and depth",
         PREDICTED, (-14, 4), "right"),
        (radii, ratios, 0.2, "this network, pruned\nby magnitude: R(ρ)",
         MEASURED, (-8, 0), "right"),
    )  # fmt: skip
    for x, y, height, text, color, offset, side in lines:
        x, y = x[x > 0], y[x > 0]
        depth = (np.log(np.maximum(y, 1e-12)) - bottom) / (top - bottom)
        at = int(np.argmin(np.abs(depth - height)))
        # Near an edge no room is left beyond the line.
        across = (np.log(x[at]) - left) / (right - left)
        if across > 0.7 or across < 0.25:
            offset, side = ((-8, 0), "right") if across > 0.7 else ((8, 0), "left")
        axes.annotate(text, (x[at], y[at]), offset, textcoords="offset points", color=color,
                      ha=side, va="center", fontsize=8)  # fmt: skip


def _mark(axes: Axes, x: float, y: float, marker: str, color: str, text: str, way: tuple) -> None:
    """Mark a point, hollow so that another shows through it, and name it away from the lines."""
    axes.plot(x, y, marker, color=color, markersize=10, fillstyle="none", markeredgewidth=2)
    label = axes.annotate(
        text, (x, y), (34 * way[0], 32 * way[1]), textcoords="offset points", color=color,
        ha="left" if way[0] > 0 else "right", va="center", weight="bold", fontsize=9,
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkB": 6},
        annotation_clip=False,
    )  # fmt: skip
    label.set_in_layout(False)


def plot_sweep(
    loss: SweepResult,
    accuracy: SweepResult,
    *,
    dense_loss: float,
    epsilon: float,
    predicted: float,
    measured: float,
    title: str,
) -> Figure:
    """Draw loss and accuracy against the ratio, with both limits.

    Args:
        loss: sweep of the training loss.
        accuracy: sweep of the test accuracy.
        dense_loss: L(w*).
        epsilon: ε.
        predicted: ρ*.
        measured: the empirical limit by loss.
        title: of the figure.

    Returns:
        The figure.

    Raises:
        TypeError: if a sweep is no `SweepResult`.
    """
    check_type("loss", loss, SweepResult)
    check_type("accuracy", accuracy, SweepResult)
    figure, panels = new_panels(2, 1, width=7, height=6, sharex=True)
    series = ((loss, "training loss"), (accuracy, "test accuracy"))
    for axes, (sweep, name) in zip(panels, series, strict=True):
        axes.plot(sweep.ratios, sweep.losses, color=NEUTRAL)
        axes.axvline(
            predicted, color=PREDICTED, linestyle="--", label=f"predicted {_percent(predicted)}"
        )
        axes.axvline(measured, color=MEASURED, label=f"measured {_percent(measured)}")
        axes.set(ylabel=name)
        percent_axis(axes)
        axes.grid(alpha=0.25)
    panels[0].axhspan(
        dense_loss, dense_loss + epsilon, color=MEASURED, alpha=0.15, label="dense loss to + ε"
    )
    panels[0].set_ylim(0, min(float(np.max(loss.losses)) * 1.05, 4 * dense_loss + 20 * epsilon))
    panels[1].set_xlabel("ρ, weights kept")
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    return figure

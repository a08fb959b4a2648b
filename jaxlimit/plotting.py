"""Figures from results; the only module that imports matplotlib.

Every function draws on axes or a new figure and returns the figure; `save` writes it small.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxlimit import limits
from jaxlimit.estimation import LimitEstimate
from jaxlimit.pruning import SweepResult
from jaxlimit.spectrum import SpectralMeasure

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PREDICTED, MEASURED, NEUTRAL = "#c2410c", "#1d4ed8", "#57534e"


def new_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make one pair of axes with the house look."""
    figure, axes = plt.subplots(figsize=(7, 4.3), layout="constrained")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_density(measure: SpectralMeasure, *, threshold: float, title: str) -> Figure:
    """Draw the spectrum on logarithmic axes, negative and positive side by side.

    Args:
        measure: the spectrum.
        threshold: c, the eigenvalue below which a direction counts as flat.
        title: of the figure.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8, 4), sharey=True, layout="constrained")
    nodes, weights = np.asarray(measure.nodes), np.asarray(measure.weights)
    weights = weights / len(weights)
    top = np.abs(nodes).max()
    edges = np.geomspace(min(threshold / 30, top / 100), 1.3 * top, 40)
    for axes, sign, name in zip(panels, (-1, 1), ("negative", "positive"), strict=True):
        side = np.sign(nodes) == sign
        mass, _ = np.histogram(np.abs(nodes[side]), edges, weights=weights[side])
        axes.stairs(mass, edges, fill=True, color=NEUTRAL, alpha=0.6)
        axes.axvline(threshold, color=PREDICTED, linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel=f"|λ|, {name} eigenvalues")
        axes.grid(alpha=0.25)
    panels[0].invert_xaxis()
    panels[0].set_ylabel("share of the spectrum a bin")
    below = weights[np.abs(nodes) < edges[0]].sum()
    panels[1].plot([], [], color=PREDICTED, linestyle="--", label=f"c = 2ε/R² = {threshold:.2g}")
    panels[1].plot([], [], " ", label=f"|λ| < {edges[0]:.1g}: {below:.2%} of all")
    panels[1].legend(frameon=False)
    figure.suptitle(title)
    return figure


def plot_theory_and_practice(
    estimate: LimitEstimate, sweep: SweepResult, measured: float, *, title: str
) -> Figure:
    """Draw the bound ρ_L(R) and the network's own curve (R(ρ), ρ), which cross at the prediction.

    Args:
        estimate: from `estimate_limit`.
        sweep: from `magnitude_sweep`, for R(ρ).
        measured: the empirical limit by loss.
        title: of the figure.
    """
    figure, axes = new_axes(title, "R, norm of the removed weights", "ρ, fraction of weights kept")
    radii, ratios = np.asarray(sweep.radii), np.asarray(sweep.ratios)
    grid = np.linspace(0, radii.max(), 200)
    bound = jax.device_get(limits.lower_bound(estimate.measure, grid, estimate.epsilon))
    axes.fill_between(
        grid, bound.lower, bound.upper, color=PREDICTED, alpha=0.2, label="95 % (probes and depth)"
    )
    axes.plot(grid, bound.value, color=PREDICTED, label="theory: lower bound ρ_L(R)")
    order = np.argsort(radii)
    axes.plot(radii[order], ratios[order], color=MEASURED, label="network: ρ against R(ρ)")
    p = estimate.prediction
    axes.plot(
        p.radius,
        p.ratio,
        "o",
        color=PREDICTED,
        markersize=8,
        label=f"predicted limit ρ* = {float(p.ratio):.3%}",
    )
    at = np.interp(measured, ratios, radii)
    axes.plot(
        at,
        measured,
        "D",
        color=MEASURED,
        markersize=8,
        label=f"measured limit (by loss) = {measured:.3%}",
    )
    low = max(min(float(p.ratio), measured) / 30, ratios.min())
    axes.set(yscale="log", ylim=(low, 1), xlim=(0, None))
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


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
    """
    figure, panels = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    series = ((loss, "training loss"), (accuracy, "test accuracy"))
    for axes, (sweep, name) in zip(panels, series, strict=True):
        axes.plot(sweep.ratios, sweep.losses, color=NEUTRAL)
        axes.axvline(predicted, color=PREDICTED, linestyle="--", label=f"predicted {predicted:.3%}")
        axes.axvline(measured, color=MEASURED, label=f"measured {measured:.3%}")
        axes.set(ylabel=name, xscale="log")
        axes.grid(alpha=0.25)
    panels[0].axhspan(
        dense_loss, dense_loss + epsilon, color=MEASURED, alpha=0.15, label="dense loss to + ε"
    )
    panels[0].set_ylim(0, min(float(np.max(loss.losses)) * 1.05, 4 * dense_loss + 20 * epsilon))
    panels[1].set_xlabel("ρ, fraction of weights kept")
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


class Transition(NamedTuple):
    """The hits of random subspaces on one set in R^D, as they were and as they were predicted.

    Attributes:
        dim: D.
        first_hits: [trials], the smallest dimension k that hit, for each random rotation.
        exact: [D+1], the exact probability of a hit at k = 0 ... D, or None where it is unknown.
        predicted: k of the transition.
        band: (k_low, k_high), refined.
        plain_band: (k_low, k_high) by Theorem I.
        published: k by the published formula where that differs, or None.
    """

    dim: int
    first_hits: np.ndarray
    exact: np.ndarray | None
    predicted: float
    band: tuple[float, float]
    plain_band: tuple[float, float]
    published: float | None = None

    def probability(self) -> np.ndarray:
        """Return the share of rotations that hit at k = 0 ... D."""
        return (self.first_hits[:, None] <= np.arange(self.dim + 1)).mean(0)

    def width(self) -> float:
        """Return the k/D between 10 % and 90 % of hits."""
        low, high = np.quantile(self.first_hits, (0.1, 0.9))
        return float(high - low) / self.dim


def plot_phase_transitions(transitions: dict[str, list[Transition]], confidence: float) -> Figure:
    """Draw probability of a hit over k/D at growing D, and the width of the transition over D.

    Args:
        transitions: by the name of the set, in growing D.
        confidence: of the bands.
    """
    figure, panels = plt.subplots(
        2, len(transitions), figsize=(13, 6.4), sharey="row", layout="constrained"
    )
    for (name, series), above, below in zip(transitions.items(), *panels, strict=True):
        _draw_probabilities(above, series, confidence)
        _draw_widths(below, series)
        above.set_title(name)
    panels[0, 0].set_ylabel("probability of a hit")
    panels[1, 0].set_ylabel("width of the transition, in k/D")
    figure.suptitle(r"When random k-dimensional subspaces of $\mathbb{R}^D$ start to hit a set")
    for row in panels:
        handles = {
            label: handle
            for axes in row
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        row[-1].legend(
            handles.values(), handles.keys(), frameon=False, loc="center left",
            bbox_to_anchor=(1.02, 0.5),
        )  # fmt: skip
    return figure


def _draw_probabilities(axes: Axes, series: list[Transition], confidence: float) -> None:
    shades = plt.get_cmap("Blues")(np.linspace(0.4, 1, len(series)))
    for transition, shade in zip(series, shades, strict=True):
        share = np.arange(transition.dim + 1) / transition.dim
        probability = transition.probability()
        open_odds = (probability > 0) & (probability < 1)
        axes.plot(
            share[open_odds],
            probability[open_odds],
            "o",
            markersize=3.5,
            color=shade,
            label=f"measured, D = {transition.dim}",
        )
        if transition.exact is not None:
            axes.plot(share, transition.exact, color=shade, linewidth=1)
    axes.plot([], [], color=MEASURED, linewidth=1, label="exact kinematic formula")
    largest = series[-1]
    at_largest = f"D = {largest.dim}"
    middle = largest.predicted / largest.dim
    low, high = np.array(largest.band) / largest.dim
    axes.axvline(middle, color=PREDICTED, linestyle="--", label=f"predicted, {at_largest}")
    axes.axvspan(
        low,
        high,
        color=PREDICTED,
        alpha=0.12,
        linewidth=0,
        zorder=0,
        label=f"refined band, {confidence:.0%}\non either side, {at_largest}",
    )
    if largest.published is not None:
        axes.axvline(
            largest.published / largest.dim, color="black", linestyle=":", label="as published"
        )
    axes.set(xlabel="k/D", xlim=(0, 1))
    axes.grid(alpha=0.25)


def _draw_widths(axes: Axes, series: list[Transition]) -> None:
    dims = np.array([transition.dim for transition in series])
    bands = np.array([[np.diff(t.plain_band)[0], np.diff(t.band)[0]] for t in series])
    axes.plot(
        dims, bands[:, 0] / dims, color=NEUTRAL, marker=".", label="band by Theorem I,\nat most 1"
    )
    axes.plot(dims, bands[:, 1] / dims, color=PREDICTED, marker=".", label="refined band")
    widths = np.array([transition.width() for transition in series])
    axes.plot(dims, widths, "o-", color=MEASURED, label="measured, 10 % to 90 %")
    axes.plot(
        dims, widths[-1] * (dims[-1] / dims) ** 0.5, color=MEASURED, linestyle=":", label="∝ 1/√D"
    )
    axes.set(xlabel="D", xscale="log", yscale="log")
    axes.set_xticks(dims, dims.astype(str))
    axes.set_yticks(ticks := [0.05, 0.1, 0.2, 0.5, 1], map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.25)

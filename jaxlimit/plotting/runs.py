"""Figures of one run: its spectrum, theory against practice, and its sweep."""

import jax
import numpy as np
from matplotlib.figure import Figure

from jaxlimit import limits
from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, plt
from jaxlimit.pruning import SweepResult
from jaxlimit.spectrum import SpectralMeasure
from jaxlimit.studies.estimation import LimitEstimate


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

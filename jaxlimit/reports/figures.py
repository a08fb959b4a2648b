"""The figures of a report, as SVG text or PNG bytes; none where matplotlib is not installed."""

from typing import Any, NamedTuple

import numpy as np

from jaxlimit import limits
from jaxlimit._core.checks import check_type
from jaxlimit.pruning import SweepResult
from jaxlimit.studies import Study

HINT = "Figures need matplotlib: pip install 'jaxlimit[plot]'."


class Picture(NamedTuple):
    """One figure of a report.

    Attributes:
        name: of its file.
        title: its heading.
        words: its caption.
        figure: of matplotlib.
    """

    name: str
    title: str
    words: str
    figure: Any


def pictures(study: Study) -> list[Picture]:
    """Draw what a study found; an empty list without matplotlib."""
    check_type("study", study, Study)
    try:
        from jaxlimit import plotting
    except ImportError:
        return []
    found = [Picture(
        "two_sides", "Between the two sides",
        "The bar spans what is not known: from the fewest weights that any mask can keep, within "
        "the quadratic model, to the smallest mask that was found.",
        plotting.plot_two_sides({"this network": two_sides(study)}),
    ), Picture(
        "sweep", "Magnitude pruning, measured",
        "Pruned in one shot, from the right to the left. The band is what ε tolerates.",
        draw_sweep(study),
    )]  # fmt: skip
    measured, estimate = study.measured, study.estimate
    if estimate is not None:
        sweep = sweep_of(measured)
        c = float(limits.ridge(estimate.prediction.radius, estimate.epsilon))
        found += [
            Picture("theory_and_practice", "Where the prediction comes from",
                    "The prediction is where the bound of the theory meets the network's own "
                    "curve.", plotting.plot_theory_and_practice(
                        estimate, sweep, measured.by_loss, title="")),
            Picture("spectrum", "The Hessian's spectrum",
                    "Directions with |λ| below c are flat: in them the loss stays within ε.",
                    plotting.plot_density(estimate.measure, threshold=c, title="")),
        ]  # fmt: skip
    if study.layers is not None and len(study.layers.names) <= 60:
        layers = study.layers
        shares: dict[str, Any] = {"magnitude": layers.magnitude / layers.sizes}
        theory = "theory, layer by layer"
        colors = {"magnitude": plotting.MEASURED, "mask found": plotting.FOUND,
                  theory: plotting.PREDICTED}  # fmt: skip
        if study.found is not None:
            shares["mask found"] = layers.found / layers.sizes
        if study.layer_limits is not None:
            shares[theory] = study.layer_limits.kept / layers.sizes
        figure = plotting.plot_layers(list(layers.names), shares, colors=colors)
        words = "What fraction of each layer is kept."
        found.append(Picture("layers", "Layer by layer", words, figure))
    return found


def two_sides(study: Study) -> dict[str, float | None]:
    """Return the kept fractions for the bar."""
    dim, estimate = study.measured.dim, study.estimate
    return {
        "certificate": _positive(study.certified and study.certified.num_kept / dim),
        "found": _positive(study.found and study.found.num_kept / dim),
        "magnitude": _positive(study.measured.by_loss),
        "predicted": _positive(estimate and float(estimate.prediction.ratio)),
    }


def _positive(ratio: float | None) -> float | None:
    return ratio or None


def sweep_of(measured: Any) -> SweepResult:
    """Return the magnitude sweep as a `SweepResult`."""
    kept = np.floor(measured.ratios * measured.dim + 0.5)
    return SweepResult(
        measured.ratios, measured.losses, kept, measured.radii, np.zeros_like(measured.radii)
    )


def draw_sweep(study: Study) -> Any:
    """Draw loss and accuracy against the ratio, with the limits of both sides."""
    return curves({"": (study.measured.ratios, study.measured.losses, study.measured.accuracies)},
                  dense=study.measured.dense_loss, epsilon=study.measured.epsilon,
                  marks=_marks(study))  # fmt: skip


def _marks(study: Study) -> dict[str, tuple[float, str]]:
    from jaxlimit import plotting

    marks = {"magnitude": (study.measured.by_loss, plotting.MEASURED)}
    if study.estimate is not None:
        marks["ρ*"] = (float(study.estimate.prediction.ratio), plotting.PREDICTED)
    if study.found is not None:
        marks["mask found"] = (study.ratio, plotting.FOUND)
    return marks


def curves(
    rows: dict[str, tuple[Any, Any, Any]],
    *,
    dense: float | None = None,
    epsilon: float | None = None,
    marks: dict[str, tuple[float, str]] | None = None,
) -> Any:
    """Draw loss, and accuracy where it is known, of one or more sweeps over the ratio.

    Args:
        rows: by name the ratios, losses and accuracies.
        dense: L(w*), for the band of ε.
        epsilon: ε, for the band.
        marks: by name a ratio and its colour.
    """
    from jaxlimit import plotting

    colors = (plotting.MEASURED, plotting.PREDICTED, plotting.NEUTRAL, "#0f766e")
    accurate = any(np.isfinite(np.asarray(row[2], float)).any() for row in rows.values())
    figure, axes = plotting.new_axes("", "weights kept", "training loss")
    figure.set_size_inches(7, 6 if accurate else 3.6)
    panels = [axes]
    if accurate:
        axes.remove()
        panels = list(figure.subplots(2, 1, sharex=True))
    for i, (name, (ratios, losses, accuracies)) in enumerate(rows.items()):
        color = plotting.NEUTRAL if len(rows) == 1 else colors[i % 4]
        panels[0].plot(ratios, losses, color=color, label=name or None)
        if accurate:
            panels[1].plot(ratios, accuracies, color=color)
    for name, (ratio, color) in (marks or {}).items():
        for panel in panels:
            panel.axvline(ratio, color=color, linestyle="--" if name == "ρ*" else "-",
                          label=f"{name} {100 * ratio:.3g} %")  # fmt: skip
    low = [float(np.min(np.asarray(row[1], float))) for row in rows.values()]
    if dense is not None and epsilon:
        panels[0].axhspan(dense, dense + epsilon, color=plotting.MEASURED, alpha=0.15,
                          label="dense loss to + ε")  # fmt: skip
        panels[0].set_ylim(min(low) - epsilon, dense + max(8 * epsilon, 0.02 * abs(dense)))
    panels[0].set_ylabel("training loss")
    panels[-1].set_xlabel("weights kept")
    if accurate:
        panels[1].set_ylabel("accuracy")
    panels[-1].set_xscale("log")
    if marks:
        panels[-1].set_xlim(left=min(ratio for ratio, _ in marks.values() if ratio) / 15, right=1.2)
    panels[-1].xaxis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    if panels[0].get_legend_handles_labels()[0]:
        for text in panels[0].legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)  # a name with dollar signs is no formula
    return figure

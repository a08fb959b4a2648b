"""The figure of magnitude against the certificate, over the distance from an l1 minimum."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels

_COLOURS = (MEASURED, PREDICTED, "#0f766e", NEUTRAL)


def plot_residuals(rows: Sequence[dict[str, Any]], *, claim: tuple[float, float]) -> Figure:
    """Draw what magnitude keeps over what is certified, against the KKT residual of l1.

    Args:
        rows: of each stage of polishing its `l1`, `residual` and `median`, and the ratios to the
            certified count, `all` by magnitude over all weights, `live` among the live ones and
            `found` by the smallest mask.
        claim: the residual below which `live` was claimed to be below the second number.
    """
    figure, panels = new_panels(1, 2, width=12, height=4.6)
    strengths = sorted({row["l1"] for row in rows})
    for axes, key, label in zip(panels, ("residual", "median"),
                                ("largest | |g|/l1 - 1 | of the support", "median of the same"),
                                strict=True):  # fmt: skip
        for color, l1 in zip(_COLOURS * len(strengths), strengths, strict=False):
            series = [row for row in rows if row["l1"] == l1]
            for way, style in (("all", "D:"), ("live", "o-"), ("found", "<--")):
                words = {"all": "magnitude", "live": "magnitude among live", "found": "found"}[way]
                axes.plot([row[key] for row in series], [row[way] for row in series], style,
                          color=color, fillstyle="none", markersize=6,
                          label=f"l1 {l1:g}, {words}")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_formatter("{x:.3g}")
        axes.axhline(claim[1], color=NEUTRAL, linewidth=0.8)
        axes.grid(alpha=0.25)
    panels[0].axvline(claim[0], color=NEUTRAL, linewidth=0.8)
    panels[0].set_ylabel("weights kept over weights certified")
    panels[1].legend(frameon=False, fontsize=7)
    return figure

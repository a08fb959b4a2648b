"""Figures of the limit from both sides, and of what is kept of each layer."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, percent_axis

FOUND = "#0f766e"
# What may stand on the bar, with its marker, size, colour and words.
_MARKS = {
    "magnitude": ("D", 8, MEASURED, "magnitude, measured"),
    "predicted": ("o", 9, PREDICTED, "published ρ*"),
    "corrected": ("x", 8, PREDICTED, "corrected threshold"),
}
_COLOURS = (FOUND, MEASURED, PREDICTED, NEUTRAL)
SIDES = ("certificate", "found", *_MARKS)


def plot_two_sides(rows: Mapping[str, Mapping[str, float | None]], *, title: str = "") -> Figure:
    """Draw the bounds of the sparsest mask of each network, one bar a network.

    Args:
        rows: by the name of the network, the kept fractions in (0, 1] under `certificate` (no
            mask keeps less), `found` (a mask that was found), `magnitude`, `predicted` and
            `corrected`. Missing ones and None are left out.
        title: of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no row, or a row has another name.

    >>> figure = plot_two_sides({"a network": {"certificate": 0.002, "found": 0.003}})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['a network']
    """
    if not rows:
        raise ValueError("rows must hold at least one network, got none")
    for name, row in rows.items():
        if unknown := row.keys() - set(SIDES):
            raise ValueError(f"rows[{name!r}] must hold {', '.join(SIDES)}, got {min(unknown)!r}")
    title = title or "The sparsest mask within ε: bounded from below, found from above"
    figure, axes = new_axes(title, "weights kept", "")
    figure.set_size_inches(7.6, 2.1 + 0.6 * len(rows))
    axes.title.set_fontsize(10)
    labels = set()
    for place, row in zip(range(len(rows))[::-1], rows.values(), strict=True):
        low, high = row.get("certificate"), row.get("found")
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=FOUND, linewidth=9, alpha=0.3, zorder=1,
                      solid_capstyle="butt")  # fmt: skip
        for value, marker, label in (
            (low, ">", "certificate: no mask keeps less"),
            (high, "<", "a mask that was found"),
        ):
            if value is not None:
                axes.plot(value, place, marker, color=FOUND, markersize=9, zorder=2,
                          label=None if label in labels else label)  # fmt: skip
                labels.add(label)
        for key, (marker, size, color, label) in _MARKS.items():
            if (value := row.get(key)) is not None:
                axes.plot(value, place, marker, color=color, markersize=size, zorder=3,
                          fillstyle="none", markeredgewidth=1.8,
                          label=None if label in labels else label)  # fmt: skip
                labels.add(label)
    values = [x for row in rows.values() for x in row.values() if x]
    axes.set_xlim(min(values) / 1.6, min(max(values) * 1.6, 1.2))
    percent_axis(axes)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    # A name with dollar signs is no formula.
    axes.set_yticks(range(len(rows))[::-1], list(rows), parse_math=False)
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def plot_layers(
    names: Sequence[str],
    shares: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the fraction of each layer that is kept, a bar for each way of choosing.

    Args:
        names: of the layers, from the input on.
        shares: by the name of the way, the kept fraction of each layer, in [0, 1].
        title: of the figure.
        colors: by the name of the way, its colour. Without it the first three have those that the
            other figures give to a mask that was found, to magnitude and to the prediction.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no way, or a way lacks the share of a layer.

    >>> len(plot_layers(["first", "last"], {"magnitude": [0.1, 0.5]}).axes)
    1
    """
    if not shares or not names:
        raise ValueError("names and shares must each hold at least one entry, got none")
    for way, values in shares.items():
        if np.shape(values) != (len(names),):
            raise ValueError(
                f"shares[{way!r}] must hold one number for each of the {len(names)} layers, got "
                f"shape {np.shape(values)}"
            )
    figure, axes = new_axes(title or "Weights kept, layer by layer", "weights kept", "")
    height = 0.8 / len(shares)
    figure.set_size_inches(7, 1.4 + 0.22 * len(names) * (1 + len(shares)))
    places = np.arange(len(names))[::-1]
    of_way = dict(zip(shares, itertools.cycle(_COLOURS), strict=False)) | dict(colors or {})
    percent = {way: 100 * np.asarray(values, float) for way, values in shares.items()}
    largest = max(float(values.max()) for values in percent.values())
    for i, (way, values) in enumerate(percent.items()):
        at = places + (len(shares) - 1) * height / 2 - i * height
        bars = axes.barh(at, values, height * 0.9, color=of_way[way], label=way)
        axes.bar_label(bars, [f"{value:.3g} %" for value in values], padding=3, fontsize=7)
    axes.set_xlim(0, max(1.15 * largest, 1e-6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_yticks(places, list(names), fontsize=8, parse_math=False)
    if len(shares) > 1:
        figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    return figure

"""The look that all figures share.

Figures are made without pyplot: no backend is chosen, and the user's own figures are left alone.
"""

import io
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from jaxlimit._core.files import replacing

PREDICTED, MEASURED, NEUTRAL = "#c2410c", "#1d4ed8", "#57534e"
DPI = 150


class HouseFigure(Figure):
    """A figure that a notebook shows inline, whatever backend it has chosen."""

    def _repr_png_(self) -> bytes:
        return png(self)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, `width` by `height` inches."""
    return HouseFigure(figsize=(width, height), layout="constrained")


def new_panels(
    rows: int, columns: int, *, width: float, height: float, **settings: Any
) -> tuple[Figure, Any]:
    """Make a figure with a grid of axes; `settings` are those of `Figure.subplots`."""
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, **settings)


def new_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes in the look that all figures share.

    Args:
        title: of the figure.
        xlabel: of the x axis.
        ylabel: of the y axis.

    Returns:
        The figure and its axes.
    """
    figure, axes = new_panels(1, 1, width=7, height=4.3)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def percent_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Show ratios along x or y in per cent, on a logarithmic axis with few labels."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    few_labels(axis)
    axis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")


def few_labels(axis: Axis) -> None:
    """Label a logarithmic axis by powers of ten, and by 2 and 5 where these are few."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 300 * low else (1,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """Draw a figure as PNG at 150 dpi, with at most 256 colours to keep it small.

    Args:
        figure: the figure.

    Returns:
        The bytes of the file.
    """
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=DPI)
    image = Image.open(whole).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def svg(figure: Figure) -> str:
    """Draw a figure as SVG.

    Args:
        figure: the figure.

    Returns:
        The text of the file.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG or SVG, whole or not at all.

    Args:
        figure: the figure.
        path: of the file; its ending decides the format.

    Raises:
        ValueError: if `path` ends neither in .png nor in .svg.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"path must end in .png or .svg, got {path}")
    content = svg(figure).encode() if path.suffix == ".svg" else png(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)

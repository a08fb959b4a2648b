"""Figures of the library's own results.

Every function makes a new figure and returns it; `save` writes it small.
"""

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, save
from jaxlimit.plotting.runs import plot_density, plot_sweep, plot_theory_and_practice

__all__ = [
    "MEASURED",
    "NEUTRAL",
    "PREDICTED",
    "new_axes",
    "plot_density",
    "plot_sweep",
    "plot_theory_and_practice",
    "save",
]

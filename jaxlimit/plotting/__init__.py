"""Figures from results; the only part of the package that imports matplotlib.

Every function makes a new figure and returns it; `save` writes it small.
"""

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, save
from jaxlimit.plotting.comparisons import plot_depth, plot_gaps, plot_sensitivity
from jaxlimit.plotting.quadratics import QuadraticComparison, plot_quadratic_limits
from jaxlimit.plotting.runs import plot_density, plot_sweep, plot_theory_and_practice
from jaxlimit.plotting.transitions import Transition, plot_phase_transitions

__all__ = [
    "MEASURED",
    "NEUTRAL",
    "PREDICTED",
    "QuadraticComparison",
    "Transition",
    "new_axes",
    "plot_density",
    "plot_depth",
    "plot_gaps",
    "plot_phase_transitions",
    "plot_quadratic_limits",
    "plot_sensitivity",
    "plot_sweep",
    "plot_theory_and_practice",
    "save",
]

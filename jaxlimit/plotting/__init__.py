"""Figures from results; the only part of the package that imports matplotlib.

Every function makes a new figure and returns it; `save` writes it small.
"""

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, save
from jaxlimit.plotting.comparisons import plot_depth, plot_gaps, plot_sensitivity
from jaxlimit.plotting.factors import plot_factors, plot_rounds
from jaxlimit.plotting.growth import plot_growth
from jaxlimit.plotting.lomp import plot_lomp
from jaxlimit.plotting.quadratics import QuadraticComparison, plot_quadratic_limits
from jaxlimit.plotting.quadrature import plot_rule_errors
from jaxlimit.plotting.runs import plot_density, plot_sweep, plot_theory_and_practice
from jaxlimit.plotting.scaling import plot_scaling
from jaxlimit.plotting.tables import MeanAndDeviation, TableRow, plot_tables
from jaxlimit.plotting.transitions import Transition, plot_phase_transitions

__all__ = [
    "MEASURED",
    "NEUTRAL",
    "PREDICTED",
    "MeanAndDeviation",
    "QuadraticComparison",
    "TableRow",
    "Transition",
    "new_axes",
    "plot_density",
    "plot_depth",
    "plot_factors",
    "plot_gaps",
    "plot_growth",
    "plot_lomp",
    "plot_phase_transitions",
    "plot_quadratic_limits",
    "plot_rounds",
    "plot_rule_errors",
    "plot_scaling",
    "plot_sensitivity",
    "plot_sweep",
    "plot_tables",
    "plot_theory_and_practice",
    "save",
]

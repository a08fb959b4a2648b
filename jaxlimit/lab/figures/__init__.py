"""The figures of the experiments and benchmarks, one function each; `plotting.save` writes them."""

from jaxlimit.lab.figures.comparisons import plot_depth, plot_gaps, plot_sensitivity
from jaxlimit.lab.figures.factors import plot_factors, plot_rounds
from jaxlimit.lab.figures.growth import plot_growth
from jaxlimit.lab.figures.iterative import plot_iterative
from jaxlimit.lab.figures.lomp import plot_lomp
from jaxlimit.lab.figures.penalties import plot_penalties
from jaxlimit.lab.figures.quadratics import QuadraticComparison, plot_quadratic_limits
from jaxlimit.lab.figures.quadrature import plot_rule_errors
from jaxlimit.lab.figures.readings import plot_readings
from jaxlimit.lab.figures.residuals import plot_residuals
from jaxlimit.lab.figures.scaling import plot_scaling
from jaxlimit.lab.figures.tables import MeanAndDeviation, TableRow, plot_tables
from jaxlimit.lab.figures.training import plot_training
from jaxlimit.lab.figures.transitions import Transition, plot_phase_transitions
from jaxlimit.lab.figures.ways import plot_ways

__all__ = [
    "MeanAndDeviation",
    "QuadraticComparison",
    "TableRow",
    "Transition",
    "plot_depth",
    "plot_factors",
    "plot_gaps",
    "plot_growth",
    "plot_iterative",
    "plot_lomp",
    "plot_penalties",
    "plot_phase_transitions",
    "plot_quadratic_limits",
    "plot_readings",
    "plot_residuals",
    "plot_rounds",
    "plot_rule_errors",
    "plot_scaling",
    "plot_sensitivity",
    "plot_tables",
    "plot_training",
    "plot_ways",
]

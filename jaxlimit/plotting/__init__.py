"""Figures of the library's own results.

Every function makes a new figure and returns it; a notebook shows it inline, `save` writes it as
PNG or SVG. No backend is chosen, and pyplot is not used.
"""

import importlib
import warnings
from typing import Any

from jaxlimit._core.extras import require

require("matplotlib", "plot", __name__)

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, png, save, svg
from jaxlimit.plotting.runs import plot_density, plot_sweep, plot_theory_and_practice
from jaxlimit.plotting.sides import FOUND, plot_layers, plot_two_sides

__all__ = [
    "FOUND",
    "MEASURED",
    "NEUTRAL",
    "PREDICTED",
    "new_axes",
    "plot_density",
    "plot_layers",
    "plot_sweep",
    "plot_theory_and_practice",
    "plot_two_sides",
    "png",
    "save",
    "svg",
]

# Names of version 0.1 that are now in `jaxlimit.lab.figures`.
_MOVED = (
    "MeanAndDeviation",
    "QuadraticComparison",
    "TableRow",
    "Transition",
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
    "plot_tables",
)
_FIGURES = "jaxlimit.lab.figures"


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"{__name__}.{name} is now {_FIGURES}.{name}; the old name goes in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(_FIGURES), name)

"""How sparse can a trained network be pruned? Hessian spectra and convex-geometry limits in JAX."""

from jaxlimit import (
    curvature,
    distributed,
    geometry,
    lanczos,
    limits,
    lomp,
    models,
    operators,
    planning,
    pruning,
    spectrum,
    traces,
    training,
)
from jaxlimit._estimate import Estimate
from jaxlimit._weights import flatten_weights
from jaxlimit.estimation import LimitEstimate, estimate_limit

__version__ = "0.1.0"

__all__ = [
    "Estimate",
    "LimitEstimate",
    "curvature",
    "distributed",
    "estimate_limit",
    "flatten_weights",
    "geometry",
    "lanczos",
    "limits",
    "lomp",
    "models",
    "operators",
    "planning",
    "pruning",
    "spectrum",
    "traces",
    "training",
]

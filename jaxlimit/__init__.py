"""How sparse can a trained network be pruned? Hessian spectra and convex-geometry limits in JAX.

Modules and names are loaded on first use, so `import jaxlimit` costs little more than `import jax`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from jaxlimit._core.moved import MovedModules

if TYPE_CHECKING:
    from jaxlimit import (
        adapters,
        curvature,
        datasets,
        distributed,
        formats,
        geometry,
        lab,
        lanczos,
        limits,
        models,
        planning,
        plotting,
        pruning,
        reports,
        spectrum,
        studies,
        traces,
        training,
    )
    from jaxlimit._core.estimate import Estimate
    from jaxlimit._core.operator import Operator
    from jaxlimit._core.weights import flatten_weights
    from jaxlimit.reports import compare
    from jaxlimit.studies import (
        LimitEstimate,
        PrunedTo,
        Study,
        StudySettings,
        Task,
        estimate_limit,
        prune_to,
        study,
    )

__all__ = [
    "Estimate",
    "LimitEstimate",
    "Operator",
    "PrunedTo",
    "Study",
    "StudySettings",
    "Task",
    "adapters",
    "compare",
    "curvature",
    "datasets",
    "distributed",
    "estimate_limit",
    "flatten_weights",
    "formats",
    "geometry",
    "lab",
    "lanczos",
    "limits",
    "models",
    "planning",
    "plotting",
    "prune_to",
    "pruning",
    "reports",
    "spectrum",
    "studies",
    "study",
    "traces",
    "training",
]

# The homes of the names that are no modules.
_HOMES = {
    "Estimate": "jaxlimit._core.estimate",
    "LimitEstimate": "jaxlimit.studies",
    "Operator": "jaxlimit._core.operator",
    "PrunedTo": "jaxlimit.studies",
    "Study": "jaxlimit.studies",
    "StudySettings": "jaxlimit.studies",
    "Task": "jaxlimit.studies",
    "compare": "jaxlimit.reports",
    "estimate_limit": "jaxlimit.studies",
    "flatten_weights": "jaxlimit._core.weights",
    "prune_to": "jaxlimit.studies",
    "study": "jaxlimit.studies",
}
# Modules of version 0.1 that have moved.
_MOVED = {
    "jaxlimit.estimation": "jaxlimit.studies.estimation",
    "jaxlimit.lomp": "jaxlimit.pruning.lomp",
    "jaxlimit.operators": "jaxlimit.adapters",
    "jaxlimit.reporting": "jaxlimit.lab.reporting",
}
sys.meta_path.append(MovedModules(_MOVED))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            value = metadata.version("jaxlimit")
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            value = "unknown"
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in __all__ or f"jaxlimit.{name}" in _MOVED:
        value = importlib.import_module(f"jaxlimit.{name}")
    else:
        raise AttributeError(f"module 'jaxlimit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]

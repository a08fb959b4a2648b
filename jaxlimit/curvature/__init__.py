"""Curvature of a loss as symmetric products with a vector: nothing of size D×D is ever formed.

Every operator here is the derivative of a *gradient map* g(θ) at the weights:

- Hessian: g(θ) = ∇L(θ);
- Gauss-Newton: g(θ) = Jᵀ ∇ℓ(f(θ)), with J = ∂f at the weights held fixed;
- empirical Fisher: g(θ) = Jᵀ l(θ) / N, with l the per-example losses and J = ∂l held fixed.

So one mechanism serves them all: `jax.jvp` of the gradient map for each product, or one
`jax.linearize` and then its linear part alone.
"""

import warnings
from functools import partial
from typing import Any

from jaxlimit._core.operator import Operator
from jaxlimit._core.weights import Where, every_leaf, is_weight
from jaxlimit.curvature._operator import MATVEC_MODES, MatvecSettings, restrict
from jaxlimit.curvature.derivatives import HVP_MODES, hvp, mean_gradient
from jaxlimit.curvature.diagonals import DIAGONAL_MATRICES, diagonal
from jaxlimit.curvature.operators import (
    fisher_matvec,
    gauss_newton_matvec,
    hessian_matvec,
    hessian_matvec_over,
    linearization_bytes,
)
from jaxlimit.curvature.preflight import Preflight, check
from jaxlimit.curvature.rows import factor_rows
from jaxlimit.curvature.split import Split, SplitLoss, split_loss

__all__ = [
    "DIAGONAL_MATRICES",
    "HVP_MODES",
    "MATVEC_MODES",
    "MatvecSettings",
    "Operator",
    "Preflight",
    "Split",
    "SplitLoss",
    "Where",
    "check",
    "diagonal",
    "every_leaf",
    "factor_rows",
    "fisher_matvec",
    "gauss_newton_matvec",
    "hessian_matvec",
    "hessian_matvec_over",
    "hvp",
    "is_weight",
    "linearization_bytes",
    "mean_gradient",
    "restrict",
    "split_loss",
]


def __getattr__(name: str) -> Any:
    if name == "HostMatvec":
        warnings.warn(
            "curvature.HostMatvec is now Operator(..., traceable=False); the old name goes in the "
            "next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return partial(Operator, traceable=False)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

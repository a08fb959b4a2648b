"""The pruning limit: how small a fraction of its weights a network can be pruned to.

With H the Hessian of the loss at the weights, ε the tolerated rise of the loss and R the norm of
what is removed, the published bounds are traces of f(H), f(λ) = λ/(λ + c), c = 2ε/R². The Hessian
of a trained network has small negative eigenvalues; `negative` chooses how they count:

- "abs": f(|λ|), as the authors of the bounds computed;
- "clip": f(max(λ, 0)), so a direction of negative curvature counts as flat.

Beside the published bounds stand a bound that no mask can beat (`certificate`), limits layer by
layer, and what refitting the kept weights can reach.

Zhang, Zhang, Sun, Liu (2024).
"""

from jaxlimit.limits.bounds import (
    curvature_share,
    gap,
    lower_bound,
    ridge,
    trace_bound,
    upper_bound,
)
from jaxlimit.limits.certificates import Certificate, Shares, certificate, shares
from jaxlimit.limits.convexity import convex_shift
from jaxlimit.limits.factors import KeyFactors, Sensitivity, key_factors, sensitivity
from jaxlimit.limits.layers import LayerLimits, by_layer, coupling
from jaxlimit.limits.prediction import PruningLimit, pruning_limit, random_subspace_threshold
from jaxlimit.limits.quadratic import QuadraticLimit, quadratic_limit
from jaxlimit.limits.refitting import Refit, RefittedLimit, refit, refitted, refitted_limit
from jaxlimit.limits.rounds import RefittedRounds, refitted_rounds
from jaxlimit.limits.tolerance import loss_tolerance, loss_tolerance_estimate

__all__ = [
    "Certificate",
    "KeyFactors",
    "LayerLimits",
    "PruningLimit",
    "QuadraticLimit",
    "Refit",
    "RefittedLimit",
    "RefittedRounds",
    "Sensitivity",
    "Shares",
    "by_layer",
    "certificate",
    "convex_shift",
    "coupling",
    "curvature_share",
    "gap",
    "key_factors",
    "loss_tolerance",
    "loss_tolerance_estimate",
    "lower_bound",
    "pruning_limit",
    "quadratic_limit",
    "random_subspace_threshold",
    "refit",
    "refitted",
    "refitted_limit",
    "refitted_rounds",
    "ridge",
    "sensitivity",
    "shares",
    "trace_bound",
    "upper_bound",
]

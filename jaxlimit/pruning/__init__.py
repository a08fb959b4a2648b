"""Which weights go: masks, sweeps over the ratio, and the empirical limit.

Ratios are fractions of weights *kept*. Magnitude orders the weights under study over all layers at
once; among equal magnitudes the lower flat index is kept. `jaxlimit.pruning.lomp` prunes and
fine-tunes a trained network.
"""

from jaxlimit.pruning.budgets import erdos_renyi_kernel, lamp_scores, mask_by_leaf
from jaxlimit.pruning.magnitude import (
    apply_mask,
    flat_magnitude_mask,
    magnitude_mask,
    num_kept,
    removed_norm,
    support_fraction,
)
from jaxlimit.pruning.sweeps import (
    SweepResult,
    empirical_limit,
    magnitude_sweep,
    taylor_forecast,
)

__all__ = [
    "SweepResult",
    "apply_mask",
    "empirical_limit",
    "erdos_renyi_kernel",
    "flat_magnitude_mask",
    "lamp_scores",
    "magnitude_mask",
    "magnitude_sweep",
    "mask_by_leaf",
    "num_kept",
    "removed_norm",
    "support_fraction",
    "taylor_forecast",
]

"""Which weights to remove: masks, orders of removal, the search for the smallest mask, sweeps.

Ratios are fractions of weights *kept*. `smallest_mask` searches all masks within ε; its parts are
also functions of their own: `dead_weights`, `saliency`, `order_by`, `greedy_order`. Magnitude
orders the weights under study over all layers at once; among equals the lower flat index is kept.
`jaxlimit.pruning.lomp` prunes and fine-tunes a trained network, `jaxlimit.pruning.retraining`
prunes in rounds with training between them.
"""

from jaxlimit._core.masks import flat_mask, kept_by_layer, layer_masks, mask_tree
from jaxlimit.pruning.budgets import (
    erdos_renyi_kernel,
    lamp_scores,
    mask_by_leaf,
    order_by_counts,
)
from jaxlimit.pruning.candidates import Budget
from jaxlimit.pruning.compression import Compressed, compress, compress_dense
from jaxlimit.pruning.dead import dead_weights
from jaxlimit.pruning.greedy import Removal, gram, greedy_order
from jaxlimit.pruning.guarantee import (
    GuaranteedRatio,
    guaranteed_ratio,
    held_out_losses,
    hoeffding_bentkus,
)
from jaxlimit.pruning.magnitude import (
    apply_mask,
    flat_magnitude_mask,
    magnitude_mask,
    num_kept,
    removed_norm,
    support_fraction,
)
from jaxlimit.pruning.ordered import SmallestOfOrder, smallest_of_order
from jaxlimit.pruning.refitting import RefittedNetwork, refit
from jaxlimit.pruning.saliency import order_by, order_by_relaxed, saliency
from jaxlimit.pruning.search import METHODS, Candidate, MaskSearch, smallest_mask
from jaxlimit.pruning.stationarity import L1Residual, l1_residual
from jaxlimit.pruning.sweeps import (
    SweepResult,
    empirical_limit,
    magnitude_sweep,
    taylor_forecast,
)

__all__ = [
    "METHODS",
    "Budget",
    "Candidate",
    "Compressed",
    "GuaranteedRatio",
    "L1Residual",
    "MaskSearch",
    "RefittedNetwork",
    "Removal",
    "SmallestOfOrder",
    "SweepResult",
    "apply_mask",
    "compress",
    "compress_dense",
    "dead_weights",
    "empirical_limit",
    "erdos_renyi_kernel",
    "flat_magnitude_mask",
    "flat_mask",
    "gram",
    "greedy_order",
    "guaranteed_ratio",
    "held_out_losses",
    "hoeffding_bentkus",
    "kept_by_layer",
    "l1_residual",
    "lamp_scores",
    "layer_masks",
    "magnitude_mask",
    "magnitude_sweep",
    "mask_by_leaf",
    "mask_tree",
    "num_kept",
    "order_by",
    "order_by_counts",
    "order_by_relaxed",
    "refit",
    "removed_norm",
    "saliency",
    "smallest_mask",
    "smallest_of_order",
    "support_fraction",
    "taylor_forecast",
]

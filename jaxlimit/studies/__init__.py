"""The whole chain on one trained network."""

from jaxlimit.studies.estimation import (
    LimitEstimate,
    LimitSettings,
    check_deterministic,
    estimate_limit,
)
from jaxlimit.studies.layers import LayerStudy, layer_limits, layer_masks
from jaxlimit.studies.pruning_to import PrunedTo, prune_to

__all__ = [
    "LayerStudy",
    "LimitEstimate",
    "LimitSettings",
    "PrunedTo",
    "check_deterministic",
    "estimate_limit",
    "layer_limits",
    "layer_masks",
    "prune_to",
]

"""The whole chain on one trained network."""

from jaxlimit.studies.estimation import LimitEstimate, check_deterministic, estimate_limit

__all__ = ["LimitEstimate", "check_deterministic", "estimate_limit"]

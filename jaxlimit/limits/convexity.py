"""How negative the eigenvalues of an operator can be, from Lanczos on random probes."""

import math

import numpy as np

from jaxlimit._core.checks import check_range
from jaxlimit.limits.bounds import check_measure
from jaxlimit.spectrum import SpectralMeasure


def convex_shift(measure: SpectralMeasure, *, miss_probability: float = 1e-3) -> float:
    """Return a μ ≥ 0 that makes H + μI positive semi-definite with a stated probability.

    Ritz values lie inside the spectrum. After m steps from a uniform direction they miss each end
    by more than a share e of the whole width with probability at most 1.648 √D exp(-√e (2m - 1)),
    and all p probes must miss it together. So, with s the width of the Ritz values,

        μ = max(0, s e / (1 - 2e) - smallest Ritz value).

    Costs no product.

    Args:
        measure: spectrum of H, from Lanczos, or exact, where no end is missed.
        miss_probability: probability of an eigenvalue below -μ, over the probes, in (0, 1].

    Returns:
        μ; infinite where the steps are too few to tell.

    Raises:
        TypeError: if `measure` is no `SpectralMeasure`.
        ValueError: if `miss_probability` lies outside (0, 1].

    >>> import jax.numpy as jnp
    >>> from jaxlimit import spectrum
    >>> convex_shift(spectrum.exact_measure(jnp.array([-0.5, 0.0, 3.0])))
    0.5

    Kuczyński, Woźniakowski (1992), section 4.
    """
    check_measure("measure", measure)
    check_range("miss_probability", miss_probability, 0, 1, open_low=True)
    nodes = np.asarray(measure.nodes, np.float64)
    low, high = float(nodes.min()), float(nodes.max())
    num_probes, num_steps = nodes.shape
    if measure.exact or num_steps >= measure.dim or _ended_early(measure):
        return max(0.0, -low)
    # Each end takes half of the probability.
    log_odds = math.log(1.648 * math.sqrt(measure.dim))
    log_odds -= math.log(miss_probability / 2) / num_probes
    missed = (log_odds / (2 * num_steps - 1)) ** 2
    if missed >= 0.5:
        return math.inf
    return max(0.0, (high - low) * missed / (1 - 2 * missed) - low)


def _ended_early(measure: SpectralMeasure) -> bool:
    # If the Krylov space of a random direction ends, it has a part in every eigenspace.
    recurrence = measure.recurrence
    return recurrence is not None and bool(
        np.asarray(recurrence.num_valid).min() < measure.nodes.shape[-1]
    )

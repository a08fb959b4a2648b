"""The prediction as the paper's authors read it off a spectrum, one choice at a time.

Facts of their reading: one probe, 96 or 128 Lanczos steps, a density smoothed on bins of 1e-5 of
the range, R rounded to an integer, ρ on a grid of 0.1 %.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxlimit import limits, spectrum
from jaxlimit._core.checks import check_count, check_range
from jaxlimit.training import augment

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)


@dataclass(frozen=True)
class Reading:
    """How a limit is read off a spectrum.

    Attributes:
        depth: Lanczos steps; None for all there are.
        bracketed: read the trace by the bracket over depth; else by plain Gauss quadrature.
        smoothed: widen every node to a Gaussian of a bin, 1e-5 of the range.
        rounded: round R to an integer.
        grid: spacing of the ratios tried; 0 for every ratio.
    """

    depth: int | None = None
    bracketed: bool = True
    smoothed: bool = False
    rounded: bool = False
    grid: float = 0.0


OURS = Reading()
THEIRS = Reading(96, bracketed=False, smoothed=True, rounded=True, grid=1e-3)


def predicted_ratio(
    measure: spectrum.SpectralMeasure,
    radius_at: Callable[[np.ndarray], np.ndarray],
    epsilon: float,
    reading: Reading = OURS,
    *,
    num_ratios: int = 4000,
) -> float:
    """Solve ρ_L(R(ρ)) = ρ with the choices of a reading.

    The least ratio of the grid at which, and at every larger one, ρ_L(R(ρ)) ≤ ρ.

    Args:
        measure: spectrum of H.
        radius_at: R of an array of ratios.
        epsilon: ε ≥ 0.
        reading: the choices.
        num_ratios: ratios tried without a grid, evenly spaced in the logarithm from 1e-5 to 1.

    Returns:
        ρ*; 1 if no smaller ratio is enough.

    Raises:
        ValueError: if ε is negative, or the depth is more than the measure has.

    >>> import jax.numpy as jnp
    >>> measure = spectrum.exact_measure(jnp.full(10, 2.0))
    >>> predicted_ratio(measure, lambda ratio: 2 * np.sqrt(1 - ratio), 1.0, Reading(grid=0.1))
    0.7
    """
    check_range("epsilon", epsilon, 0)
    check_count("num_ratios", num_ratios, 2)
    ratios = np.geomspace(1e-5, 1, num_ratios)
    if reading.grid:
        ratios = np.arange(1, round(1 / reading.grid) + 1) * reading.grid
    radii = np.asarray(radius_at(ratios), np.float64)
    radii = np.round(radii) if reading.rounded else radii
    enough = np.asarray(demand(measure, radii, epsilon, reading)) <= ratios
    short = np.flatnonzero(~enough)
    found = ratios[min(short[-1] + 1, len(ratios) - 1)] if len(short) else ratios[0]
    return round(float(found), 12)


def demand(
    measure: spectrum.SpectralMeasure,
    radii: Float[np.ndarray, "r"],
    epsilon: float,
    reading: Reading = OURS,
) -> Float[np.ndarray, "r"]:
    """Read ρ_L = (1/D) tr |H|(|H| + cI)⁻¹, c = 2ε/R², at each radius.

    Raises:
        ValueError: if the depth is more than the measure has.
    """
    if reading.depth is not None:
        measure = spectrum.truncate(measure, reading.depth)
    if reading.bracketed and not reading.smoothed:
        return np.asarray(limits.lower_bound(measure, radii, epsilon).value)
    nodes, weights = (np.asarray(x, np.float64) for x in (measure.nodes, measure.weights))
    if reading.smoothed:
        spread = 1e-5 * (nodes.max() - nodes.min())
        nodes = nodes[..., None] + spread * _NODES
        weights = weights[..., None] * _WEIGHTS / _WEIGHTS.sum()
    size, share = np.abs(nodes).ravel(), weights.ravel() / weights.sum()
    safe = np.where(radii > 0, radii, 1)
    ridges = np.where(radii > 0, 2 * epsilon / safe**2, np.inf)
    return np.array([share @ (size / (size + c)) if np.isfinite(c) else 0.0 for c in ridges])


def one_by_one(theirs: Reading = THEIRS) -> dict[str, Reading]:
    """Name the readings from ours to theirs, each with one more of their choices."""
    steps = {"ours": OURS, f"{theirs.depth} steps": replace(OURS, depth=theirs.depth)}
    names = {
        "plain Gauss quadrature": "bracketed",
        "smoothed density": "smoothed",
        "R rounded": "rounded",
        f"ρ on a grid of {theirs.grid:.1%}": "grid",
    }
    for label, name in names.items():
        steps[label] = replace(list(steps.values())[-1], **{name: getattr(theirs, name)})
    return steps


def radius_of_sweep(ratios: list[float], radii: list[float]) -> Callable[[np.ndarray], np.ndarray]:
    """Interpolate R² between the ratios of a sweep, in the logarithm of the ratio."""
    order = np.argsort(ratios)
    places, squares = np.log(np.asarray(ratios)[order]), np.asarray(radii)[order] ** 2
    return partial(_interpolated, places, squares)


def _interpolated(places: np.ndarray, squares: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    return np.sqrt(np.interp(np.log(ratio), places, squares))


def gap_by_two_readings(
    whole: spectrum.SpectralMeasure,
    removed: spectrum.SpectralMeasure,
    radius: float,
    epsilon: float,
    reading: Reading = THEIRS,
) -> tuple[float, float]:
    """Read the gap Δ in two ways, both traces at one depth and radius.

    As stated, (1/D) tr f(H_removed); and as each density normalised by its own sum would give it,
    (1/D) tr f(H) - (1/(D-k)) tr f(H_removed), which can be small where the first cannot.

    Args:
        whole: spectrum of H, of D weights.
        removed: spectrum of its block on the D - k removed weights.
        radius: R.
        epsilon: ε.
        reading: the choices; its depth is cut to what both have.

    Returns:
        The two, as fractions.

    >>> import jax.numpy as jnp
    >>> whole = spectrum.exact_measure(jnp.array([0.0, 2.0, 2.0, 2.0]))
    >>> removed = spectrum.exact_measure(jnp.array([0.0, 2.0]))
    >>> gap_by_two_readings(whole, removed, 1.0, 1.0, OURS)
    (0.125, 0.125)
    """
    at = partial(demand, radii=np.array([radius]), epsilon=epsilon, reading=reading)
    mine, own = float(at(whole)[0]), float(at(removed)[0])
    return own * removed.dim / whole.dim, mine - own


def batch_tolerance(
    loss: Callable,
    params: Any,
    state: Any,
    data: Any,
    key: Any,
    *,
    batch_size: int = 128,
    num_epochs: int = 8,
) -> float:
    """Measure ε as their loader gives it: the spread of the losses of shuffled, augmented batches.

    Args:
        loss: `loss(params, batch, state)`, as from `training.make_loss` with its normalisation.
        params: w*.
        state: its other variables.
        data: images uint8 and labels.
        key: random key of the orders, shifts and flips.
        batch_size: images of a batch; those left over in an epoch are skipped.
        num_epochs: passes over the data.

    Returns:
        The standard deviation.

    Raises:
        ValueError: if there are fewer than two batches in all.
    """
    images, labels = jnp.asarray(data[0]), jnp.asarray(data[1])
    steps = len(images) // batch_size
    if steps * num_epochs < 2:
        raise ValueError(
            f"data must hold batches of {batch_size} images, two in all at least, got "
            f"{len(images)} images"
        )

    @jax.jit
    def of_batch(rows, key):
        return loss(params, (augment(images[rows], key), labels[rows]), state)

    losses = []
    for epoch in range(num_epochs):
        order_key, *keys = jax.random.split(jax.random.fold_in(key, epoch), steps + 1)
        order = jax.random.permutation(order_key, len(images))[: steps * batch_size]
        rows = order.reshape(steps, batch_size)
        losses += [float(of_batch(*xs)) for xs in zip(rows, keys, strict=True)]
    return float(np.std(losses, ddof=1))


def other_gap(predicted: float, gap: float) -> float:
    """Turn Δ as stated, at the predicted ratio, into Δ with each density normalised by its own sum.

    ρ_L - (D/(D-k)) Δ, with ρ_L = k/D there.

    >>> round(other_gap(0.028319, 0.024308), 5)
    0.0033
    """
    return predicted - gap / (1 - predicted)


def kernels_alone(predicted: float, dim: int, num_others: int) -> tuple[float, float]:
    """Bound what the prediction becomes if only the kernels count, at one radius, PSD H.

    By Cauchy's interlacing a principal block lacks at most one unit of tr f a weight left out, so
    tr f lies between that of the whole less their number, and that of the whole.

    >>> kernels_alone(0.1, 100, 2)
    (0.08163265306122448, 0.10204081632653061)
    """
    left = dim - num_others
    return max(predicted * dim - num_others, 0.0) / left, predicted * dim / left

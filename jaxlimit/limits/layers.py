"""The tolerance divided among layers, each with the spectrum of its own block of the Hessian."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_choice, check_count, check_range, check_type
from jaxlimit._core.estimate import Estimate, value_of
from jaxlimit.limits.bounds import NEGATIVE, check_measure, lower_bound
from jaxlimit.limits.prediction import PruningLimit, pruning_limit
from jaxlimit.spectrum import SpectralMeasure, trace_bracket

_HALVINGS = 60  # of log c, from far below the least to far above the largest that matters


class LayerLimits(NamedTuple):
    """A limit for each layer, whose tolerances add up to that of the network.

    Attributes:
        limits: for each layer, what `pruning_limit` finds at its share of ε.
        epsilons: those shares.
        num_kept: weights kept in all layers together.
        ratio: `num_kept` over the weights of all layers.
        multiplier: weights saved by a unit of ε, the same in all layers.
    """

    limits: dict[str, PruningLimit]
    epsilons: dict[str, float]
    num_kept: int
    ratio: float
    multiplier: float


class _Curve(NamedTuple):
    """The lower convex hull of the weights kept against the tolerance, from ε = 0 on."""

    epsilons: np.ndarray
    counts: np.ndarray


def by_layer(
    measures: Mapping[str, SpectralMeasure],
    weights: Mapping[str, Float[Array, "_"]],
    *,
    epsilon: Any = None,
    ratio: float | None = None,
    negative: str = "abs",
    num_points: int = 256,
) -> LayerLimits:
    """Divide a tolerance among layers so that together they keep the fewest weights.

    Layer l of D_l weights keeps the least k_l with (1/D_l) tr f(H_ll; c_l) ≤ k_l/D_l, where
    c_l = 2ε_l/R_l(k_l)². Among all ε_l ≥ 0 with Σ ε_l = ε, the least Σ k_l has equal dk_l/dε_l in
    all layers. For each k the condition is solved for c, which gives ε_l(k) = R_l(k)² c/2 in closed
    form; on its convex hull the search for the multiplier is a sort. Needs no product, O(D log D)
    time, and memory of three copies of the weights of a layer.

    Args:
        measures: for each layer, the spectrum of its block H_ll.
        weights: for each layer, its weights, flat [D_l].
        epsilon: ε, the tolerance of the whole network, a number or an `Estimate`, whose value is
            used. Give either this or `ratio`.
        ratio: fraction of all weights to keep; the ε that this takes is then found.
        negative: "abs" or "clip"; see `pruning_limit`.
        num_points: number of points of each layer's curve, evenly spaced in log k.

    Returns:
        A `LayerLimits`. Each layer's limit is exactly that of `pruning_limit` at its share.
        The prediction leaves out the coupling of layers; see `coupling`.

    Raises:
        TypeError: if a measure is no `SpectralMeasure`.
        ValueError: if the layers of the two differ, both or neither of `epsilon` and `ratio` are
            given, or as `pruning_limit`.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> weights = {"steep": jnp.arange(1.0, 9.0), "flat": jnp.arange(1.0, 9.0)}
    >>> spectra = {"steep": exact_measure(jnp.full(8, 9.0)), "flat": exact_measure(jnp.ones(8))}
    >>> found = by_layer(spectra, weights, epsilon=10.0)
    >>> found.limits["steep"].num_kept > found.limits["flat"].num_kept
    Array(True, dtype=bool)
    """
    check_choice("negative", negative, NEGATIVE)
    check_count("num_points", num_points, 2)
    _check_layers(measures, weights)
    if (epsilon is None) == (ratio is None):
        raise ValueError(f"epsilon or ratio must be given, not both: got {epsilon} and {ratio}")
    if epsilon is not None:
        epsilon = float(value_of(epsilon))
        check_range("epsilon", epsilon, 0, float(np.finfo(np.float32).max))
    check_range("ratio", 0.0 if ratio is None else ratio, 0, 1)
    curves = {
        name: _hull(*_curve(measure, np.asarray(weights[name]), negative, num_points))
        for name, measure in measures.items()
    }
    dim = sum(measure.dim for measure in measures.values())
    target = None if ratio is None else ratio * dim
    shares, multiplier = _share_out(curves, epsilon, target)
    limits = {
        name: pruning_limit(measure, weights[name], shares[name], negative=negative)
        for name, measure in measures.items()
    }
    kept = sum(int(limit.num_kept) for limit in limits.values())
    return LayerLimits(limits, shares, kept, kept / dim, multiplier)


def coupling(
    whole: SpectralMeasure,
    measures: Mapping[str, SpectralMeasure],
    ridge: float,
    *,
    negative: str = "abs",
) -> Estimate:
    """Measure how strongly layers are coupled, by the excess of their traces over the whole.

    (Σ_l tr f(H_ll) - tr f(H)) / tr f(H), f(λ) = λ/(λ + c) at one common c. For a positive
    semi-definite H it is ≥ 0, and 0 if H has no entries between layers: f is concave, and the
    eigenvalues of the blocks are majorised by those of H.

    Args:
        whole: spectrum of H over all layers.
        measures: for each layer, the spectrum of its block.
        ridge: c > 0.
        negative: "abs" or "clip".

    Returns:
        An `Estimate`; its interval combines those of the traces as if they were independent.

    Raises:
        TypeError: if a measure is no `SpectralMeasure`.
        ValueError: if the layers together have another number of weights than the whole, or c ≤ 0.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> blocks = {"a": exact_measure(jnp.ones(1)), "b": exact_measure(jnp.ones(1))}
    >>> coupling(exact_measure(jnp.array([0.0, 2.0])), blocks, 1.0).value  # H is all ones
    Array(0.5, dtype=float32)

    Bhatia (1997), section II.5 and problem II.5.5 (pinching).
    """
    check_choice("negative", negative, NEGATIVE)
    check_range("ridge", ridge, 0, open_low=True)
    check_type("measures", measures, Mapping)
    for name, measure in {"whole": whole, **measures}.items():
        check_measure(name, measure)
    dims = [measure.dim for measure in measures.values()]
    if sum(dims) != whole.dim:
        raise ValueError(f"measures must have {whole.dim} weights together, got {sum(dims)}")
    trace = partial(lower_bound, radius=1.0, epsilon=ridge / 2, negative=negative)
    parts = [(measure.dim, trace(measure)) for measure in measures.values()]
    total = trace(whole)
    value = sum(dim * part.value for dim, part in parts) / whole.dim
    below = sum((dim * (part.value - part.lower)) ** 2 for dim, part in parts) / whole.dim**2
    above = sum((dim * (part.upper - part.value)) ** 2 for dim, part in parts) / whole.dim**2
    random = sum((dim * part.standard_error) ** 2 for dim, part in parts) / whole.dim**2
    quotient = value / total.value
    error = jnp.sqrt(random + (quotient * total.standard_error) ** 2) / total.value
    low = jnp.sqrt(below + (quotient * (total.upper - total.value)) ** 2) / total.value
    high = jnp.sqrt(above + (quotient * (total.value - total.lower)) ** 2) / total.value
    return Estimate(quotient - 1, error, quotient - 1 - low, quotient - 1 + high)


def _check_layers(measures: Mapping, weights: Mapping) -> None:
    check_type("measures", measures, Mapping)
    check_type("weights", weights, Mapping)
    if not measures or set(measures) != set(weights):
        raise ValueError(
            f"measures and weights must be of the same layers, got {sorted(measures)} and "
            f"{sorted(weights)}"
        )
    for name, measure in measures.items():
        check_measure(f"measures[{name!r}]", measure)
        if weights[name].shape != (measure.dim,):
            raise ValueError(
                f"weights[{name!r}] must be flat with the {measure.dim} entries of its measure, "
                f"got shape {weights[name].shape}"
            )


def _curve(
    measure: SpectralMeasure, weights: np.ndarray, negative: str, num_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tolerances and counts of a layer, from all weights kept to one."""
    dim = measure.dim
    counts = np.unique(np.geomspace(1, dim, num_points).round().astype(np.int64))[::-1]
    magnitudes = np.sort(np.abs(weights))
    squares = np.append(0.0, np.cumsum(magnitudes.astype(np.float64) ** 2))
    ridges = np.asarray(_ridges(measure, jnp.asarray(counts / dim), negative), np.float64)
    epsilons = ridges * squares[dim - counts] / 2
    return np.maximum.accumulate(epsilons), counts


@partial(jax.jit, static_argnames="negative")
def _ridges(measure: SpectralMeasure, ratios: Float[Array, "n"], negative: str):
    """Find c with (1/D) tr f(H; c) = ρ for each ratio, 0 where the trace is smaller at every c."""
    largest = jnp.max(jnp.abs(measure.nodes))
    largest = jnp.where(largest > 0, largest, 1)

    def demand(logarithm):
        def f(eigenvalues):
            size = jnp.abs(eigenvalues) if negative == "abs" else jnp.maximum(eigenvalues, 0)
            relative = size / largest
            whole = jnp.where(relative > 0, relative + jnp.exp(logarithm), 1)
            return relative / whole

        return trace_bracket(measure, f).value

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        asks_more = jax.vmap(demand)(middle) > ratios
        return jnp.where(asks_more, middle, low), jnp.where(asks_more, high, middle)

    least = jnp.full_like(ratios, -46.0)  # 1e-20 of the largest eigenvalue
    most = jnp.full_like(ratios, jnp.log(4.0 * measure.dim))
    enough = jax.vmap(demand)(least) <= ratios
    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (least, most))
    return jnp.where(enough, 0, jnp.exp(high) * largest)


def _hull(epsilons: np.ndarray, counts: np.ndarray) -> _Curve:
    """Return the lower convex hull of the counts, both arrays in order of rising tolerance."""
    hull: list[tuple[float, int]] = []
    for point in zip(epsilons.tolist(), counts.tolist(), strict=True):
        while hull and point[0] == hull[-1][0]:
            hull.pop()  # fewer weights for the same
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return _Curve(*map(np.asarray, zip(*hull, strict=True)))


def _above(first: tuple, middle: tuple, last: tuple) -> bool:
    (e0, k0), (e1, k1), (e2, k2) = first, middle, last
    return (k1 - k0) * (e2 - e0) >= (k2 - k0) * (e1 - e0)


def _share_out(
    curves: Mapping[str, _Curve], epsilon: float | None, target: float | None
) -> tuple[dict[str, float], float]:
    """Spend tolerance where it saves the most weights, until ε or the target is reached."""
    spent = {name: float(curve.epsilons[0]) for name, curve in curves.items()}
    kept = float(sum(curve.counts[0] for curve in curves.values()))
    left = np.inf if epsilon is None else epsilon - sum(spent.values())
    segments = sorted(
        (-(saved / cost), name, cost, -saved)
        for name, curve in curves.items()
        for cost, saved in zip(np.diff(curve.epsilons), -np.diff(curve.counts), strict=True)
    )
    rate = 0.0
    for slope, name, cost, loss in segments:
        surplus = np.inf if target is None else kept - target
        part = min(1.0, max(left, 0.0) / cost, max(surplus, 0.0) / -loss)
        if part == 0:
            break
        rate = -slope
        spent[name] += part * cost
        left -= part * cost
        kept += part * loss
    else:  # every layer is down to one weight
        spare = left / len(spent) if np.isfinite(left) else 0.0
        spent = {name: share + max(spare, 0.0) for name, share in spent.items()}
    return {name: float(share) for name, share in spent.items()}, float(rate)

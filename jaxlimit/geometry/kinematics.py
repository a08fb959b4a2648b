"""Intrinsic volumes of cones, and when two randomly rotated cones share a ray."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_choice, check_count, check_range, check_real, is_concrete
from jaxlimit.geometry._numerics import check_finite_range, chi_mean, widened
from jaxlimit.geometry.cones import check_circular, latitude_mass

Scalar = Float[Array, "..."] | float
IntrinsicVolumes = Float[Array, "... dim+1"]

_SUM_TOLERANCE = 1e-2  # for a vector in half precision; one that is no distribution is off by more


def intrinsic_volumes_subspace(k: Scalar, *, dim: int) -> IntrinsicVolumes:
    """Return v_j(L) = 1 at j = k and 0 elsewhere.

    Args:
        k: dimension of the subspace, an integer in [0, D], [...].
        dim: D.

    Returns:
        v, [..., D+1].

    Raises:
        ValueError: if k is out of range or no integer.

    >>> intrinsic_volumes_subspace(1, dim=2)
    Array([0., 1., 0.], dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), section 5.
    """
    dim = check_count("dim", dim)
    check_range("k", k, 0, dim)
    if is_concrete(k) and (np.asarray(k, np.float64) % 1).any():
        raise ValueError(f"k must be an integer, got {k}")
    return (jnp.asarray(k)[..., None] == jnp.arange(dim + 1)).astype(jnp.result_type(float, k))


def intrinsic_volumes_orthant(*, dim: int) -> IntrinsicVolumes:
    """Return the binomial v_j = C(D, j) / 2ᴰ of the nonnegative orthant.

    Args:
        dim: D ≥ 1.

    Returns:
        v, [D+1], in JAX's default float; no factorial is formed, so D may be millions.

    Raises:
        ValueError: if `dim` is below 1.

    >>> intrinsic_volumes_orthant(dim=2)
    Array([0.25, 0.5 , 0.25], dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), section 5.
    """
    dim = check_count("dim", dim)
    return _from_log_ratios(jnp.log(jnp.arange(dim, 0, -1) / jnp.arange(1, dim + 1)))


def intrinsic_volumes_circular_cone(half_angle: Scalar, *, dim: int) -> IntrinsicVolumes:
    """Return the intrinsic volumes of the circular cone of half-angle α in R^D.

    v_j = ½ C((D-2)/2, (j-1)/2) sin^(j-1) α cos^(D-j-1) α for 0 < j < D, with C the binomial
    continued to half-integers; v_D is the share of directions inside the cone, v_0 inside its
    polar.

    Args:
        half_angle: α in radians, in [0, π/2], [...].
        dim: D ≥ 2.

    Returns:
        v, [..., D+1]; no Gamma function is formed, so D may be millions.

    Raises:
        ValueError: if an argument is out of range.

    >>> intrinsic_volumes_circular_cone(jnp.pi / 6, dim=3)  # (1-sin, cos, sin, 1-cos) / 2
    Array([0.25..., 0.433..., 0.25..., 0.066...], dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), on the cones of proposition 3.4.
    """
    dim = check_count("dim", dim, 2)
    check_circular(dim, half_angle)
    return _circular_cone(half_angle, np.arange(2, dim))


@widened
def _circular_cone(angle: Array, orders: Array) -> Array:
    size = jnp.full_like(angle, orders.size + 2)
    total = 2 * latitude_mass(size, 0.0, np.pi / 2)
    first = latitude_mass(size, angle, np.pi / 2) / total
    last = latitude_mass(size, np.pi / 2 - angle, np.pi / 2) / total
    # Γ(x+½)/Γ(x) is a chi mean, so v_{j+1} / v_j needs no log-gamma.
    means = chi_mean(orders)
    slope = _log(jnp.sin(angle)) - _log(jnp.cos(angle))
    between = _from_log_ratios(slope[..., None] + jnp.log(means[::-1] / means))
    between = between * (1 - first - last)[..., None]
    return jnp.concatenate([first[..., None], between, last[..., None]], -1)


def _log(size: Array) -> Array:
    """Return the logarithm; at 0 that of the square root of the least number, so it is finite."""
    value = jax.lax.stop_gradient(size)
    least = float(jnp.finfo(size.dtype).tiny) ** 0.5
    return jnp.log(jnp.maximum(value, least) + (size - value))


@jax.jit
def _from_log_ratios(log_ratios: Float[Array, "... n"]) -> Float[Array, "... n+1"]:
    """Return the probabilities p ∝ exp(cumsum) from log p_{j+1}/p_j, which must decrease in j.

    Summed outwards from the mode: on each side of it the ratios have one sign, so nothing cancels,
    even in a long vector.
    """
    edge = jnp.zeros((*log_ratios.shape[:-1], 1), log_ratios.dtype)
    rise = jnp.cumsum(jnp.maximum(log_ratios, 0)[..., ::-1], -1)[..., ::-1]
    fall = jnp.cumsum(jnp.minimum(log_ratios, 0), -1)
    weights = jnp.exp(jnp.concatenate([edge, fall], -1) - jnp.concatenate([rise, edge], -1))
    return weights / weights.sum(-1, keepdims=True)


def _check_volumes(name: str, volumes: IntrinsicVolumes) -> None:
    """Raise unless `volumes` is a probability vector over at least two dimensions."""
    check_real(name, volumes)
    if jnp.ndim(volumes) < 1 or jnp.shape(volumes)[-1] < 2:
        raise ValueError(f"{name} must hold v_0 ... v_D, D >= 1, got shape {jnp.shape(volumes)}")
    if not is_concrete(volumes):
        return
    sums = np.asarray(volumes, np.float64).sum(-1)
    if not (np.asarray(volumes) >= 0).all() or not np.allclose(sums, 1, atol=_SUM_TOLERANCE):
        raise ValueError(f"{name} must be nonnegative and sum to 1, got sum {sums}")


def kinematic_probability(
    intrinsic_volumes_a: IntrinsicVolumes, intrinsic_volumes_b: IntrinsicVolumes
) -> Float[Array, "..."]:
    """Return the probability that a cone and a randomly rotated cone share a ray.

    The conic kinematic formula, exact:

        P{A ∩ QB ≠ {0}} = 2 (w_{D+1} + w_{D+3} + ...),   w_n = Σ_j v_j(A) v_{n-j}(B),

    Q uniform on the rotations. Two subspaces (the only cones with a v_j above ½) intersect with
    probability 1 if their dimensions add up to more than D, and 0 otherwise.

    Args:
        intrinsic_volumes_a: v(A), [..., D+1].
        intrinsic_volumes_b: v(B), [..., D+1]; leading axes broadcast.

    Returns:
        The probability, [...]; O(D) work.

    Raises:
        ValueError: if the lengths differ, or a vector is negative or does not sum to 1.

    >>> line, orthant = intrinsic_volumes_subspace(1, dim=3), intrinsic_volumes_orthant(dim=3)
    >>> kinematic_probability(line, orthant)  # a line meets 2 of the 8 octants
    Array(0.25, dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), the conic kinematic formula.
    """
    _check_volumes("intrinsic_volumes_a", intrinsic_volumes_a)
    _check_volumes("intrinsic_volumes_b", intrinsic_volumes_b)
    lengths = jnp.shape(intrinsic_volumes_a)[-1], jnp.shape(intrinsic_volumes_b)[-1]
    if lengths[0] != lengths[1]:
        raise ValueError(
            "intrinsic_volumes_a and intrinsic_volumes_b must have one length, "
            f"got {lengths[0]} and {lengths[1]}"
        )
    return _kinematic_probability(intrinsic_volumes_a, intrinsic_volumes_b)


@widened
def _kinematic_probability(a: Array, b: Array) -> Array:
    subspaces = (a.max(-1) > 0.75) & (b.max(-1) > 0.75)
    tails = jnp.where(subspaces[..., None], _tail_sums(b, 1), 2 * _tail_sums(b, 2))
    return jnp.clip((a * tails).sum(-1), 0, 1)


def _tail_sums(volumes: IntrinsicVolumes, stride: int) -> IntrinsicVolumes:
    """Return Σ_i v_{m + i stride} at m = D+1-j, for j = 0 ... D."""
    size = volumes.shape[-1]
    padding = [(0, 0)] * (volumes.ndim - 1) + [(1, size % stride)]
    shifted = jnp.pad(volumes[..., ::-1], padding)[..., : size + size % stride]
    columns = shifted.reshape(*volumes.shape[:-1], -1, stride)
    return jnp.cumsum(columns, -2).reshape(shifted.shape)[..., :size]


def kinematic_band(
    statistical_dimension: Scalar, dim: Scalar, confidence: Scalar, *, method: str = "refined"
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the dimensions between which a random subspace starts to hit a cone.

    For a cone C ≠ {0} of statistical dimension δ in R^D and a uniformly random k-dimensional
    subspace L: C ∩ L = {0} with probability ≥ `confidence` for every k ≤ k_low, and C ∩ L ≠ {0}
    with probability ≥ `confidence` for every k ≥ k_high. With ℓ = log 1/η, η = 1 - confidence:

    - "theorem-1": k = D - δ ± √(8 log(4/η)) √D.
    - "refined": k_low = D - δ - min{B(δ), 2√(δ°ℓ)}, k_high = D - δ + min{B(δ°), 2√(δℓ)}, where
      δ° = D - δ and B(x) = ⅔ℓ + √((⅔ℓ)² + 4xℓ): of width √min(δ, δ°) instead of √D.

    Derivation of the latter: V ∈ {0 ... D} with P{V = j} = v_j(C) satisfies, by the Steiner formula
    and the logarithmic Sobolev inequality for ‖Π_C(g)‖²,
    log E exp ξ(V - δ) ≤ (δ/2)(e^{2ξ} - 1 - 2ξ) for every real ξ. So V has the tails of twice a
    Poisson variable of mean δ/2, and D - V those of twice one of mean δ°/2. Bernstein's bound gives
    B above the mean and 2√(δℓ) below it; each tail of V may use either variable. Finally
    P{V ≥ D-k+1} ≤ P{C ∩ L ≠ {0}} ≤ P{V ≥ D-k}.

    Args:
        statistical_dimension: δ in [0, D], [...].
        dim: D ≥ 1, finite; broadcasts.
        confidence: in (0, 1), of each side; broadcasts.
        method: "refined" or "theorem-1".

    Returns:
        (k_low, k_high), real numbers, clamped to [0, D].

    Raises:
        ValueError: if an argument is out of range.

    >>> kinematic_band(20.0, 100, 0.95)
    (Array(62.39, dtype=float32), Array(95.48, dtype=float32))
    >>> kinematic_band(20.0, 1000, 0.95, method="theorem-1")
    (Array(792.8, dtype=float32), Array(1000., dtype=float32))

    Amelunxen, Lotz, McCoy, Tropp (2014), theorem I and the interlacing of section 5;
    McCoy, Tropp (2014) for the tails.
    """
    check_choice("method", method, ("refined", "theorem-1"))
    check_finite_range("dim", dim, 1)
    check_range("statistical_dimension", statistical_dimension, 0)
    check_range("confidence", confidence, 0, 1, open_low=True)
    if is_concrete(statistical_dimension, dim, confidence):
        excess = np.asarray(statistical_dimension, np.float64) / np.asarray(dim, np.float64)
        check_range("statistical_dimension / dim", excess, 0, 1 + 1e-6)
        check_range("1 - confidence", 1 - np.asarray(confidence, np.float64), 0, 1, open_low=True)
    compute = _refined_band if method == "refined" else _theorem_band
    return compute(statistical_dimension, dim, confidence)


@widened
def _theorem_band(delta: Array, dim: Array, confidence: Array) -> tuple[Array, Array]:
    half_width = jnp.sqrt(8 * (np.log(4) - jnp.log1p(-confidence)) * dim)
    center = dim - delta
    return jnp.clip(center - half_width, 0, dim), jnp.clip(center + half_width, 0, dim)


@widened
def _refined_band(delta: Array, dim: Array, confidence: Array) -> tuple[Array, Array]:
    log_odds = -jnp.log1p(-confidence)
    polar = jnp.where(delta > dim, 0, dim - delta)

    def bernstein(mean):
        return 2 / 3 * log_odds + jnp.sqrt((2 / 3 * log_odds) ** 2 + 4 * mean * log_odds)

    def gaussian(mean):
        # Infinite slope at 0, where the other bound reaches the end of the range too.
        none = mean == 0
        return jnp.where(none, jnp.inf, 2 * jnp.sqrt(jnp.where(none, 1, mean) * log_odds))

    below = jnp.minimum(bernstein(delta), gaussian(polar))
    above = jnp.minimum(bernstein(polar), gaussian(delta))
    return jnp.clip(polar - below, 0, dim), jnp.clip(polar + above, 0, dim)

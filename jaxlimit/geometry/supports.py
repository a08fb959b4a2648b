"""Support functions h(g) = sup_{x ∈ S} ⟨g, x⟩, and the Gaussian width of any set by Monte Carlo."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from jaxlimit._core import scale
from jaxlimit._core.checks import check_count, check_floating_tree, check_key, is_concrete
from jaxlimit._core.estimate import Estimate, estimate_from_samples
from jaxlimit.geometry._numerics import (
    STRETCH,
    TOLERANCE,
    as_operand,
    check_finite_range,
    check_point,
    check_vector,
    increasing_root,
    map_gaussian,
    map_rows,
)

Support = Callable[[Float[Array, " dim"]], Float[Array, ""]]


def _check_support(support: Support, points: Float[Array, "n dim"]) -> None:
    """Raise unless `support` is sublinear on `points`: h(t x) = t h(x), h(x+y) ≤ h(x) + h(y)."""
    got = jax.eval_shape(support, points[0]).shape
    if got != ():
        raise ValueError(f"support must map a vector to a number, got shape {got}")
    # With dense pairs alone, the k-th largest |g_i| and (Σ √|g_i|)² would pass. So pairs without
    # common entries are added: the first 1, 2, 4 ... in a random order, and as many after them.
    dim = points.shape[1]
    lengths = np.minimum(2 ** np.arange(1 + (dim - 1).bit_length()), dim)
    heads = jnp.where(jnp.argsort(points[1]) < lengths[:, None], points[0], 0)
    left = jnp.concatenate([points, heads[:-1]])
    right = jnp.concatenate([jnp.roll(points, 1, axis=0), jnp.diff(heads, axis=0)])
    rows = jnp.concatenate([left, STRETCH * left, right, left + right])
    operand = as_operand(support, jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype))
    values = map_rows(operand, rows)
    if not is_concrete(values):
        return
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("support must return finite numbers (a bounded set), got NaN or infinity")
    left, stretched, right, sums = np.split(values, 4)
    scale = abs(left).max()
    gap = abs(stretched / STRETCH - left).max()
    if gap > TOLERANCE * scale:
        raise ValueError(
            "support must be sublinear: positively homogeneous, support(t g) = t support(g); "
            f"on a sample it is off by {gap}"
        )
    gap = (sums - left - right).max()
    if gap > TOLERANCE * scale:
        raise ValueError(
            "support must be sublinear: support(g + h) <= support(g) + support(h); "
            f"on a sample it is above by {gap}"
        )


def gaussian_width(
    support: Support,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_samples: int,
    batch_size: int = 256,
    dtype: DTypeLike = float,
) -> Estimate:
    """Estimate the Gaussian width w(S) = ½ E sup_{x,y ∈ S} ⟨g, x-y⟩ from a support function.

    One sample is ½ (h(g) + h(-g)): translating S changes nothing, sample by sample.

    Args:
        support: h(g) = sup_{x ∈ S} ⟨g, x⟩, [dim] -> [], such as a `*_support` of this module. That
            it is sublinear is checked on a few samples, but not under `jit`.
        key: random key.
        dim: D.
        num_samples: Gaussian vectors; two evaluations each, and 20 + 4 ⌈log₂ D⌉ more for the
            check.
        batch_size: vectors at a time; memory is O((batch_size + log D) D).
        dtype: floating dtype of the samples.

    Returns:
        `Estimate` of the width; its standard error is at most
        (max_{x ∈ S} ‖x‖) / √num_samples for a set around the origin.

    Raises:
        TypeError: if a count is no integer, or `key` is no typed key.
        ValueError: if a count is below 1, or `support` is not sublinear or not finite.

    >>> import jax
    >>> support = cross_polytope_support(1.0)
    >>> width = gaussian_width(support, jax.random.key(0), dim=2, num_samples=4000)
    >>> width.value, width.standard_error  # the exact value is 2/√π = 1.128
    (Array(1.13, dtype=float32), Array(0.01, dtype=float32))

    Amelunxen, Lotz, McCoy, Tropp (2014), section 10, for the widths of cones.
    """
    dim, num_samples = check_count("dim", dim), check_count("num_samples", num_samples)
    batch_size = check_count("batch_size", batch_size)
    check_key("key", key)
    probe_key, key = jax.random.split(key)
    probes = jax.random.normal(probe_key, (5, dim), jnp.promote_types(dtype, jnp.float32))
    if is_concrete(probes):
        _check_support(support, probes)
    operand = as_operand(support, jax.ShapeDtypeStruct((dim,), dtype))
    samples = map_gaussian(_sample, operand, key, dim, num_samples, batch_size, dtype)
    return estimate_from_samples(samples)


def _sample(support: Support, direction: Float[Array, " dim"]) -> Float[Array, ""]:
    return (support(direction) + support(-direction)) / 2


def ball_support(radius: Float[Array, ""] | float) -> Support:
    """Return g ↦ r ‖g‖₂, the support function of the Euclidean ball.

    Args:
        radius: r ≥ 0, finite.

    Returns:
        Support function, O(D) a call.

    Raises:
        ValueError: if `radius` is negative or not finite.

    >>> ball_support(2.0)(jnp.array([3.0, 4.0]))
    Array(10., dtype=float32)
    """
    check_finite_range("radius", radius)
    return Partial(_ball_support, radius)


def _ball_support(radius, g):
    return radius * scale.norm(g)


def box_support(half_widths: Float[Array, " dim"]) -> Support:
    """Return g ↦ Σ b_i |g_i|, the support function of the box ∏ [-b_i, b_i].

    Args:
        half_widths: b, [D], ≥ 0, finite.

    Returns:
        Support function, O(D) a call.

    Raises:
        ValueError: if `half_widths` is no vector, or has an entry that is negative or not finite;
            of the support function, if g has not D entries.

    >>> box_support(jnp.array([1.0, 2.0]))(jnp.array([-3.0, 4.0]))
    Array(11., dtype=float32)
    """
    check_vector("half_widths", half_widths)
    check_finite_range("half_widths", half_widths)
    return Partial(_box_support, half_widths)


def _box_support(half_widths, g):
    check_point("g", g, half_widths.size)
    return jnp.sum(half_widths * abs(g), dtype=scale.wide_type(jnp.result_type(half_widths, g)))


def ellipsoid_support(semi_axes: Float[Array, " dim"]) -> Support:
    """Return g ↦ (Σ r_i² g_i²)^½, the support function of {x : Σ x_i²/r_i² ≤ 1}.

    Args:
        semi_axes: r, [D], ≥ 0, finite.

    Returns:
        Support function, O(D) a call.

    Raises:
        ValueError: if `semi_axes` is no vector, or has an entry that is negative or not finite;
            of the support function, if g has not D entries.

    >>> ellipsoid_support(jnp.array([1.0, 2.0]))(jnp.array([3.0, 2.0]))
    Array(5., dtype=float32)
    """
    check_vector("semi_axes", semi_axes)
    check_finite_range("semi_axes", semi_axes)
    return Partial(_ellipsoid_support, semi_axes)


def _ellipsoid_support(semi_axes, g):
    check_point("g", g, semi_axes.size)
    return scale.norm(semi_axes * g)


def cross_polytope_support(radius: Float[Array, ""] | float) -> Support:
    """Return g ↦ r max|g_i|, the support function of {x : ‖x‖₁ ≤ r}.

    Args:
        radius: r ≥ 0, finite.

    Returns:
        Support function, O(D) a call.

    Raises:
        ValueError: if `radius` is negative or not finite.

    >>> cross_polytope_support(2.0)(jnp.array([3.0, -4.0]))
    Array(8., dtype=float32)
    """
    check_finite_range("radius", radius)
    return Partial(_cross_polytope_support, radius)


def _cross_polytope_support(radius, g):
    return radius * jnp.max(abs(g))


def finite_set_support(points: Float[Array, "n dim"]) -> Support:
    """Return g ↦ max_i ⟨g, x_i⟩, the support function of finitely many points, or of their hull.

    Args:
        points: x, [n, D], n ≥ 1.

    Returns:
        Support function, O(nD) a call.

    Raises:
        TypeError: if `points` is not floating.
        ValueError: if `points` is no matrix, is empty or not finite; of the support function, if g
            has not D entries.

    >>> finite_set_support(jnp.eye(2))(jnp.array([3.0, 4.0]))
    Array(4., dtype=float32)
    """
    if jnp.ndim(points) != 2 or jnp.shape(points)[0] < 1:
        raise ValueError(f"points must be [n, dim] with n >= 1, got shape {jnp.shape(points)}")
    check_floating_tree("points", points)
    return Partial(_finite_set_support, points)


def _finite_set_support(points, g):
    check_point("g", g, points.shape[1])
    wide = scale.wide_type(jnp.result_type(points, g))
    return jnp.max(jnp.matmul(points, g, preferred_element_type=wide))


def l1_l2_ball_support(
    l1_radius: Float[Array, ""] | float, l2_radius: Float[Array, ""] | float
) -> Support:
    """Return the support function of {x : ‖x‖₁ ≤ τ, ‖x‖₂ ≤ r}, g ↦ min_{λ≥0} λτ + r ‖(|g|-λ)₊‖₂.

    Args:
        l1_radius: τ ≥ 0, finite.
        l2_radius: r ≥ 0, finite, in the same unit.

    Returns:
        Support function, about 40 passes of O(D) a call.

    Raises:
        ValueError: if a radius is negative or not finite.

    >>> l1_l2_ball_support(1.0, 1.0)(jnp.array([3.0, 4.0]))  # the cross-polytope, inside the ball
    Array(4., dtype=float32)
    """
    check_finite_range("l1_radius", l1_radius)
    check_finite_range("l2_radius", l2_radius)
    return Partial(_l1_l2_ball_support, l1_radius, l2_radius)


def _l1_l2_ball_support(l1_radius, l2_radius, g):
    sizes = abs(g).astype(scale.wide_type(jnp.result_type(g)))

    def slope(threshold):
        excess = jnp.maximum(sizes - threshold, 0)
        norm = scale.norm(excess)
        return l1_radius - l2_radius * jnp.sum(excess) / jnp.where(norm > 0, norm, 1)

    largest = jnp.max(sizes)
    threshold = jax.lax.stop_gradient(increasing_root(slope, jnp.zeros_like(largest), largest))
    inside = threshold * l1_radius + l2_radius * scale.norm(jnp.maximum(sizes - threshold, 0))
    return jnp.minimum(inside, l1_radius * largest)

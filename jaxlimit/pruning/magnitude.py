"""Global one-shot magnitude pruning: masks, and what they remove and keep.

Ratios are fractions of weights *kept*. Everything orders the weights under study by magnitude over
all layers at once; among equal magnitudes the lower flat index is kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import magnitudes, scale
from jaxlimit._core.batches import check_like
from jaxlimit._core.checks import check_floating_tree, check_range, check_real, is_concrete
from jaxlimit._core.sharding import auto
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected


@auto
def magnitude_mask(params: Any, ratio: Any, *, where: Where = is_weight) -> Any:
    """Mark the weights of greatest magnitude.

    Keeps ⌊ratio · D + ½⌋ of the D weights under study. Costs some 32 passes over them; works
    under `jit` with a traced ratio.

    Args:
        params: pytree of real floating arrays.
        ratio: fraction kept, in [0, 1].
        where: which leaves are under study; the others are marked kept.

    Returns:
        A pytree of Booleans like `params`. Under `jit`, where nothing can be raised, a NaN in a
        weight or in the ratio leaves everything under study unmarked.

    Raises:
        TypeError: if a leaf of `params` is not real floating, or `ratio` no real number.
        ValueError: if `ratio` lies outside [0, 1], or `params` is not finite or selects nothing.

    >>> import jax.numpy as jnp
    >>> magnitude_mask(jnp.array([0.1, -3.0, 2.0, 2.0]), 0.5)
    Array([False,  True,  True, False], dtype=bool)
    """
    check_range("ratio", ratio, 0, 1)
    weights, unflatten = flatten_weights(params, where)
    keep = magnitudes.keep_largest(weights, num_kept(weights.size, ratio))
    marks = unflatten(keep.astype(weights.dtype))
    return jax.tree.map(
        lambda mark, studied: mark > 0 if studied else jnp.ones_like(mark, bool),
        marks,
        jax.tree.unflatten(jax.tree.structure(marks), selected(params, where)),
    )


def flat_magnitude_mask(weights: Float[Array, "D"], num_kept: Any) -> Bool[Array, "D"]:
    """Mark the `num_kept` entries of greatest magnitude of a flat vector.

    Args:
        weights: [D], real floating.
        num_kept: how many to mark, in [0, D].

    Returns:
        Booleans [D]. Under `jit`, where nothing can be raised, all False if an entry is NaN.

    Raises:
        TypeError: if `weights` is not real floating, or `num_kept` no integer.
        ValueError: if `weights` is no vector or not finite, or `num_kept` lies outside [0, D].

    >>> import jax.numpy as jnp
    >>> flat_magnitude_mask(jnp.array([0.1, -3.0, 2.0]), 1)
    Array([False,  True, False], dtype=bool)
    """
    check_floating_tree("weights", weights)
    if jnp.ndim(weights) != 1:
        raise ValueError(f"weights must be a vector [D], got shape {jnp.shape(weights)}")
    if not jnp.issubdtype(check_real("num_kept", num_kept), jnp.integer):
        raise TypeError(f"num_kept must be an integer, got {num_kept!r}")
    check_range("num_kept", num_kept, 0, weights.size)
    return magnitudes.keep_largest(weights, jnp.asarray(num_kept, jnp.int32))


@auto
def apply_mask(params: Any, mask: Any) -> Any:
    """Set the weights outside a mask to zero.

    Args:
        params: pytree of arrays.
        mask: pytree like it, of Booleans, or of the numbers 0 and 1.

    Returns:
        A pytree like `params`. Under `jit`, NaN where an entry of `mask` is neither 0 nor 1.

    Raises:
        TypeError: if a leaf of `mask` is neither Boolean nor a real number.
        ValueError: if `mask` has another structure or other shapes than `params`, or an entry that
            is neither 0 nor 1.

    >>> import jax.numpy as jnp
    >>> apply_mask(jnp.array([1.0, 2.0]), jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """
    check_like("mask", mask, params)
    return jax.tree_util.tree_map_with_path(_apply_mask, params, mask)


def _apply_mask(path: Any, leaf: Any, keep: Any) -> Array:
    keep = jnp.asarray(keep)
    if keep.dtype == bool:
        return jnp.where(keep, leaf, 0)
    name = "mask" + jax.tree_util.keystr(path)
    check_real(name, keep)
    is_mark = (keep == 0) | (keep == 1)
    if is_concrete(is_mark) and not bool(is_mark.all()):
        raise ValueError(f"{name} must hold Booleans, or 0 and 1, got another number or NaN")
    return jnp.where(is_mark, jnp.where(keep == 1, leaf, 0), jnp.nan)


@auto
def removed_norm(params: Any, ratio: Any, *, where: Where = is_weight) -> Float[Array, ""]:
    """Return the norm of the weights that magnitude pruning removes.

    R(ρ) = ‖w* - w^k‖₂, k = ⌊ρD + ½⌋. Costs the mask and one pass over the weights.

    Args:
        params: pytree of real floating arrays.
        ratio: fraction kept, in [0, 1].
        where: which leaves are under study.

    Returns:
        R, in float32 at least. Under `jit`, NaN if a weight or the ratio is NaN.

    Raises:
        TypeError: as `magnitude_mask`.
        ValueError: as `magnitude_mask`.

    >>> import jax.numpy as jnp
    >>> removed_norm(jnp.array([3.0, 4.0, 12.0]), 1 / 3)
    Array(5., dtype=float32)
    """
    check_range("ratio", ratio, 0, 1)
    weights, _ = flatten_weights(params, where)
    return _removed_norm(weights, num_kept(weights.size, ratio))


@jax.jit
def _removed_norm(weights, kept):
    at, _ = magnitudes.find_split(magnitudes.magnitude_bits(weights), lambda k, _: k < kept)
    return jnp.where(jnp.isfinite(weights).all() & (kept >= 0), at.radius(kept), jnp.nan)


def num_kept(dim: int, ratio: Any) -> Int[Array, "..."]:
    """Return the number of weights that a ratio keeps: ⌊ratio · dim + ½⌋.

    Exact for the ratio as rounded to float32 and every dim below 2³¹. A product of floats would
    lose units above 2²⁴; integers are multiplied instead, in halves, since 64-bit types may be
    switched off.

    Args:
        dim: number of weights, at most 2³¹ - 1.
        ratio: fraction kept, any shape; clipped to [0, 1].

    Returns:
        The number, of the shape of `ratio`; -1 where `ratio` is NaN.

    >>> num_kept(1_000_000_007, 0.5)
    Array(500000004, dtype=int32)
    """
    ratio = jnp.asarray(ratio, jnp.float32)
    within = jnp.where((ratio > 0) & (ratio < 1), ratio, 0)
    mantissa, exponent = jnp.frexp(within)
    # ratio = digits · 2^-(24 - exponent) with 24 binary digits.
    high, low = _product(jnp.ldexp(mantissa, 24).astype(jnp.uint32), jnp.uint32(dim))
    shift = (23 - exponent).astype(jnp.uint32)  # one less: the last bit is rounded
    upper = jnp.where(shift < 32, high << ((32 - shift) & 31), high >> jnp.minimum(shift - 32, 31))
    doubled = upper | jnp.where(shift < 32, low >> jnp.minimum(shift, 31), 0)
    count = ((doubled + 1) >> 1).astype(jnp.int32)
    return jnp.where(jnp.isnan(ratio), -1, jnp.where(ratio < 1, count, dim))


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """Multiply 24 bits by 31 bits; return the words above and below 2³²."""
    (a_high, a_low), (b_high, b_low) = ((x >> 16, x & 0xFFFF) for x in (a, b))
    lowest = a_low * b_low
    middle = a_high * b_low + (lowest >> 16)
    other = a_low * b_high + (middle & 0xFFFF)
    high = a_high * b_high + (middle >> 16) + (other >> 16)
    return high, (other << 16) | (lowest & 0xFFFF)


@auto
def support_fraction(
    params: Any, *, relative_norm: float = 1e-3, where: Where = is_weight
) -> Float[Array, ""]:
    """Measure the fraction of weights that an l1-trained network really uses.

    The smallest fraction such that the removed rest has norm at most `relative_norm` · ‖w‖₂.
    Counting nonzero weights does not work, since subgradients drive weights close to zero but not
    to zero.

    Args:
        params: pytree of real floating arrays.
        relative_norm: the share of the norm that is neglected.
        where: which leaves are under study.

    Returns:
        The fraction. Under `jit`, NaN if a weight is NaN.

    Raises:
        TypeError: as `magnitude_mask`.
        ValueError: if `relative_norm` is negative or NaN, or as `magnitude_mask`.

    >>> import jax.numpy as jnp
    >>> support_fraction(jnp.array([1.0, 2.0, 1e-5, 0.0]))
    Array(0.5, dtype=float32)
    """
    check_range("relative_norm", relative_norm, 0)
    weights, _ = flatten_weights(params, where)
    return _support_fraction(weights, relative_norm)


@jax.jit
def _support_fraction(weights, relative_norm):
    bits = magnitudes.magnitude_bits(weights)
    allowed = relative_norm * scale.norm(weights)
    _, kept = magnitudes.find_split(bits, lambda _, radius: radius > allowed)
    return jnp.where(jnp.isfinite(allowed), kept / weights.size, jnp.nan)

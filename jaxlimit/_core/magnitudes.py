"""Order by magnitude without sorting: bisection over the bit patterns of |w|.

The bits of non-negative floats, read as integers, are in the floats' own order, so a threshold is
found exactly in as many passes over the weights as the type has bits, and several thresholds in
the same passes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 1 << 17


class Split(NamedTuple):
    """The weights at a threshold t: how many above, how many equal, and the norm of those below."""

    num_above: Int[Array, "..."]
    num_ties: Int[Array, "..."]
    radius_below: Float[Array, "..."]
    magnitude: Float[Array, "..."]

    def radius(self, num_kept: Int[Array, "..."]) -> Float[Array, "..."]:
        """Norm of what is removed where `num_kept`, from num_above to +num_ties, are kept."""
        removed_ties = self.num_above + self.num_ties - num_kept
        return jnp.hypot(self.radius_below, jnp.sqrt(removed_ties) * self.magnitude)


class _Tally(NamedTuple):
    """What keeping only the magnitudes above a threshold keeps, and the norm it removes."""

    threshold: Int[Array, "..."]
    num_above: Int[Array, "..."]
    radius: Float[Array, "..."]


def magnitude_bits(weights: Float[Array, "D"]) -> Int[Array, "rows _"]:
    """Return the bits of |w|, in rows of equal length, padded with -1."""
    kind = jnp.int32 if weights.dtype.itemsize <= 4 else jnp.int64
    bits = jax.lax.bitcast_convert_type(jnp.abs(weights).astype(_wide(kind)), kind)
    rows = -(-bits.size // _BLOCK)
    return jnp.pad(bits, (0, -bits.size % rows), constant_values=-1).reshape(rows, -1)


def find_split(
    bits: Int[Array, "rows _"],
    keeps_too_few: Callable[[Int, Float], Bool[Array, "..."]],
    shape: tuple[int, ...] = (),
) -> tuple[Split, Int[Array, "..."]]:
    """Find the fewest weights that may be kept, by magnitude.

    Args:
        bits: from `magnitude_bits`.
        keeps_too_few: `keeps_too_few(num_kept, radius)`, False from some count on and True below.
        shape: of the two, for several conditions that share the passes over the weights.

    Returns:
        The split at the last weight kept, and the count.
    """

    def halve(_, ends):
        low, high = ends
        at = _tally(bits, low.threshold + (high.threshold - low.threshold) // 2)
        few = keeps_too_few(at.num_above, at.radius)
        return _choose(few, low, at), _choose(few, at, high)

    # Above -1 is everything, which is enough; above the largest is nothing, taken as too few.
    full = partial(jnp.full, shape)
    dim = bits[:-1].size + jnp.sum(bits[-1] >= 0)
    everything = _Tally(full(-1, bits.dtype), full(dim), full(0, _wide(bits.dtype)))
    nothing = everything._replace(threshold=full(jnp.max(bits)), num_above=full(0))
    num_bits = 8 * bits.dtype.itemsize - 1
    low, high = jax.lax.fori_loop(0, num_bits, halve, (everything, nothing))
    num_ties = low.num_above - high.num_above
    at = Split(high.num_above, num_ties, low.radius, _from_bits(high.threshold))
    return at, _keep_of_ties(at, keeps_too_few)


def _keep_of_ties(at: Split, keeps_too_few: Callable) -> Int[Array, "..."]:
    """Find the fewest kept, from none of the ties to all of them."""

    def halve(ends):
        low, high = ends  # taken as too few at low, as enough at high
        middle = low + (high - low) // 2
        few = keeps_too_few(middle, at.radius(middle))
        return jnp.where(few, middle, low), jnp.where(few, high, middle)

    # From one below, the loop asks about none of the ties too: to ask before it would compile the
    # question, which is long, once more.
    ends = (at.num_above - 1, at.num_above + at.num_ties)
    return jax.lax.while_loop(lambda ends: jnp.any(ends[1] - ends[0] > 1), halve, ends)[1]


def _tally(bits: Int[Array, "rows _"], thresholds: Int[Array, "..."]) -> _Tally:
    """Count and sum at all thresholds in one pass."""
    # Divided by a power of two at the threshold, or squares would leave the range of the type.
    units = _power_of_two(_from_bits(jnp.maximum(thresholds, 0)))
    inverse = (1 / units)[..., None]

    def of_row(row):
        below = row <= thresholds[..., None]
        squares = (_from_bits(jnp.maximum(row, 0)) * inverse) ** 2
        # Counted in floats, exact for a row and faster on a CPU.
        return jnp.sum(jnp.where(below, 0.0, 1.0), -1), jnp.sum(jnp.where(below, squares, 0), -1)

    # Row by row because the CPU's compiler makes one scalar loop of reductions that share their
    # operand if that is long, ten times slower.
    counts, squares = jax.lax.platform_dependent(
        bits, cpu=partial(jax.lax.map, of_row), default=jax.vmap(of_row)
    )
    radius = units * jnp.sqrt(squares.sum(0))
    return _Tally(thresholds, counts.astype(jnp.int32).sum(0), radius)


def _power_of_two(size: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the power of two at or below each size, none so small or large that 1 over it is 0."""
    info = jnp.finfo(size.dtype)
    size = jnp.clip(size, float(info.tiny), float(info.max) / 4)
    return jax.lax.reduce_precision(size, exponent_bits=info.nexp, mantissa_bits=0)


def _choose(condition: Bool[Array, "..."], yes: _Tally, no: _Tally) -> _Tally:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


@jax.jit
def keep_largest(weights: Float[Array, "D"], num_kept: Int[Array, ""]) -> Bool[Array, "D"]:
    """Mark the `num_kept` entries of greatest magnitude; among equals the lower index wins.

    None where there is a NaN, or where `num_kept` is negative.
    """
    bits = magnitude_bits(weights)
    at, _ = find_split(bits, lambda kept, radius: kept < num_kept)
    flat = bits.reshape(-1)[: weights.size]
    threshold = jax.lax.bitcast_convert_type(at.magnitude, bits.dtype)
    tied = flat == threshold
    keep = (flat > threshold) | (tied & (jnp.cumsum(tied) <= num_kept - at.num_above))
    return keep & (num_kept >= 0) & ~jnp.isnan(weights).any()


@jax.jit
def ranks(weights: Float[Array, "D"]) -> Int[Array, "D"]:
    """Return each entry's place in the order of magnitude, greatest first, by one stable sort."""
    # The bits, not the floats, are sorted: where subnormal floats compare equal to 0, bits do not.
    bits = magnitude_bits(weights).reshape(-1)[: weights.size]
    order = jnp.argsort(bits, descending=True, stable=True)
    places = jnp.arange(weights.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True)


def _wide(kind: Any) -> Any:
    return jnp.float32 if kind == jnp.int32 else jnp.float64


def _from_bits(bits: Int[Array, "..."]) -> Float[Array, "..."]:
    return jax.lax.bitcast_convert_type(bits, _wide(bits.dtype))

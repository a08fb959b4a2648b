"""Order by magnitude without sorting: bisection over the bit patterns of |w|.

The bits of non-negative floats, read as integers, are in the floats' own order, so a threshold is
found exactly in as many passes over the weights as the type has bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_ROW = 1 << 12


class Split(NamedTuple):
    """The weights at a threshold t: how many above, how many equal, and the squares below."""

    num_above: Int[Array, ""]
    num_ties: Int[Array, ""]
    squares_below: Float[Array, ""]
    magnitude: Float[Array, ""]

    def radius(self, num_kept: Int[Array, ""]) -> Float[Array, ""]:
        """Norm of what is removed where `num_kept`, from num_above to +num_ties, are kept."""
        removed_ties = self.num_above + self.num_ties - num_kept
        return jnp.sqrt(self.squares_below + removed_ties * self.magnitude**2)


def magnitude_bits(weights: Float[Array, "D"]) -> Int[Array, "rows _"]:
    """Return the bits of |w|, in rows (padded with -1) so that sums over them keep precision."""
    kind = jnp.int32 if weights.dtype.itemsize <= 4 else jnp.int64
    wide = jnp.float32 if kind == jnp.int32 else jnp.float64
    bits = jax.lax.bitcast_convert_type(jnp.abs(weights).astype(wide), kind)
    padding = -bits.size % _ROW
    return jnp.pad(bits, (0, padding), constant_values=-1).reshape(-1, _ROW)


def split_at(bits: Int[Array, "rows _"], threshold: Int[Array, ""]) -> Split:
    """Count and sum around one threshold, in one pass."""
    magnitudes = _from_bits(bits)
    below = (bits < threshold) & (bits >= 0)
    return Split(
        num_above=jnp.sum(bits > threshold),
        num_ties=jnp.sum(bits == threshold),
        squares_below=jnp.sum(jnp.where(below, magnitudes**2, 0), axis=1).sum(),
        magnitude=_from_bits(threshold),
    )


def find_split(
    bits: Int[Array, "rows _"], keeps_too_few: Callable[[Int, Float], Bool[Array, ""]]
) -> tuple[Split, Int[Array, ""]]:
    """Find the fewest weights that may be kept, by magnitude.

    Args:
        bits: from `magnitude_bits`.
        keeps_too_few: `keeps_too_few(num_kept, radius)`, False from some count on and True below.

    Returns:
        The split at the last weight kept, and the count.
    """

    def halve(_, ends):
        low, high = ends  # keeping what is above: enough at low, too few at high
        middle = low + (high - low) // 2
        at = split_at(bits, middle)
        few = keeps_too_few(at.num_above, at.radius(at.num_above))
        return jnp.where(few, low, middle), jnp.where(few, middle, high)

    num_bits = 8 * bits.dtype.itemsize - 1
    # Below every magnitude everything is kept; `high` is the largest, where nothing is.
    ends = (jnp.asarray(-1, bits.dtype), jnp.max(bits))
    _, threshold = jax.lax.fori_loop(0, num_bits, halve, ends)
    at = split_at(bits, threshold)

    def halve_ties(_, ends):
        low, high = ends  # too few at low, enough at high
        middle = low + (high - low) // 2
        few = keeps_too_few(middle, at.radius(middle))
        return jnp.where(few, middle, low), jnp.where(few, high, middle)

    enough_with_none = ~keeps_too_few(at.num_above, at.radius(at.num_above))
    ends = (at.num_above, at.num_above + at.num_ties)
    _, num_kept = jax.lax.fori_loop(0, 32, halve_ties, ends)
    return at, jnp.where(enough_with_none, at.num_above, num_kept)


def keep_largest(weights: Float[Array, "D"], num_kept: Int[Array, ""]) -> Bool[Array, "D"]:
    """Mark the `num_kept` entries of greatest magnitude; among equals the lower index wins."""
    bits = magnitude_bits(weights)
    at, _ = find_split(bits, lambda kept, radius: kept < num_kept)
    flat = bits.reshape(-1)[: weights.size]
    threshold = jax.lax.bitcast_convert_type(at.magnitude, bits.dtype)
    tied = flat == threshold
    return (flat > threshold) | (tied & (jnp.cumsum(tied) <= num_kept - at.num_above))


@jax.jit
def ranks(weights: Float[Array, "D"]) -> Int[Array, "D"]:
    """Return each entry's place in the order of magnitude, greatest first, by one stable sort."""
    order = jnp.argsort(-jnp.abs(weights), stable=True)
    places = jnp.arange(weights.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True)


def _from_bits(bits: Int[Array, "..."]) -> Float[Array, "..."]:
    wide = jnp.float32 if bits.dtype == jnp.int32 else jnp.float64
    return jax.lax.bitcast_convert_type(bits, wide)

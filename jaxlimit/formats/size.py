"""How many bytes pruned parameters take, dense and sparse."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np


class Size(NamedTuple):
    """Bytes of pruned parameters in three forms.

    Attributes:
        num_weights: number of weights.
        num_kept: number of nonzero weights.
        dense: bytes of all weights.
        bitmap: bytes of the nonzero weights and one bit for each weight.
        indexed: bytes of the nonzero weights and a 32-bit index for each, or 64 bits in a leaf of
            more than 2³² weights.
    """

    num_weights: int
    num_kept: int
    dense: int
    bitmap: int
    indexed: int

    def __str__(self) -> str:
        """Say in one line what each form takes."""
        sparse, how = min((self.bitmap, "a bitmap"), (self.indexed, "32-bit places"))
        share = sparse / self.dense if self.dense else 1
        dense, sparse = map(readable_bytes, (self.dense, sparse))
        return (
            f"{self.num_kept:,} of {self.num_weights:,} numbers are not zero: "
            f"{dense} dense, {sparse} sparse (values and {how}; "
            f"{share:.2%} of dense)"
        )


def stored_size(params: Any) -> Size:
    """Count the bytes of pruned parameters, dense and in two sparse forms.

    Args:
        params: pytree of arrays, with pruned weights 0.

    Returns:
        A `Size`.

    >>> print(stored_size({"w": np.array([0, 0, 3, 0] * 25, np.float32)}))
    25 of 100 numbers are not zero: 400 bytes dense, 113 bytes sparse (values and a bitmap; 28.25% of dense)
    """  # noqa: E501
    sizes = [_of_leaf(np.asarray(leaf)) for leaf in jax.tree.leaves(params)]
    return Size(*(sum(parts) for parts in zip(*sizes, strict=True))) if sizes else Size(*[0] * 5)


def _of_leaf(leaf: np.ndarray) -> Size:
    kept = int(np.count_nonzero(leaf))
    values = kept * leaf.itemsize
    place = 4 if leaf.size <= 2**32 else 8
    return Size(leaf.size, kept, leaf.nbytes, values + -(-leaf.size // 8), values + place * kept)


def readable_bytes(count: float) -> str:
    """Show bytes with three digits.

    >>> readable_bytes(113), readable_bytes(34_567)
    ('113 bytes', '34.6 kB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {('', 'kB', 'MB', 'GB', 'TB')[power]}"

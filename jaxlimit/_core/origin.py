"""Digests of the parts of an operator, the same for any batches and any mesh."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from jaxlimit._core.digests import digests, mixed_words, without_keys
from jaxlimit._core.functions import Frozen

# Other versions write the same computation in other words.
PROGRAM = f"program of JAX {jax.__version__}"


class Origin:
    """Digests of the parts of an operator, computed on first use.

    All origins are equal, so that operators of different data share compiled programs.
    """

    def __init__(self, digests: Callable[[], dict]) -> None:
        self.digests = digests

    def restricted(self, index: Int[Array, "k"]) -> "Origin":
        """Return that of a principal submatrix."""

        def digests():
            found = self.digests()
            index_bytes = np.ascontiguousarray(index, np.int64).tobytes()
            return found | {"mask": zlib.crc32(index_bytes, found.get("mask", 0))}

        return Origin(digests)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0


def digest_of(tree: Any) -> int:
    """Return one number for a tree of arrays, whatever their layout over devices."""
    return zlib.crc32(repr(sorted(digests(tree).items())).encode())


def examples_digest(stacks: Iterable) -> int:
    """Return one number for a set of examples, independent of their order and batches.

    Args:
        stacks: pytrees whose leaves are [examples, ...].

    >>> whole = [{"x": jnp.arange(6.0).reshape(3, 2)}]
    >>> parts = [{"x": jnp.array([[4.0, 5.0]])}, {"x": jnp.arange(4.0).reshape(2, 2)}]
    >>> examples_digest(whole) == examples_digest(parts)
    True
    """
    return sum(int(_of_stack(jax.tree.map(jnp.asarray, stack))) for stack in stacks) % 2**32


@jax.jit
def _of_stack(stack: Any) -> UInt32[Array, ""]:
    leaves = jax.tree.leaves(without_keys(stack))
    mixed = [mixed_words(leaf, i) for i, leaf in enumerate(leaves)]
    total = sum(x.sum(tuple(range(1, x.ndim)), dtype=jnp.uint32) for x in mixed)
    return mixed_words(jnp.asarray(total), None).sum(dtype=jnp.uint32)


def program_digest(function: Callable, *args: Any) -> dict[str, str]:
    """Tell what a function computes, as an entry of an identity; empty where nothing tells it."""
    try:
        told = Frozen(function, *args).digest
    except Exception:  # whatever the loss raises
        return {}
    return {} if told is None else {PROGRAM: told}

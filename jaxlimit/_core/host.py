"""Products that loop on the host, over data too large for a compiled program to hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlimit._core.checks import is_concrete


@dataclass(frozen=True, eq=False)
class HostMatvec:
    """A product that reads its data as it goes, so that it runs eagerly and cannot be traced.

    Attributes:
        product: the product itself, from [dim] to [dim].
        dim: size of its vectors.
        dtype: type of its vectors; None takes any.
    """

    product: Callable[[Array], Array]
    dim: int
    dtype: Any = None

    def __call__(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """Multiply one vector.

        Raises:
            TypeError: if it is called under `jit`, `vmap` or `scan`, or `vector` has another type.
            ValueError: if `vector` has another shape.
        """
        if not is_concrete(vector):
            raise TypeError(
                "matvec reads batches from an iterator on the host and cannot run under jit, vmap "
                "or scan: call it eagerly, or stack the batches and use hessian_matvec"
            )
        check_vector(vector, self.dim, self.dtype)
        return self.product(vector)


def check_vector(vector: Array, dim: int, dtype: Any = None) -> None:
    """Raise unless `vector` is one that an operator on [dim] takes."""
    if getattr(vector, "shape", None) != (dim,):
        raise ValueError(f"vector must have shape ({dim},), got {getattr(vector, 'shape', vector)}")
    check_same_dtype(jnp.result_type(vector), dtype)


def check_same_dtype(found: Any, dtype: Any) -> None:
    """Raise unless vectors of type `found` are those of an operator on `dtype`, None for any."""
    if dtype is not None and found != dtype:
        raise TypeError(f"vector must have dtype {dtype}, that of the weights, got {found}")

"""What all algorithms do with a matvec: check it, carry it through `jit`, apply it in blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Int

from jaxlimit._core.checks import check_count, is_concrete
from jaxlimit._core.host import HostMatvec, check_same_dtype

ALL_FINITE = -1

# Orthogonality must not be lost to the shortened products that accelerators take by default.
dot = partial(jnp.matmul, precision="highest")


def prepare(
    matvec: Any, dim: Any, dtype: Any, *, instead: str | None = None
) -> tuple[Any, int, jnp.dtype]:
    """Return `matvec` as a pytree with `dim` and `dtype` checked against what it maps.

    A `HostMatvec` cannot be compiled, so it passes as it is, or is refused where `instead` says
    what to use in place of the caller.

    Raises:
        TypeError: if `dim` is no static int, `dtype` or what `matvec` returns is not real floating,
            or `matvec` is on vectors of another type.
        ValueError: if `dim` < 1, `matvec` does not map [D] to [D], or 64-bit floats are asked for
            where JAX has them switched off.
    """
    dim, dtype = check_count("dim", dim), check_dtype(dtype)
    if isinstance(matvec, HostMatvec):
        if instead is not None:
            raise TypeError(
                "matvec reads batches from an iterator on the host and cannot be compiled: "
                f"{instead}, or stack the batches and use curvature.hessian_matvec"
            )
        check_same_dtype(dtype, matvec.dtype)
        if matvec.dim != dim:
            raise ValueError(f"matvec must map [{dim}] to [{dim}], it maps [{matvec.dim}]")
        return matvec, dim, dtype
    result = jax.eval_shape(matvec, jax.ShapeDtypeStruct((dim,), dtype))
    if getattr(result, "shape", None) != (dim,):
        raise ValueError(f"matvec must map [{dim}] to [{dim}], it returns {result}")
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"matvec must return real floating entries, got dtype {result.dtype}")
    return matvec if isinstance(matvec, Partial) else Partial(matvec), dim, dtype


def check_dtype(dtype: Any) -> jnp.dtype:
    """Return `dtype`, or raise unless it is a real floating type that JAX can hold as it is set."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be real floating, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype {dtype} needs 64-bit JAX: set jax_enable_x64, or use float32")
    return dtype


def check_factorable(dtype: jnp.dtype) -> None:
    """Raise unless matrices of this type can be factored."""
    if dtype.itemsize < 4:
        raise TypeError(f"dtype must be float32 or float64, which can be factored, got {dtype}")


def apply(matvec: Any, vector: Array) -> Array:
    """Make one product, compiled once for all operators of a kind."""
    return matvec(vector) if isinstance(matvec, HostMatvec) else _apply(matvec, vector)


@jax.jit
def _apply(matvec: Partial, vector: Array) -> Array:
    return matvec(vector)


def map_blocks(function: Callable, inputs: Any, block_size: int) -> Any:
    """Map over the first axis, `block_size` entries at once (1 needs no batching rule)."""
    if block_size == 1:
        return jax.lax.map(function, inputs)
    return jax.lax.map(function, inputs, batch_size=block_size)


def first_non_finite(products: Array) -> Int[Array, ""]:
    """Return the index of the first row with NaN or infinity, `ALL_FINITE` if there is none."""
    return first_failure(jnp.isfinite(products).reshape(len(products), -1).all(1))


def first_failure(finite: Bool[Array, "n"]) -> Int[Array, ""]:
    """Return the index of the first False, `ALL_FINITE` if there is none."""
    return jnp.where(finite.all(), ALL_FINITE, jnp.argmin(finite).astype(jnp.int32))


def earlier_failure(failed: Array, later: Array, offset: Any) -> Int[Array, ""]:
    """Join the first failures of two runs of products, the second counted from `offset`."""
    later = jnp.where(later == ALL_FINITE, ALL_FINITE, later + offset)
    return jnp.where(failed == ALL_FINITE, later, failed)


def check_products(failed: Int[Array, ""]) -> None:
    """Raise where a product is known to have been NaN or infinite; traced values pass unchecked."""
    if is_concrete(failed) and int(failed) != ALL_FINITE:
        raise FloatingPointError(f"matvec returned NaN or infinity in product {int(failed)}")

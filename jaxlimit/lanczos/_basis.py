"""Lanczos bases that are read a block of rows at a time, on the device or in host memory.

Only one block is on the device in the vectors' own type. There is no branch over a whole basis, and
a basis is only sliced, moved and updated in place: that is what XLA can do with arrays in host
memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import sharding
from jaxlimit._core.checks import is_concrete
from jaxlimit._core.operator import dot
from jaxlimit._core.projection import project_off

STORES = ("device", "bfloat16", "pinned_host")
BITS = jnp.uint16  # of bfloat16: XLA's CPU backend would widen a whole bfloat16 array to slice it
BLOCK = 8  # rows that are on the device, in the vectors' own type, at a time

Basis = Float[Array, "b D"]


def allocate(rows: int, like: Float[Array, "D"], store: str, mesh: Mesh | None) -> Basis:
    """Make a basis of zeros for vectors like `like`, split over the mesh if there is one."""
    shape, on_host = (rows, like.size), store == "pinned_host"
    if mesh is not None or not on_host:
        dtype = BITS if store == "bfloat16" else like.dtype
        return sharding.zeros(shape, dtype, mesh, on_host=on_host)
    # Zeros made on the host never pass through the device; traced, XLA allocates them there.
    zeros = np.zeros(shape, like.dtype) if is_concrete(like) else jnp.zeros(shape, like.dtype)
    return place(zeros, on_host=True)


def place(rows: Any, *, on_host: bool) -> Basis:
    """Move stored rows to the memory they belong in."""
    return jax.device_put(rows, jax.memory.Space.Host) if on_host else jnp.asarray(rows)


def is_on_host(basis: Basis) -> bool:
    """Whether a basis is in host memory."""
    return jax.typeof(basis).memory_space == jax.memory.Space.Host


def pad(basis: Basis, rows: int) -> Basis:
    """Append rows of zeros, in the memory that the basis is in."""
    if not is_on_host(basis):
        return jnp.pad(basis, ((0, rows), (0, 0)))
    mesh = sharding.mesh_of(basis)
    if mesh is None:
        return place(np.pad(np.asarray(basis), ((0, rows), (0, 0))), on_host=True)
    zeros = sharding.zeros((basis.shape[0] + rows, basis.shape[1]), basis.dtype, mesh, on_host=True)
    update = jax.jit(jax.lax.dynamic_update_slice, out_shardings=zeros.sharding, donate_argnums=0)
    return update(zeros, basis, (0, 0))


def is_stored(basis: Basis, dtype: Any) -> bool:
    """Whether a basis of vectors of type `dtype` is kept narrower, or in host memory."""
    return basis.dtype != dtype or is_on_host(basis)


def read(rows: Array) -> Array:
    """Return stored rows as the numbers that they are."""
    return jax.lax.bitcast_convert_type(rows, jnp.bfloat16) if rows.dtype == BITS else rows


def write(basis: Basis, row: Array, vector: Float[Array, "D"], keep: Bool[Array, ""]) -> Basis:
    """Put a vector into a row where `keep` holds; no row past the last may be kept."""
    old = _rows(basis, row, 1, vector.dtype)
    return _update(basis, jnp.where(keep, vector, old), row)


def project_off_rows(
    vector: Float[Array, "D"], basis: Basis, first: Any, last: Any
) -> Float[Array, "D"]:
    """Project a vector off the rows from `first` to before `last`, block by block."""
    size = min(BLOCK, basis.shape[0])

    def project(block, vector):
        # Where the count is no multiple of the block, the last block repeats some rows.
        rows = _rows(basis, first + block * size, size, vector.dtype)
        return project_off(vector, rows)[0]

    return jax.lax.fori_loop(0, (last - first + size - 1) // size, project, vector)


def combine(basis: Basis, coefficients: Float[Array, "r k"], now: Bool[Array, ""]) -> Basis:
    """Write `coefficients.T @ basis[:r]` into the k rows from r on, if `now`; r, k fill blocks."""
    num_rows, num_combined = coefficients.shape
    dtype = coefficients.dtype

    def write_block(target, basis):
        def add(source, total):
            part = jax.lax.dynamic_slice(
                coefficients, (source * BLOCK, target * BLOCK), (BLOCK, BLOCK)
            )
            return total + dot(part.T, _rows(basis, source * BLOCK, BLOCK, dtype))

        total = jnp.zeros((BLOCK, basis.shape[1]), dtype)
        total = jax.lax.fori_loop(0, num_rows // BLOCK, add, total)
        return _update(basis, total, num_rows + target * BLOCK)

    # No branch: a loop of no rounds leaves the basis where it is.
    return jax.lax.fori_loop(0, jnp.where(now, num_combined // BLOCK, 0), write_block, basis)


def _rows(basis: Basis, first: Int[Array, ""] | int, count: int, dtype: Any) -> Array:
    rows = jax.lax.dynamic_slice_in_dim(basis, first, count)
    if is_on_host(basis):
        rows = jax.device_put(rows, jax.memory.Space.Device)
    return read(rows).astype(dtype)


def _update(basis: Basis, rows: Array, first: Int[Array, ""] | int) -> Basis:
    if basis.dtype == BITS:
        rows = jax.lax.bitcast_convert_type(rows.astype(jnp.bfloat16), BITS)
    rows = rows.astype(basis.dtype)
    if is_on_host(basis):
        rows = jax.device_put(rows, jax.memory.Space.Host)
    return jax.lax.dynamic_update_slice_in_dim(basis, rows, first, 0)

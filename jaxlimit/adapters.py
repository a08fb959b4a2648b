"""Operators from and to the linear operators of SciPy and lineax.

In this package an operator is a callable on flat vectors. These adapters let SciPy's solvers run on
a network's Hessian, and this package's algorithms on operators of other libraries; `to_dense` makes
a matrix of a small one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from jaxlimit._core import sharding
from jaxlimit._core.checks import check_count
from jaxlimit._core.memory import check_memory
from jaxlimit._core.operator import Operator, apply, map_blocks, prepare


def to_scipy(matvec: Any, dim: int | None = None, dtype: Any = None) -> LinearOperator:
    """Make a SciPy operator from a matvec, for `eigsh`, `cg` and similar solvers.

    Each of its products is one compiled product, with a copy to the device and back.

    Args:
        matvec: H, a symmetric `Array[D] -> Array[D]`; it may loop over data on the host
            (`curvature.hessian_matvec_over`).
        dim: D; an `Operator` knows it.
        dtype: floating type of the products; by default that of `matvec`, or float32.

    Returns:
        A symmetric `scipy.sparse.linalg.LinearOperator` of shape [D, D]. It counts its products in
        `num_products`, and raises `FloatingPointError` where one is not finite.

    Raises:
        TypeError: if `dim` is no static int, or `dtype` is not real floating or not that of
            `matvec`.
        ValueError: if `dim` < 1, `matvec` does not map [D] to [D], or `dtype` has 64 bits where JAX
            has 64 bits switched off.

    >>> import jax.numpy as jnp
    >>> operator = to_scipy(lambda v: jnp.array([1.0, 3.0]) * v, dim=2)
    >>> operator @ np.ones(2)
    array([1., 3.], dtype=float32)
    """
    return _JaxOperator(prepare(matvec, dim, dtype))


def from_scipy(operator: Any) -> Operator:
    """Make an operator from a SciPy operator, a sparse matrix or a NumPy array.

    It works under `jit`, `vmap` and `scan` by a callback to the host for each product; a block of
    vectors under `vmap` is one `matmat`. It has no derivative. The result of `to_scipy` gives back
    its original matvec; but inside another operator, such as a sum, it would call JAX from within
    JAX, which can deadlock.

    Args:
        operator: H, a symmetric `scipy.sparse.linalg.LinearOperator` or what
            `scipy.sparse.linalg.aslinearoperator` takes; real, [D, D].

    Returns:
        An `Operator` on [D], in the type of its vector.

    Raises:
        TypeError: if `operator` is no linear operator, or complex.
        ValueError: if it is not square; when called, if the vector has another size.

    >>> import jax.numpy as jnp
    >>> matvec = from_scipy(np.diag([1.0, 3.0]))
    >>> jax.jit(matvec)(jnp.ones(2))
    Array([1., 3.], dtype=float32)
    """
    try:
        operator = aslinearoperator(operator)
    except TypeError:
        raise TypeError(
            f"operator must be a SciPy operator or a matrix, got {type(operator).__name__}"
        ) from None
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"operator must be square, got shape {operator.shape}")
    if np.issubdtype(operator.dtype, np.complexfloating):
        raise TypeError(f"operator must be real, got dtype {operator.dtype}")
    if isinstance(operator, _JaxOperator):
        return operator.product
    return Operator(_HostProduct(operator), operator.shape[0])


def from_lineax(operator: Any) -> Operator:
    """Make an operator from a lineax operator.

    The operator's arrays become operands. Vectors are flat; for an operator on pytrees they are in
    the order of `jax.flatten_util.ravel_pytree`.

    Args:
        operator: H, a symmetric `lineax.AbstractLinearOperator` from a real floating space to
            itself.

    Returns:
        An `Operator` on [D], in the type of its vector.

    Raises:
        TypeError: if `operator` is no lineax operator, or not on real floating arrays.
        ValueError: if its two spaces differ.

    >>> import lineax, jax.numpy as jnp
    >>> matvec = from_lineax(lineax.DiagonalLinearOperator(jnp.array([1.0, 3.0])))
    >>> matvec(jnp.ones(2))
    Array([1., 3.], dtype=float32)
    """
    if not all(hasattr(operator, name) for name in ("mv", "in_structure", "out_structure")):
        raise TypeError(f"operator must be a lineax operator, got {type(operator).__name__}")
    domain, codomain = operator.in_structure(), operator.out_structure()
    if domain != codomain:
        raise ValueError(f"operator must map a space to itself, got from {domain} to {codomain}")
    for leaf in jax.tree.leaves(domain):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"operator must be on real floating arrays, got dtype {leaf.dtype}")
    leaves, treedef = jax.tree.flatten(operator)
    static = tuple(None if _is_operand(leaf) else leaf for leaf in leaves)
    product = Partial(
        _LineaxProduct(treedef, static), [leaf if _is_operand(leaf) else None for leaf in leaves]
    )
    return Operator(product, sum(leaf.size for leaf in jax.tree.leaves(domain)))


def to_dense(
    matvec: Any, dim: int | None = None, dtype: Any = None, *, block_size: int = 64
) -> np.ndarray:
    """Make a matrix on the host from a small operator, for tests.

    Costs D products and memory of D² numbers.

    Args:
        matvec: H, `Array[D] -> Array[D]`, symmetric or not; it may loop over data on the host.
        dim: D; an `Operator` knows it.
        dtype: floating type of the products; by default that of `matvec`, or float32.
        block_size: products made at once, by `vmap`; on the host they come one by one.

    Returns:
        The matrix [D, D], its columns the products with the unit vectors.

    Raises:
        TypeError: as `to_scipy`.
        ValueError: as `to_scipy`.
        MemoryError: if the matrix is larger than the device's memory.

    >>> import jax.numpy as jnp
    >>> to_dense(lambda v: jnp.roll(v, 1), dim=3)
    array([[0., 0., 1.],
           [1., 0., 0.],
           [0., 1., 0.]], dtype=float32)
    """
    operator = prepare(matvec, dim, dtype)
    dim, dtype = operator.dim, operator.dtype
    block_size = check_count("block_size", block_size)
    check_memory(f"a matrix of order {dim}", dim**2 * dtype.itemsize, "use products only")
    if not operator.traceable:
        return np.stack([np.asarray(operator(row)) for row in jnp.eye(dim, dtype=dtype)], axis=1)
    with sharding.on(operator.mesh):
        rows = _rows(operator, dim, block_size, dtype)
    return np.asarray(sharding.local(rows, operator.mesh)).T


@partial(jax.jit, static_argnums=(1, 2, 3))
def _rows(matvec, dim, block_size, dtype):
    def product(index):
        return matvec(jnp.zeros(dim, dtype).at[index].set(1))

    return map_blocks(product, jnp.arange(dim), block_size)


class _JaxOperator(LinearOperator):
    def __init__(self, operator: Operator):
        super().__init__(operator.dtype, (operator.dim, operator.dim))
        self.product = operator
        self.num_products = 0

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        result = np.asarray(apply(self.product, jnp.asarray(x.reshape(-1), self.dtype)))
        if not np.isfinite(result).all():
            raise FloatingPointError(
                f"matvec returned NaN or infinity in product {self.num_products}"
            )
        self.num_products += 1
        return result

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._matvec(x)


class _HostProduct:
    def __init__(self, operator: LinearOperator):
        self.operator = operator

    def __call__(self, vector: Float[Array, "D"]) -> Float[Array, "D"]:
        dim = self.operator.shape[0]
        if vector.shape != (dim,):
            raise ValueError(f"vector must have shape ({dim},), got {vector.shape}")
        result = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
        return jax.pure_callback(self._multiply, result, vector, vmap_method="expand_dims")

    def _multiply(self, vectors: Any) -> np.ndarray:
        vectors = np.asarray(vectors)
        if vectors.ndim == 1:
            products = self.operator.matvec(vectors)
        else:
            products = self.operator.matmat(vectors.reshape(-1, vectors.shape[-1]).T).T
        return np.asarray(products, vectors.dtype).reshape(vectors.shape)


@dataclass(frozen=True)
class _LineaxProduct:
    treedef: Any
    static: tuple  # leaves that no `jit` takes as operands, such as functions; None for the others

    def __call__(self, arrays: list, vector: Float[Array, "D"]) -> Float[Array, "D"]:
        leaves = [s if a is None else a for s, a in zip(self.static, arrays, strict=True)]
        operator = jax.tree.unflatten(self.treedef, leaves)
        space = operator.in_structure()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), space)
        flat, unravel = ravel_pytree(zeros)
        product, _ = ravel_pytree(operator.mv(unravel(vector.astype(flat.dtype))))
        return product.astype(vector.dtype)


def _is_operand(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)

"""Diagonals of Gauss-Newton and Fisher matrices, from rows of their factors.

Both are (1/N) Σ_n Jₙᵀ Sₙ Sₙᵀ Jₙ, a sum over examples: Jₙ the derivative of an example's outputs,
Sₙ a square root of the Hessian of its output loss. For the empirical Fisher matrix the only output
is the example's loss and Sₙ = 1; weights of examples count in Sₙ. So entry i is the mean of the
squares of column i of Sₙᵀ Jₙ, whose rows are backward passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit._core import sharding, shares
from jaxlimit._core.batches import each, leading_size
from jaxlimit._core.checks import check_choice, check_count, check_key, check_range, is_concrete
from jaxlimit._core.functions import Frozen
from jaxlimit._core.losses import WEIGHTED, MeanLoss, losses_of_batch, mean_loss
from jaxlimit._core.masks import flat_mask
from jaxlimit._core.programs import precise_products
from jaxlimit._core.scale import wide_type
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected
from jaxlimit.curvature._squares import Dense
from jaxlimit.curvature.split import check_split, split_parts

DIAGONAL_MATRICES = ("gauss-newton", "fisher")

# An eigenvalue of an output Hessian may be negative by so many units of rounding, those of 1: for a
# confident example it is p - p² with p near 1.
_CONVEX = 1e2


@takes_mesh
def diagonal(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    matrix: str = "gauss-newton",
    num_probes: int | None = None,
    key: PRNGKeyArray | None = None,
    memory_budget: float = 2**30,
    where: Where = is_weight,
    mask: Any = None,
    mesh: Mesh | None = None,
) -> Float[Array, "D"]:
    """Compute the diagonal of the Gauss-Newton or empirical Fisher matrix, exactly or by probes.

        Gᵢᵢ = (1/N) Σₙ Σ_c (Sₙᵀ Jₙ)²_ci,   Sₙ Sₙᵀ = ∇²ℓₙ,

    for N examples with outputs fₙ, Jₙ = ∂fₙ and output losses ℓₙ. The diagonal of the Fisher matrix
    is (1/N) Σₙ (∇lₙ)²ᵢ, lₙ the losses of the examples. The Hessian's diagonal is no sum of squares:
    estimate it by `traces.diagonal(hessian_matvec(...), ...)`.

    The exact diagonal costs a backward pass over the data for each output of an example. Dense
    layers need no more; for other layers, such as convolutions, the gradient of each example is
    formed. A probe is one backward pass over the data, two thirds of a gradient: for each batch of
    n examples, the squared gradient of Σₙ Sₙ ξₙ over n, with independent random signs ξₙ. It is
    never negative, and unbiased, since E (Σₙ uₙ)² = Σₙ E uₙ² for independent uₙ of mean zero. Its
    relative error is about √2 / √(num_probes · batches), so smaller batches give more for the same
    work.

    Args:
        loss: a split loss, from `split_loss` or `training.make_loss`; for the Fisher matrix any
            `loss(params, batch, *operands)`. A mean over examples that do not see each other, or
            their losses, or losses and weights; see `hessian_matvec`.
        params: pytree of real floating arrays.
        batches: see `hessian_matvec`.
        *operands: passed on to the network.
        matrix: "gauss-newton" or "fisher".
        num_probes: None for the exact diagonal, else the number of backward passes.
        key: random key of the probes.
        memory_budget: bytes that the rows of the exact diagonal may take at once, besides the pass
            over an example (default 1 GiB). At least one row is made at a time.
        where: as in `MatvecSettings`.
        mask: as in `MatvecSettings`; the diagonal then has sum(mask) entries.
        mesh: devices to share the examples.

    Returns:
        The diagonal, flat [D], float32 at least, never negative. Under `jit`, where nothing can be
        raised, NaN where `output_loss` was not convex.

    Raises:
        TypeError: if `loss` is not split for the Gauss-Newton matrix, or as `hessian_matvec`.
        ValueError: if `matrix` is unknown, `memory_budget` is negative, `num_probes` < 1 or given
            without `key`, or as `hessian_matvec`.
        FloatingPointError: if `output_loss` is not convex at the outputs, or something not finite.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.curvature import split_loss
    >>> loss = split_loss(lambda w, x: x @ w, lambda y, x: 0.5 * jnp.mean(y**2))
    >>> diagonal(loss, jnp.zeros(2), jnp.array([[[1.0, 0.0], [1.0, 2.0]]]))
    Array([1., 2.], dtype=float32)

    Martens, Sutskever, Swersky (2012); Dangel, Kunstner, Hennig (2020).
    """
    kind, operands = kind_of(matrix, loss, params, batches, operands)
    check_range("memory_budget", float(memory_budget), 0)
    weights, _ = flatten_weights(params, where)
    settings = _Settings(kind, where, int(memory_budget), None)
    if num_probes is not None:
        settings = _Settings(kind, where, 0, check_count("num_probes", num_probes))
        if key is None:
            raise ValueError("key must be given where num_probes is: the probes are random")
        check_key("key", key)
        batches = _with_index(batches)
    examples = shares.examples_of(batches, mesh)
    at = sharding.replicate((jax.tree.map(jnp.asarray, params), operands, key), mesh)
    found = sharding.local(_diagonal(settings, examples, *at), mesh).astype(weights.dtype)
    if is_concrete(found) and not bool(jnp.isfinite(found).all()):
        raise FloatingPointError(
            "the diagonal has NaN or infinity: loss must be finite, and output_loss convex at the "
            "outputs of every example"
        )
    return found if mask is None else found[np.flatnonzero(flat_mask(mask, params, where))]


@dataclass(frozen=True)
class _GaussNewton:
    """Outputs [n, m] of a batch, and the square roots of the Hessians of their losses.

    The first operand is the tuple of those of the loss.
    """

    apply: Frozen
    output_loss: MeanLoss

    def outputs(self, params: Any, batch: Any, operands: tuple) -> Float[Array, "n m"]:
        outputs = self.apply(params, batch, *operands[1:])
        size = leading_size(batch)
        for leaf in jax.tree.leaves(outputs):
            if not leaf.ndim or leaf.shape[0] != size:
                raise ValueError(
                    f"apply must return outputs with a first axis of {size} examples, "
                    f"got shape {leaf.shape}"
                )
        return _wide(jax.vmap(lambda y: ravel_pytree(y)[0])(outputs))

    def roots(self, params: Any, batch: Any, operands: tuple, outputs: Array) -> Array:
        of_loss, *rest = operands
        like = jax.eval_shape(self.apply, params, batch, *rest)
        one = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), like)
        flat, unravel = ravel_pytree(one)

        def of_example(y, example):
            example = jax.tree.map(lambda leaf: leaf[None], example)

            def loss(y):
                # The loss is handed the network's own types.
                return _wide(self.output_loss(unravel(y.astype(flat.dtype)), example, *of_loss))

            values, vectors = _eigh(jax.hessian(loss)(y))
            rounding = _CONVEX * jnp.finfo(flat.dtype).eps * (1 + jnp.abs(values).max())
            values = jnp.where(values.min() < -rounding, jnp.nan, jnp.maximum(values, 0))
            return vectors * jnp.sqrt(values)

        return each(lambda rows: of_example(*rows), (outputs, batch))


@dataclass(frozen=True)
class _Fisher:
    """The losses [n, m] of a batch's examples, and the square roots of their weights."""

    loss: MeanLoss

    def outputs(self, params: Any, batch: Any, operands: tuple) -> Float[Array, "n m"]:
        if self.loss.kind == WEIGHTED:
            losses, _ = self.loss.split(params, batch, *operands)
            return losses.reshape(len(losses), -1)
        return _wide(losses_of_batch(self.loss, params, batch, operands))[:, None]

    def roots(self, params: Any, batch: Any, operands: tuple, outputs: Array) -> Array:
        if self.loss.kind != WEIGHTED:
            return jnp.ones((*outputs.shape, 1), outputs.dtype)
        _, weights = self.loss.split(params, batch, *operands)
        weights = operands[0] * cast(Array, weights).reshape(outputs.shape)
        return jax.vmap(jnp.diag)(jnp.sqrt(weights))


def kind_of(
    matrix: str, loss: Callable, params: Any, batches: Any, operands: tuple
) -> tuple[_GaussNewton | _Fisher, tuple]:
    """Return the kind of a matrix's factor and the operands that it takes; checks both."""
    if check_choice("matrix", matrix, DIAGONAL_MATRICES) == "fisher":
        mean, operands = mean_loss(loss, params, batches, operands)
        return _Fisher(mean), operands
    split = check_split(loss)
    apply, output_loss, operands = split_parts(
        split.apply, split.output_loss, params, batches, operands
    )
    return _GaussNewton(apply, output_loss), operands


@jax.custom_batching.custom_vmap
def _eigh(matrix: Float[Array, "m m"]) -> tuple[Float[Array, "m"], Float[Array, "m m"]]:
    """Return eigenvalues and eigenvectors of a symmetric matrix; of many, one by one on a CPU.

    There a batch is dealt out to the very threads that run the program. One thread waits for each
    batch, so as many batches at once as there are threads, one for each size of batch and each
    device, would wait for each other for ever.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@_eigh.def_vmap
def _eigh_of_many(_size: int, _batched: list[bool], matrices: Float[Array, "n m m"]) -> Any:
    one_by_one = jax.default_backend() == "cpu"
    found = jax.lax.map(_eigh, matrices) if one_by_one else tuple(jnp.linalg.eigh(matrices))
    return found, (True, True)


def _wide(array: Array) -> Array:
    return array.astype(wide_type(array.dtype))


@dataclass(frozen=True)
class _Settings:
    kind: Any
    where: Where
    memory_budget: int
    num_probes: int | None


def _with_index(batches: Any) -> Any:
    """Number the examples, so that each has its own signs on any device."""
    if not isinstance(batches, list):
        shape = jax.tree.leaves(batches)[0].shape[:2]
        return batches, np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    sizes = [leading_size(batch) for batch in batches]
    starts = np.cumsum([0, *sizes[:-1]])
    return type(batches)(
        (batch, np.arange(start, start + size, dtype=np.int32))
        for batch, start, size in zip(batches, starts, sizes, strict=True)
    )


@partial(jax.jit, static_argnums=0)
def _diagonal(settings, examples, params, operands, key):
    def of_batch(batch, params, operands, key):
        if settings.num_probes is None:
            squares = _squares(settings, batch, params, operands)
        else:
            squares = _probed_squares(settings, batch, params, operands, key)
        return flatten_weights(squares, settings.where)[0] / leading_size(batch)

    with precise_products():
        return shares.mean(examples, of_batch, params, operands, key)


def _squares(settings: _Settings, batch: Any, params: Any, operands: tuple) -> Any:
    """Sum the squares of all rows of a batch: at once for dense layers, row by row for others."""
    kind, where = settings.kind, settings.where
    leaves, treedef = jax.tree.flatten(params)

    def outputs(leaves, batch):
        return kind.outputs(jax.tree.unflatten(treedef, leaves), batch, operands)

    def backward(cotangent, leaves, batch):
        return jax.vjp(partial(outputs, batch=batch), leaves)[1](cotangent)[0]

    at = outputs(leaves, batch)
    columns = jnp.moveaxis(kind.roots(params, batch, operands, at), -1, 0)
    dense = Dense(backward, columns[0], leaves, batch)
    at_once = settings.memory_budget // max(dense.num_bytes(), 1)
    squares = dense.squares(lambda function: _sum_over(function, columns, at_once))
    rest = [
        studied and found is None
        for studied, found in zip(selected(params, where), squares, strict=True)
    ]
    slow = _squares_by_row(outputs, leaves, rest, batch, columns, settings.memory_budget)
    squares = [
        next(slow) if by_row else jnp.zeros_like(leaf) if found is None else found
        for found, by_row, leaf in zip(squares, rest, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, squares)


def _squares_by_row(
    outputs: Callable,
    leaves: list,
    chosen: list[bool],
    batch: Any,
    columns: Float[Array, "c n m"],
    memory_budget: int,
) -> Iterator[Array]:
    """Sum the squares of all rows of a batch at the chosen leaves, as many at once as fit."""
    studied = [leaf for leaf, is_chosen in zip(leaves, chosen, strict=True) if is_chosen]
    if not studied:
        return iter(())
    # A row and its square.
    row = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in studied)
    num_rows = max(1, memory_budget // row)

    def of_example(example):
        example, own = example
        alone = jax.tree.map(lambda leaf: leaf[None], example)

        def at(studied):
            known = iter(studied)
            both = zip(leaves, chosen, strict=True)
            return outputs([next(known) if is_chosen else x for x, is_chosen in both], alone)

        pull = jax.vjp(at, studied)[1]
        return _sum_over(lambda column: _square(pull(column[None])[0]), own, num_rows)

    examples = batch, jnp.moveaxis(columns, 0, 1)
    return iter(_sum_over(of_example, examples, num_rows // len(columns)))


def _probed_squares(
    settings: _Settings, batch: Any, params: Any, operands: tuple, key: PRNGKeyArray
) -> Any:
    """Average over probes the squares of the sum of a batch's rows under random signs."""
    batch, index = batch
    kind = settings.kind
    outputs, pull = jax.vjp(lambda p: kind.outputs(p, batch, operands), params)
    roots = kind.roots(params, batch, operands, outputs)

    def of_probe(key):
        keys = jax.vmap(partial(jax.random.fold_in, key))(index)
        signs = jax.vmap(lambda k: jax.random.rademacher(k, roots.shape[-1:], roots.dtype))(keys)
        return _square(pull(jnp.einsum("nmr,nr->nm", roots, signs))[0])

    num_probes = cast(int, settings.num_probes)
    total = _sum_over(of_probe, jax.random.split(key, num_probes), 1)
    return jax.tree.map(lambda leaf: leaf / num_probes, total)


def _square(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _wide(leaf) ** 2, tree)


def _sum_over(function: Callable, inputs: Any, at_once: int) -> Any:
    """Sum a function over the first axis, some entries at once."""
    size = leading_size(inputs)
    at_once = min(max(at_once, 1), size)
    whole = size - size % at_once

    def of_chunk(chunk):
        return jax.tree.map(lambda leaf: leaf.sum(0), each(function, chunk))

    if whole == at_once:
        total = of_chunk(jax.tree.map(lambda leaf: leaf[:whole], inputs))
    else:
        chunks = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, at_once, *leaf.shape[1:]), inputs
        )
        like = jax.eval_shape(of_chunk, jax.tree.map(lambda leaf: leaf[0], chunks))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        add = lambda total, chunk: (jax.tree.map(jnp.add, total, of_chunk(chunk)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, zero, chunks)
    if whole < size:
        rest = of_chunk(jax.tree.map(lambda leaf: leaf[whole:], inputs))
        total = jax.tree.map(jnp.add, total, rest)
    return total

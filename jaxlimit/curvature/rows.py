"""Rows of a factor of the Gauss-Newton matrix, at chosen weights."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxlimit._core.batches import (
    count_examples,
    each,
    first_batch,
    group_batches,
    leading_size,
)
from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.host import HostBatches
from jaxlimit._core.masks import flat_mask
from jaxlimit._core.programs import precise_products
from jaxlimit._core.scale import wide_type
from jaxlimit._core.weights import Where, is_weight, selected
from jaxlimit.curvature.diagonals import kind_of


def factor_rows(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    mask: Any,
    matrix: str = "gauss-newton",
    max_rows: int | None = None,
    where: Where = is_weight,
    memory_budget: float = 2**28,
) -> Iterator[Float[np.ndarray, "m n"]]:
    """Yield the rows of B with G = BᵀB on the weights of a mask, some examples at a time.

    Bₙ = Sₙᵀ Jₙ / √N for each of N examples, Sₙ Sₙᵀ the Hessian of its output loss: one row for each
    of its outputs. For the empirical Fisher matrix the only row is the gradient of its loss. Sums
    over pieces give the matrix, Σ BᵀB, and its diagonal, Σ B². Costs a backward pass a row; for a
    dense layer only the entries of the mask are formed. Memory of one piece.

    Args:
        loss: see `diagonal`.
        params: pytree of real floating arrays.
        batches: see `hessian_matvec`.
        *operands: passed on to the network.
        mask: True at the n weights wanted, as in `MatvecSettings`.
        matrix: "gauss-newton" or "fisher"; see `diagonal`.
        max_rows: the most rows, about, from evenly spaced examples; N is then the number of these.
            None takes all examples.
        where: as in `MatvecSettings`.
        memory_budget: bytes of a piece and of the work on it (default 256 MiB).

    Yields:
        Pieces of B [m, n] on the host, float32 at least.

    Raises:
        TypeError: if `loss` is not split for the Gauss-Newton matrix, or as `hessian_matvec`.
        ValueError: if `matrix` is unknown, or as `hessian_matvec`.
        FloatingPointError: if `output_loss` is not convex at the outputs, or something not finite.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.curvature import split_loss
    >>> loss = split_loss(lambda w, x: x @ w, lambda y, x: 0.5 * jnp.mean(y**2))
    >>> x, both = jnp.array([[[1.0, 0.0], [1.0, 2.0]]]), jnp.array([True, True])
    >>> sum(B.T @ B for B in factor_rows(loss, jnp.zeros(2), x, mask=both)).round(3)
    array([[1., 1.],
           [1., 2.]], dtype=float32)

    Schraudolph (2002).
    """
    kind, operands = kind_of(matrix, loss, params, batches, operands)
    check_range("memory_budget", float(memory_budget), 0)
    params = jax.tree.map(jnp.asarray, params)
    index, wanted = _index_of_leaves(flat_mask(mask, params, where), params, where)
    stacks = _stacks(kind, params, batches, operands, max_rows)
    total = sum(map(leading_size, stacks))
    for stack in stacks:
        size = _num_at_once(kind, params, stack, operands, index, memory_budget)
        for start in range(0, leading_size(stack), size):
            piece = jax.tree.map(lambda x, s=start, n=size: x[s : s + n], stack)
            rows = np.asarray(_rows(kind, params, piece, operands, index))[:, wanted]
            if not np.isfinite(rows).all():
                raise FloatingPointError(
                    "rows of the factor have NaN or infinity: loss must be finite, and "
                    "output_loss convex at the outputs of every example"
                )
            yield rows / np.sqrt(total, dtype=rows.dtype)


def _stacks(kind: Any, params: Any, batches: Any, operands: tuple, max_rows: int | None) -> list:
    """Join batches of one shape into [examples, ...], evenly spaced ones if there are too many."""
    stride = 1
    if max_rows is not None:
        one = jax.tree.map(lambda x: x[:1], first_batch(batches))
        outputs = jax.eval_shape(lambda: kind.outputs(params, one, operands))
        num_rows = count_examples(batches) * outputs.shape[-1]
        stride = -(-num_rows // check_count("max_rows", max_rows))
    thin = lambda stack: jax.tree.map(lambda x: x[::stride], stack)  # noqa: E731
    if isinstance(batches, HostBatches):  # before they go to the device
        batches, thin = list(map(thin, batches)), lambda stack: stack
    groups = [group.batches for group in group_batches(batches)]
    return [thin(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stack)) for stack in groups]


def _index_of_leaves(
    mask: Bool[np.ndarray, "D"], params: Any, where: Where
) -> tuple[list, Bool[np.ndarray, "columns"]]:
    """Split a flat mask into the flat indices of each leaf, None where it is not under study.

    Each is filled up to a power of two, or the whole leaf, and the columns to drop are marked: so
    masks that shrink step by step share a compiled program.
    """
    found, wanted, start = [], [], 0
    for leaf, studied in zip(jax.tree.leaves(params), selected(params, where), strict=True):
        if not studied:
            found.append(None)
            continue
        at = np.flatnonzero(mask[start : start + leaf.size])
        length = min(1 << max(at.size - 1, 0).bit_length(), leaf.size)
        found.append(jnp.asarray(np.pad(at, (0, length - at.size)), jnp.int32))
        wanted.append(np.arange(length) < at.size)
        start += leaf.size
    return found, np.concatenate(wanted)


def _num_at_once(
    kind: Any, params: Any, stack: Any, operands: tuple, index: list, memory_budget: float
) -> int:
    """Find how many examples' rows fit a budget, by the compiler's count of bytes."""
    size = leading_size(stack)
    while size > 1:
        piece = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[:size], s), stack)  # noqa: B023
        rows = jax.eval_shape(partial(_rows, kind), params, piece, operands, index)
        if rows.size * rows.dtype.itemsize <= memory_budget:
            memory = _rows.lower(kind, params, piece, operands, index).compile().memory_analysis()
            if memory is None or memory.temp_size_in_bytes <= memory_budget:
                break
        size = -(-size // 2)
    return size


@partial(jax.jit, static_argnums=0)
def _rows(kind, params, batch, operands, index):
    leaves, treedef = jax.tree.flatten(params)
    chosen = [place for place, at in enumerate(index) if at is not None]

    def outputs(studied, alone):
        changed = list(leaves)
        for place, leaf in zip(chosen, studied, strict=True):
            changed[place] = leaf
        return kind.outputs(jax.tree.unflatten(treedef, changed), alone, operands)

    def of_example(example):
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        values, pull = jax.vjp(lambda s: outputs(s, alone), [leaves[place] for place in chosen])
        root = kind.roots(params, alone, operands, values)[0]

        def row(s):
            # Leaf by leaf, so that an outer product is formed at these entries alone.
            pulled = zip(chosen, pull(s[None])[0], strict=True)
            entries = [leaf.ravel()[index[place]] for place, leaf in pulled]
            return jnp.concatenate([leaf.astype(wide_type(leaf.dtype)) for leaf in entries])

        return each(row, root.T)

    with precise_products():
        rows = each(of_example, batch)
    return rows.reshape(-1, rows.shape[-1])

"""Batches of examples in their two forms, means over them, and checks of their losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlimit._core.checks import check_floating_tree
from jaxlimit._core.host import HostBatches, batch_like, fetched, fetching
from jaxlimit._core.programs import canonical_convolutions
from jaxlimit._core.scale import wide_type


class Group(NamedTuple):
    """Batches of one shape: their share of all examples, and leaves [num_batches, batch, ...].

    Of batches that stay on the host, their places [num_batches] (`host.OnHost`).
    """

    share: Array | float
    batches: Any


def group_batches(batches: Any) -> tuple[Group, ...]:
    """Stack batches of equal shapes, each stack with its share of all examples.

    Args:
        batches: a pytree whose leaves are [num_batches, batch, ...], or a list of batches of
            unequal size.

    Raises:
        ValueError: if there are no examples, or the leaves of a batch disagree about their number.
    """
    first_batch(batches)
    if isinstance(batches, HostBatches):
        stacks: list = batches.stacks()
    else:
        stacks = _stack_alike(batches) if isinstance(batches, list) else [batches]
    sizes = [leading_size(stack) * leading_size(batch_like(stack)) for stack in stacks]
    return tuple(
        # The share is weakly typed: it takes the precision of its factor.
        Group(jnp.asarray(size / sum(sizes)), jax.tree.map(jnp.asarray, stack))
        for size, stack in zip(sizes, stacks, strict=True)
    )


def _stack_alike(batches: list) -> list:
    alike: dict[Any, list] = {}
    for batch in batches:
        leading_size(batch)
        alike.setdefault((jax.tree.structure(batch), *_shapes(batch)), []).append(batch)
    return [jax.tree.map(lambda *b: jnp.stack(b), *group) for group in alike.values()]


def first_batch(batches: Any, *, name: str = "batches") -> Any:
    """Return the first of `batches`, called `name` in messages, in either of the two forms.

    Raises:
        ValueError: if there are no examples, or its leaves disagree about their number.
    """
    if isinstance(batches, list):
        if not batches:
            raise ValueError(f"{name} must hold at least one batch, got an empty list")
        first = batches[0]
    else:
        if any(len(shape) < 2 for shape in _shapes(batches)):
            raise ValueError(
                f"{name} must have leaves [num_batches, batch, ...], or be a list of batches; "
                f"got shapes {_shapes(batches)}"
            )
        leading_size(batches, name=name)
        first = jax.tree.map(lambda leaf: leaf[0], batches)
    leading_size(first, name=name)
    return first


def cut_batches(batches: Any, pieces: int) -> Any:
    """Cut every batch into `pieces` of equal size; in a list the last one may be smaller.

    >>> cut_batches(jnp.zeros((2, 6, 5)), 3).shape
    (6, 2, 5)
    """
    if pieces == 1:
        return batches
    if not isinstance(batches, list):
        shape = lambda x: (x.shape[0] * pieces, x.shape[1] // pieces, *x.shape[2:])  # noqa: E731
        return jax.tree.map(lambda x: x.reshape(shape(x)), batches)
    cut = []
    for batch in batches:
        size = leading_size(batch)
        step = -(-size // pieces)
        cut += [
            jax.tree.map(lambda x, i=i, step=step: x[i : i + step], batch)
            for i in range(0, size, step)
        ]
    return type(batches)(cut)


def leading_size(batch: Any, *, name: str = "batches") -> int:
    """Return the common leading size of all leaves, or raise if there is none."""
    sizes = {shape[0] if shape else 0 for shape in _shapes(batch)}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"{name} must have leaves with one common, nonzero number of examples, "
            f"got shapes {_shapes(batch)}"
        )
    return sizes.pop()


def count_examples(batches: Any) -> int:
    """Count the examples of batches in either form.

    >>> count_examples([jnp.ones((4, 2)), jnp.ones((3, 2))]), count_examples(jnp.ones((5, 3, 2)))
    (7, 15)
    """
    if isinstance(batches, list):
        return sum(leading_size(batch) for batch in batches)
    shape = jnp.shape(jax.tree.leaves(batches)[0])
    return int(shape[0] * shape[1])


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]


def mean_over(groups: tuple[Group, ...], of_batch: Callable[[Any], Array]) -> Array:
    """Average `of_batch(batch)`, itself a mean over examples, with equal weight for each example.

    One batch at a time, with the memory of one batch. Sums are in float32 at least.
    """
    of_batch = canonical_convolutions(of_batch)

    def of_group(group: Group) -> Array:
        first = jax.tree.map(lambda leaf: leaf[0], group.batches)
        like = jax.eval_shape(of_batch, batch_like(group.batches))
        dtype = wide_type(like.dtype)
        if leading_size(group.batches) == 1:  # no loop around what may not run in one
            return group.share * of_batch(fetched(first)).astype(dtype)
        of_one = fetching(of_batch, group.batches)

        def add(total, batch):
            return total + of_one(batch).astype(dtype), None

        total, _ = jax.lax.scan(add, jnp.zeros(like.shape, dtype), group.batches)
        return group.share / leading_size(group.batches) * total

    means = [of_group(group) for group in groups]
    return sum(means[1:], start=means[0])


def each(function: Callable, rows: Any) -> Any:
    """Map a function over the first axis of a pytree, all at once where it can be.

    Some primitives have no batching rule, which each of them tells in a way of its own; with such
    in it a function is called row by row.

    >>> each(lambda x: 2 * x, jnp.arange(3))
    Array([0, 2, 4], dtype=int32)
    """
    try:
        return jax.vmap(function)(rows)
    except Exception:  # whatever it is, one row alone raises it again
        return jax.lax.map(function, rows)


def check_like(name: str, tree: Any, params: Any) -> None:
    """Raise unless `tree` has the structure and shapes of `params`."""
    wanted, got = jax.tree.structure(params), jax.tree.structure(tree)
    if wanted != got:
        raise ValueError(f"{name} must have the structure of params, {wanted}, got {got}")
    shapes = [jax.tree.map(jnp.shape, x) for x in (params, tree)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must have the shapes of params, {shapes[0]}, got {shapes[1]}")


def check_scalar(loss: Callable, params: Any, *args: Any) -> None:
    """Raise unless `loss(params, *args)` is one real floating number."""
    # Callers that differentiate check which leaves must be floating.
    check_floating_tree("params", params, [False] * len(jax.tree.leaves(params)))
    value = jax.eval_shape(loss, params, *args)
    if (
        not hasattr(value, "shape")
        or value.shape != ()
        or not jnp.issubdtype(value.dtype, jnp.floating)
    ):
        raise TypeError(f"loss must return one real floating number, got {value}")

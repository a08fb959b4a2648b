"""Batches that stay on the host; a program fetches each one when it needs it, and frees it."""

import itertools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

# A program gets a number, not the data: so it serves other data of the same shapes, and keeps no
# data alive.
_LIVING: "weakref.WeakValueDictionary[int, HostBatches]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class HostBatches(list):
    """A list of batches of NumPy arrays of which a device has at most one at a time.

    It may be used wherever `batches` are: values and derivatives are summed batch by batch, as for
    batches on the device, and each batch is copied there when it is needed. Products then repeat
    the primal pass. The arrays may be views of a file (`numpy.memmap`). They must not change.

    >>> from jaxlimit import curvature
    >>> held = HostBatches([np.ones((4, 2)), np.ones((3, 2))])
    >>> curvature.mean_gradient(lambda w, x: jnp.mean(x @ w), jnp.zeros(2), held)
    Array([1., 1.], dtype=float32)
    """

    def __init__(self, batches: Iterable = ()) -> None:
        super().__init__(batches)
        self.number = next(_NUMBERS)
        _LIVING[self.number] = self

    def __repr__(self) -> str:
        """Show the number of batches."""
        return f"HostBatches({len(self)} batches)"

    def stacks(self) -> list["OnHost"]:
        """Return the places of batches of one kind, in place of their stacks."""
        alike: dict[_Like, list[int]] = {}
        for place, batch in enumerate(self):
            alike.setdefault(_like(batch), []).append(place)
        return [
            OnHost(np.asarray(places, np.int32), np.full(len(places), self.number, np.int32), like)
            for like, places in alike.items()
        ]


@dataclass(frozen=True)
class _Like:
    """Structure, shapes and types of a batch on a device."""

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @property
    def arrays(self) -> Any:
        leaves = [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves]
        return jax.tree.unflatten(self.structure, leaves)


def _like(batch: Any) -> _Like:
    leaves, structure = jax.tree.flatten(batch)
    kinds = tuple((np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves)
    return _Like(structure, kinds)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnHost:
    """Where batches are, [num_batches], in a `HostBatches`; or where one is, [].

    Attributes:
        place: place in the list.
        number: number of the list.
        like: shapes and types of one batch.
    """

    place: Int[Array | np.ndarray, "..."]
    number: Int[Array | np.ndarray, "..."]
    like: _Like = field(metadata={"static": True})


def fetched(batch: Any) -> Any:
    """Return a batch, fetched from the host if it is there."""
    if not isinstance(batch, OnHost):
        return batch

    def fetch(number, place):
        held = _LIVING.get(int(number))
        if held is None:
            raise RuntimeError("batches on the host were freed before their last use")
        kinds = zip(jax.tree.leaves(held[int(place)]), batch.like.leaves, strict=True)
        leaves = [np.asarray(leaf, dtype) for leaf, (_, dtype) in kinds]
        return jax.tree.unflatten(batch.like.structure, leaves)

    return jax.pure_callback(
        fetch, batch.like.arrays, batch.number, batch.place, vmap_method="sequential"
    )


def fetching(of_batch: Any, stack: Any) -> Any:
    """Let a function of a batch take one of a stack, fetched from the host if it is there."""
    if not isinstance(stack, OnHost):
        return of_batch
    # A derivative fetches the batch again; otherwise all batches would stay on the device.
    return jax.checkpoint(lambda batch: of_batch(fetched(batch)), prevent_cse=False)


def batch_like(stack: Any) -> Any:
    """Return the shapes and types of a batch of a stack."""
    if isinstance(stack, OnHost):
        return stack.like.arrays
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)), stack
    )

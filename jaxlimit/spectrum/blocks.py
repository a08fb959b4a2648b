"""The spectra of an operator's principal blocks, such as those of layers, by one program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._core.checks import check_count, check_key
from jaxlimit._core.operator import Operator, prepare
from jaxlimit._core.principal import principal_block
from jaxlimit.spectrum.measure import SpectralMeasure, measure_from
from jaxlimit.spectrum.probes import spectral_measure
from jaxlimit.spectrum.recurrences import plan_run, probe

# Bytes of constants that the products of a block read in about the time that a program takes to
# compile: an estimate of a second's reading, not timed on large networks.
_LONG = 1e10


def block_measures(
    matvec: Any,
    key: PRNGKeyArray,
    blocks: Mapping[str, Bool[Array | np.ndarray, "D"]],
    *,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "auto",
    dtype: Any = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, SpectralMeasure]:
    """Estimate the spectral distribution of each principal block H[S, S].

    Lanczos runs with P H P, P the projection on a block's entries, from probes inside the block,
    which no step leaves; all blocks share one compiled program and one linearisation. Where the
    products take longer than compiling, blocks of neighbouring entries of a linearisation, such as
    layers, have programs of their own, with only the operations on the way from the block to
    itself: as many as an operator of its own has, which would be linearised anew. Costs num_probes
    · num_steps products a block, and the memory of one `spectral_measure` at that depth.

    Args:
        matvec: H, a symmetric `Array[D] -> Array[D]`.
        key: random key of the probes; each block folds its place in `blocks` into it.
        blocks: for each block, True on its entries; blocks may overlap.
        num_steps: Lanczos steps a probe; a block of fewer entries ends early.
        num_probes: independent probes of each block.
        reorthogonalize: see `spectral_measure`.
        dtype: floating type of the probes; by default that of `matvec`, or float32.
        on_progress: called as `on_progress(blocks_done, blocks)`.

    Returns:
        For each block a `SpectralMeasure` whose `dim` is the block's size.

    Raises:
        TypeError: if a block is not boolean, or as `spectral_measure`.
        ValueError: if a block has not D entries or selects none, or as `spectral_measure`.
        FloatingPointError: as `spectral_measure`.

    >>> import jax, jax.numpy as jnp
    >>> H = jnp.diag(jnp.array([1.0, 2.0, 5.0])).at[0, 2].set(3.0).at[2, 0].set(3.0)
    >>> halves = {"first": jnp.array([True, True, False]), "last": jnp.array([False, False, True])}
    >>> found = block_measures(lambda v: H @ v, jax.random.key(0), halves, num_steps=3)
    >>> found["last"].dim, found["last"].nodes[0, 0].round(3)
    (1, Array(5., dtype=float32))
    """
    check_key("key", key)
    masks = {name: _checked(name, mask) for name, mask in blocks.items()}
    sizes = {mask.size for mask in masks.values()}
    if len(sizes) != 1:
        raise ValueError(f"blocks must be masks of one size, got sizes {sorted(sizes)}")
    check_count("num_probes", num_probes)
    operator = prepare(matvec, sizes.pop(), dtype)
    num_steps = min(check_count("num_steps", num_steps), max(m.sum() for m in masks.values()))
    settings: dict[str, Any] = {"num_steps": num_steps, "num_probes": num_probes}
    settings["reorthogonalize"] = reorthogonalize
    # Where vectors are sharded or read on the host, a block is an operator of its own.
    together = operator.traceable and operator.mesh is None
    read = num_steps * num_probes * sum(leaf.nbytes for leaf in jax.tree.leaves(operator))
    measures = {}
    for i, (name, mask) in enumerate(masks.items()):
        if together:
            own = _neighbours(operator, mask) if read >= _LONG else None
        else:
            own = operator.restrict(mask)
        if own is None:
            found = _measure(operator, jax.random.fold_in(key, i), mask, **settings)
        else:
            steps: dict[str, Any] = {"num_steps": min(num_steps, own.dim)}
            found = spectral_measure(own, jax.random.fold_in(key, i), **settings | steps)
        measures[name] = found
        if on_progress is not None:
            on_progress(i + 1, len(masks))
    return measures


def _checked(name: str, mask: Any) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"blocks[{name!r}] must be boolean, True in the block, got {mask.dtype}")
    if mask.ndim != 1 or not mask.any():
        raise ValueError(
            f"blocks[{name!r}] must be flat and select at least one entry, got shape {mask.shape} "
            f"with {mask.sum()} selected"
        )
    return mask


def _measure(operator, key, mask, *, num_steps, num_probes, reorthogonalize) -> SpectralMeasure:
    asked = {"num_steps": num_steps, "num_probes": num_probes, "reorthogonalize": reorthogonalize}
    operator, num_steps, mode = plan_run(operator, None, None, None, at_once=1, **asked)
    keys = jax.random.split(key, num_probes)
    result = _run(operator, keys, jnp.asarray(mask), num_steps, mode)
    return measure_from(result, dim=int(mask.sum()))


def _neighbours(operator: Operator, mask: np.ndarray) -> Operator | None:
    """Return the block of an operator's linearisation on neighbouring entries; None of others."""
    start, stop = int(mask.argmax()), int(mask.size - mask[::-1].argmax())
    if not operator.linearized or not mask[start:stop].all():
        return None
    return Operator(Partial(_Block(start, stop), operator), stop - start, operator.dtype)


@dataclass(frozen=True)
class _Block:
    """The product with a principal block of an operator that is given with the vector."""

    start: int
    stop: int

    def __call__(self, operator: Operator, vector: Array) -> Array:
        whole = jax.ShapeDtypeStruct((operator.dim,), vector.dtype)
        product = principal_block(_product, operator, whole, self.start, self.stop)
        return product(operator, vector)


def _product(operator: Operator, vector: Array) -> Array:
    return operator(vector)


@partial(jax.jit, static_argnums=(3, 4))
def _run(operator, keys, mask, num_steps, reorthogonalize):
    block = Operator(Partial(_projected, operator, mask), operator.dim, operator.dtype)

    def one(key):
        start = jnp.where(mask, probe(key, mask.size, operator.dtype), 0)
        settings = {"num_steps": num_steps, "reorthogonalize": reorthogonalize}
        return lanczos.tridiagonalize(block, start, **settings)._replace(basis=None)

    return jax.lax.map(one, keys)


def _projected(operator, mask, vector):
    # No vector of a run that starts in the block leaves it.
    return jnp.where(mask, operator(vector), 0)

"""The tolerated rise of the loss, ε, measured from the data."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core import sharding, shares
from jaxlimit._core.batches import check_scalar, first_batch
from jaxlimit._core.checks import check_count, check_range, is_finite
from jaxlimit._core.estimate import Estimate
from jaxlimit._core.programs import canonical_convolutions
from jaxlimit._core.sharding import takes_mesh


def loss_tolerance(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Measure the tolerated rise of the loss: the spread of the loss of one batch.

    ε = σ(per-example loss at w*)/√batch_size, free of how the data happen to be batched. Costs one
    evaluation of the data.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples.
        params: pytree of real floating arrays.
        batches: as for `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        batch_size: whose standard deviation is taken; the paper's choice is 128.
        mesh: devices to share the examples, as for `pruning.magnitude_sweep`.

    Returns:
        ε; 0 if all examples have the same loss. NaN where the loss of an example is not finite and
        nothing can be raised under `jit`.

    Raises:
        TypeError: if `loss` gives no scalar.
        ValueError: if there are fewer than two examples or `batch_size` < 1.
        FloatingPointError: if the loss of an example is not finite.

    >>> import jax.numpy as jnp
    >>> loss_tolerance(lambda w, x: jnp.mean(w * x), 1.0, jnp.array([[-1.0, 1.0]]), batch_size=4)
    Array(0.5, dtype=float32)
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
    return loss_tolerance_estimate(loss, params, batches, *operands, **settings).value


@takes_mesh
def loss_tolerance_estimate(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> Estimate:
    """Measure the tolerated rise of the loss, with the error of having seen only these examples.

    ε = σ/√batch_size as `loss_tolerance` has it; of n examples with fourth central moment μ₄ the
    standard error of σ is √((μ₄ - σ⁴)/n)/(2σ), by the delta method. `pruning_limit` and
    `estimate_limit` take the result for `epsilon` and join its error with their own.

    Args:
        loss: as for `loss_tolerance`.
        params: as for `loss_tolerance`.
        batches: as for `loss_tolerance`.
        *operands: as for `loss_tolerance`.
        batch_size: as for `loss_tolerance`.
        mesh: as for `loss_tolerance`.

    Returns:
        An `Estimate`, its interval value ± 1.96 standard errors, from 0 up; NaN as
        `loss_tolerance`.

    Raises:
        TypeError: as `loss_tolerance`.
        ValueError: as `loss_tolerance`.
        FloatingPointError: as `loss_tolerance`.

    >>> import jax.numpy as jnp
    >>> losses = jnp.arange(8.0).reshape(2, 4)
    >>> loss_tolerance_estimate(lambda w, x: jnp.mean(w * x), 1.0, losses).standard_error
    Array(0.03125, dtype=float32)

    Cramér (1946), "Mathematical Methods of Statistics", section 27.7.
    """
    check_count("batch_size", batch_size)
    check_scalar(loss, params, first_batch(batches), *operands)
    examples = shares.examples_of(batches, mesh)
    at = sharding.replicate((params, operands), mesh)
    losses = sharding.local(_example_losses(loss, examples, *at), mesh)
    if losses.size < 2:
        raise ValueError("batches must hold at least 2 examples to measure a spread, got 1")
    if not is_finite(losses):
        raise FloatingPointError("loss must be finite at every example, got NaN or infinity")
    square = jnp.var(losses)
    fourth = jnp.mean((losses - losses.mean()) ** 4)
    value = jnp.sqrt(square / batch_size)
    spread = jnp.sqrt(jnp.maximum(fourth - square**2, 0) / losses.size / batch_size)
    equal = square == 0
    standard_error = jnp.where(equal, 0, spread / (2 * jnp.sqrt(jnp.where(equal, 1, square))))
    low = jnp.maximum(value - 1.96 * standard_error, 0)
    return Estimate(value, standard_error, low, value + 1.96 * standard_error)


@partial(jax.jit, static_argnums=0)
def _example_losses(loss, examples, params, operands):
    def of_example(example):
        return loss(params, jax.tree.map(lambda x: x[None], example), *operands)

    of_stack = partial(jax.lax.map, canonical_convolutions(jax.vmap(of_example)))
    if isinstance(examples, shares.Shares):  # each device's own, then those that all have
        losses = [*map(jax.vmap(of_stack), examples.own), *map(of_stack, examples.common)]
    else:
        losses = [of_stack(group.batches) for group in examples]
    return jnp.concatenate([x.ravel() for x in losses])


def split_epsilon(epsilon: Any) -> tuple[Any, Any]:
    """Return ε and its standard error, 0 for a plain number, both checked.

    Raises:
        ValueError: if ε is no single number, negative or NaN, or its error is infinite.
    """
    known = isinstance(epsilon, Estimate)
    value, error = (epsilon.value, epsilon.standard_error) if known else (epsilon, 0.0)
    if jnp.ndim(value) != 0:
        raise ValueError(
            f"epsilon must be one number (vmap over several), got shape {jnp.shape(value)}"
        )
    check_range("epsilon", value, 0)
    check_range("epsilon.standard_error", error, 0, float(jnp.finfo(jnp.float32).max))
    return value, error

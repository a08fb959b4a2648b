"""The tolerated rise of the loss, ε, measured from the data."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core import scale
from jaxlimit._core.batches import first_batch
from jaxlimit._core.checks import check_count, check_range, is_finite
from jaxlimit._core.estimate import Estimate, positive_interval
from jaxlimit._core.losses import mean_loss
from jaxlimit._core.sharding import takes_mesh
from jaxlimit.limits import _examples
from jaxlimit.limits._examples import ExampleLosses


class MeasuredTolerance(NamedTuple):
    """A tolerance, and a sentence on what is wrong with the loss; None if nothing is."""

    epsilon: Estimate
    doubt: str | None


def loss_tolerance(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> Estimate:
    """Measure the tolerated rise of the loss: the spread of the loss of one batch.

    ε = σ(per-example loss at w*)/√batch_size, whatever the batches of the data. For n examples with
    fourth central moment μ₄ the standard error of σ is √((μ₄ - σ⁴)/n)/(2σ), by the delta method.
    The loss of every batch is also compared with those of its single examples. Costs two
    evaluations of the data.

    For losses l with weights w, ε is the spread of Σwl/Σw over `batch_size` examples of weight
    above 0: l is replaced by w(l - L)/w̄, by the delta method for a ratio.

    Where the loss is no mean over independent examples, or takes no single examples, ε is measured
    from whole batches: from N batches of b examples, σ² = Σ b(L_b - L̄)²/(N-1), with a standard
    error of at least σ/√(2(N-1)). A warning then says so.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples; or their losses,
            [n]; or their losses and weights, a pair of arrays [n, ...].
        params: pytree of real floating arrays.
        batches: a pytree with leaves [num_batches, batch, ...], or a list of batches.
        *operands: passed on to `loss`.
        batch_size: examples of the batch whose loss has the standard deviation ε; 128 in the paper.
        mesh: devices to share the examples, a `jax.sharding.Mesh`.

    Returns:
        ε as an `Estimate`. `pruning_limit` and `estimate_limit` add its error to their own; used as
        a number it is its value. The 95 % interval is that of log ε; for the losses of 1,000
        examples it covers 95 % of cases if they are uniform, 93 % if exponential and 84 % if
        log-normal. 0 if all examples have the same loss. Under `jit`, where nothing can be raised,
        NaN if a loss is not finite.

    Raises:
        TypeError: if `loss` returns none of the three.
        ValueError: if there are fewer than two examples, `batch_size` < 1, the loss is a sum over
            the examples of a batch, or it is no mean over them and there is one batch or a mesh.
        FloatingPointError: if the loss of a batch, or of an example that counts, is not finite.

    >>> import jax.numpy as jnp
    >>> losses = jnp.arange(8.0).reshape(2, 4)
    >>> loss_tolerance(lambda w, x: jnp.mean(w * x), 1.0, losses, batch_size=21)
    Estimate(value=0.5, standard_error=0.0771517, lower=0.369508, upper=0.676575)

    Cramér (1946), section 27.7.
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
    measured = measure_tolerance(loss, params, batches, *operands, **settings)
    if measured.doubt is not None:
        warnings.warn(measured.doubt, stacklevel=2)
    return measured.epsilon


# The name of version 0.1, when `loss_tolerance` returned the value alone.
loss_tolerance_estimate = loss_tolerance


@takes_mesh
def measure_tolerance(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> MeasuredTolerance:
    """Measure ε as `loss_tolerance` does, and say what is wrong with the loss if anything is."""
    check_count("batch_size", batch_size)
    batch = first_batch(batches)
    loss, operands = mean_loss(loss, params, batches, operands)
    losses = _examples.example_losses(loss, params, batches, operands, mesh)
    if losses.sizes.sum() < 2:
        raise ValueError("batches must hold at least 2 examples to measure a spread, got 1")
    if not is_finite(losses.batches):
        raise FloatingPointError("loss must be finite at every example, got NaN or infinity")
    doubt = _examples.why_no_mean(losses, loss, params, batch, operands)
    if losses.singles is not None and doubt is None:
        return MeasuredTolerance(_spread(losses.singles, losses.weights, batch_size), None)
    if doubt is None:
        doubt = "the loss of single examples cannot be had (no batch of one, or no vmap)"
    if mesh is not None:
        raise ValueError(f"loss must be a mean over examples where a mesh cuts batches: {doubt}")
    epsilon = _spread_of_batches(losses, batch_size, doubt)
    return MeasuredTolerance(epsilon, f"{doubt}; {_measured_from(losses)}")


@takes_mesh
def examine(
    loss: Callable, params: Any, batches: Any, *operands: Any, mesh: Mesh | None = None
) -> str | None:
    """Say why a loss is no mean over independent examples, from its first two batches.

    Used where ε is known and `measure_tolerance` is not called.

    Raises:
        ValueError: if the loss is a sum, or is no mean where a mesh cuts batches.
    """
    loss, operands = mean_loss(loss, params, batches, operands)
    few = batches[:2] if isinstance(batches, list) else jax.tree.map(lambda x: x[:2], batches)
    losses = _examples.example_losses(loss, params, few, operands)
    doubt = _examples.why_no_mean(losses, loss, params, first_batch(batches), operands)
    if doubt is not None and mesh is not None:
        raise ValueError(f"loss must be a mean over examples where a mesh cuts batches: {doubt}")
    return doubt and f"{doubt}; it and its curvature are those of these batches"


def check_mean(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    mesh: Mesh | None = None,
    stacklevel: int = 3,
) -> None:
    """Warn of a loss that is no mean over independent examples, and refuse a sum; see `examine`."""
    doubt = examine(loss, params, batches, *operands, mesh=mesh)
    if doubt is not None:
        warnings.warn(doubt, stacklevel=stacklevel + 1)


def _measured_from(losses: ExampleLosses) -> str:
    sizes = sorted({*losses.sizes.tolist()})
    several = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return (
        f"ε is measured from the spread over {len(losses.sizes)} batches of {several} examples, "
        "and the Hessian is that of these batches"
    )


def _spread(
    singles: Float[Array, "n"], weights: Float[Array, "n"] | None, batch_size: int
) -> Estimate:
    """Return the standard deviation of the loss of `batch_size` examples."""
    if weights is None:
        deviations = singles - singles.mean()
        return _root_mean_square(deviations - deviations.mean(), singles.size, batch_size)
    # Weighted losses over the mean weight, less their mean: that of all is the loss of the data.
    deviations = singles - weights * singles.mean()
    count = jnp.sum(weights > 0, dtype=singles.dtype)
    # The mean weight is that of all rows, also of those that do not count.
    share = count / singles.size
    return _root_mean_square(deviations * share, count, batch_size)


def _spread_of_batches(losses: ExampleLosses, batch_size: int, doubt: str) -> Estimate:
    """Return the same from the losses of batches, each as the mean over its examples."""
    num_batches = len(losses.sizes)
    if num_batches < 2:
        raise ValueError(
            f"batches must hold at least 2 batches (better 20) to measure ε, got 1, since {doubt}; "
            "or give epsilon"
        )
    sizes = jnp.asarray(losses.sizes, losses.batches.dtype)
    mean = jnp.sum(losses.batches * (sizes / sizes.sum()))
    scaled = jnp.sqrt(sizes) * (losses.batches - mean)
    estimate = _root_mean_square(scaled, num_batches - 1, batch_size)
    # A fourth moment of so few values is too uncertain.
    least = estimate.value / (2 * (num_batches - 1)) ** 0.5
    error = jnp.maximum(estimate.standard_error, least)
    return positive_interval(estimate.value, error, num_batches - 1)


def _root_mean_square(deviations: Float[Array, "n"], count: Any, batch_size: int) -> Estimate:
    unit = scale.magnitude(deviations).reshape(())
    squares = (deviations / unit) ** 2
    square, fourth = jnp.sum(squares) / count, jnp.sum(squares**2) / count
    value = jnp.sqrt(square / batch_size)
    spread = jnp.sqrt(jnp.maximum(fourth - square**2, 0) / count / batch_size)
    equal = square == 0
    error = jnp.where(equal, 0, spread / (2 * jnp.sqrt(jnp.where(equal, 1, square))))
    return positive_interval(unit * value, unit * error)


def split_epsilon(epsilon: Any) -> tuple[Any, Any]:
    """Return ε and its standard error, 0 for a plain number, both checked.

    Raises:
        TypeError: if ε is no real number.
        ValueError: if ε is no single number, negative or NaN, or its error is infinite.
    """
    known = isinstance(epsilon, Estimate)
    value, error = (epsilon.value, epsilon.standard_error) if known else (epsilon, 0.0)
    check_range("epsilon", value, 0)
    if jnp.ndim(value) != 0:
        raise ValueError(
            f"epsilon must be one number (vmap over several), got shape {jnp.shape(value)}"
        )
    check_range("epsilon.standard_error", error, 0)
    if not is_finite(error):
        raise ValueError(f"epsilon.standard_error must be finite, got {error}")
    return value, error

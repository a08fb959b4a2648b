"""Hessian, Gauss-Newton and Fisher matrices of a mean loss, as products with a flat vector."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core.batches import first_batch, group_batches, leading_size
from jaxlimit._core.host import HostBatches
from jaxlimit._core.losses import (
    WEIGHTED,
    check_arrays,
    mean_loss,
)
from jaxlimit._core.operator import Operator
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.curvature._forms import OneDevice
from jaxlimit.curvature._gradients import EmpiricalFisher, GaussNewton, Hessian
from jaxlimit.curvature._operator import (
    MatvecSettings,
    check_settings,
    check_studied,
    differentiable,
    make_host_operator,
    make_operator,
)
from jaxlimit.curvature.split import Split, check_split, split_loss, split_parts


@takes_mesh
def hessian_matvec(
    loss: Callable, params: Any, batches: Any, *operands: Any, **settings: Unpack[MatvecSettings]
) -> Operator:
    """Make the product with the Hessian of the mean loss over all examples.

    H = (1/N) Σ_b n_b ∇²L(w; batch b), n_b the size of batch b and N their sum, restricted to the
    weights under study. One product costs about two gradients over the data; linearised, six
    matrix products a dense layer (two for the first).

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples; or their losses,
            [n]; or their losses and weights, a pair of arrays [n, ...]. Model state such as
            BatchNorm statistics is an operand, never closed over.
        params: pytree of real floating arrays.
        batches: a pytree whose leaves are [num_batches, batch, ...], or a list of batches of
            unequal size, each a pytree whose leaves are [batch, ...].
        *operands: passed on to `loss`.
        **settings: see `MatvecSettings`.

    Returns:
        An `Operator` on [D], D the number of weights under study. Its arrays are operands of `jit`,
        `vmap` and `scan`.

    Raises:
        TypeError: if a leaf of `params` is not real floating, `loss` returns none of the three, a
            setting is unknown, `mask` is not boolean, `product_dtype` is not narrower than
            `params`, or `loss` has no derivative in the `mode` asked for.
        ValueError: if `params` is not finite, `batches` is empty or ragged within a batch, `mask`
            has another size or selects nothing, `mode` is unknown or does not suit
            `product_dtype` or `shard_params`, or weights of examples are negative or sum to 0.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ w) ** 2)
    >>> matvec = hessian_matvec(loss, jnp.zeros(2), jnp.array([[[1.0, 0.0], [0.0, 2.0]]]))
    >>> matvec(jnp.ones(2))
    Array([0.5, 2. ], dtype=float32)
    """
    check_settings("hessian_matvec", settings)
    check_studied(params, settings.get("where", is_weight))
    loss, operands = mean_loss(loss, params, batches, operands)
    return make_operator(Hessian(loss), params, batches, operands, **settings)


def linearization_bytes(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    where: Where = is_weight,
    product_dtype: Any = None,
) -> int:
    """Count the bytes that the linearisation of `hessian_matvec` keeps; nothing runs.

    Args:
        loss: see `hessian_matvec`.
        params: see `hessian_matvec`.
        batches: see `hessian_matvec`.
        *operands: passed on to `loss`.
        where: as in `MatvecSettings`.
        product_dtype: as in `MatvecSettings`.

    Returns:
        The bytes, on one device with all the examples; for batches that stay on the host, which
        are not linearised, those of the largest for each of them.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: jnp.mean(jnp.tanh(batch @ w) ** 2)
    >>> kept = linearization_bytes(loss, jnp.zeros(3), jnp.ones((2, 4, 3)))
    >>> 2 * 4 * 3 * 4 < kept < 400  # the examples, and what the version of JAX keeps beside them
    True
    """
    loss, operands = mean_loss(loss, params, batches, operands)
    times = 1
    if isinstance(batches, HostBatches):
        times, batches = len(batches), [max(batches, key=leading_size)]

    def shapes(params, batches, operands):
        weights, unflatten = flatten_weights(params, where)
        return unflatten, weights, group_batches(batches), operands

    operator_args = jax.eval_shape(shapes, params, batches, operands)
    form = OneDevice(Hessian(loss), operator_args)
    return times * differentiable(form, "auto", product_dtype, on_host=False)[1]


@overload
def gauss_newton_matvec(
    loss: Split,
    params: Any,
    batches: Any,
    /,
    *operands: Any,
    **settings: Unpack[MatvecSettings],
) -> Operator: ...


@overload
def gauss_newton_matvec(
    apply: Callable,
    output_loss: Callable,
    params: Any,
    batches: Any,
    /,
    *operands: Any,
    **settings: Unpack[MatvecSettings],
) -> Operator: ...


@takes_mesh
def gauss_newton_matvec(loss: Any, *args: Any, **settings: Unpack[MatvecSettings]) -> Operator:
    """Make the product with the Gauss-Newton matrix of a loss of a network's outputs.

    G = (1/N) Σ Jᵀ ∇²ℓ J, the Hessian without the curvature of the network itself: positive
    semi-definite where `output_loss` is convex, and of rank at most N times the outputs of an
    example. One product costs as much as one with the Hessian.

    Args:
        loss: a split loss, from `split_loss` or `training.make_loss`; or its two parts as two
            arguments, `apply(params, batch, *operands)` and `output_loss(outputs, batch)`.
        *args: `params` and `batches`, as `hessian_matvec` takes them; then operands that are passed
            on to the network.
        **settings: see `MatvecSettings`.

    Returns:
        An `Operator` on [D], as `hessian_matvec`.

    Raises:
        TypeError: as `hessian_matvec`.
        ValueError: as `hessian_matvec`.

    >>> import jax.numpy as jnp
    >>> apply = lambda w, x: jnp.tanh(x @ w)
    >>> loss = split_loss(apply, lambda y, x: 0.5 * jnp.mean(y**2))
    >>> matvec = gauss_newton_matvec(loss, jnp.zeros(2), jnp.ones((1, 3, 2)))
    >>> matvec(jnp.ones(2))
    Array([2., 2.], dtype=float32)

    Schraudolph (2002).
    """
    if not isinstance(loss, Split) and args and callable(args[0]):
        loss, args = split_loss(loss, args[0]), args[1:]
    loss = check_split(loss)
    params, batches, *operands = args
    check_settings("gauss_newton_matvec", settings)
    check_studied(params, settings.get("where", is_weight))
    apply, output_loss, operands = split_parts(
        loss.apply, loss.output_loss, params, batches, tuple(operands)
    )
    return make_operator(GaussNewton(apply, output_loss), params, batches, operands, **settings)


@takes_mesh
def fisher_matvec(
    apply: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    example_losses: Callable | None = None,
    **settings: Unpack[MatvecSettings],
) -> Operator:
    """Make the product with the Fisher information of a classifier, exact or empirical.

    The exact matrix, with labels drawn from the model, is F = (1/N) Σ Jᵀ (diag p - p pᵀ) J, p the
    softmax of the logits. The empirical one, at the given labels, is F̂ = (1/N) Σ ∇lₙ ∇lₙᵀ. Only the
    exact one is a Gauss-Newton matrix; the other can be far from it (Kunstner, Balles, Hennig
    2019). One product costs as much as one with the Hessian.

    Args:
        apply: `apply(params, batch, *operands)`, logits [batch, classes].
        params: pytree of real floating arrays.
        batches: see `hessian_matvec`.
        *operands: passed on to `apply`.
        example_losses: None for the exact matrix; `example_losses(outputs, batch)`, a loss for
            each example [batch], for the empirical one.
        **settings: see `MatvecSettings`.

    Returns:
        An `Operator` on [D], positive semi-definite.

    Raises:
        TypeError: if `apply` or `example_losses` returns another shape, or as `hessian_matvec`.
        ValueError: as `hessian_matvec`.

    >>> import jax.numpy as jnp
    >>> matvec = fisher_matvec(lambda w, x: x @ w.reshape(2, 2), jnp.zeros(4), jnp.ones((1, 1, 2)))
    >>> matvec(jnp.array([1.0, 0.0, 0.0, 0.0]))
    Array([ 0.25, -0.25,  0.25, -0.25], dtype=float32)
    """
    check_settings("fisher_matvec", settings)
    if example_losses is None:
        _check_outputs(
            "apply must return logits [batch, classes]", apply, 2, params, batches, operands
        )
        return gauss_newton_matvec(apply, _log_partition, params, batches, *operands, **settings)
    apply, losses, operands = split_parts(
        apply, example_losses, params, batches, operands, each="example_losses"
    )
    return make_operator(EmpiricalFisher(apply, losses), params, batches, operands, **settings)


def _log_partition(logits: Float[Array, "n classes"], batch: Any) -> Array:
    # The labels' own term is linear in the logits: the Hessian at the outputs is diag p - p pᵀ.
    del batch
    return jax.nn.logsumexp(logits, axis=-1).mean()


def _check_outputs(
    expected: str, function: Callable, ndim: int, params: Any, batches: Any, operands: tuple
) -> None:
    check_arrays(params)
    batch = first_batch(batches)
    shape = jnp.shape(jax.eval_shape(function, params, batch, *operands))
    if len(shape) != ndim or shape[0] != leading_size(batch):
        raise TypeError(f"{expected} for a batch of {leading_size(batch)}, got shape {shape}")


class _Passes:
    """Passes over the data; the first reuses the batch that was read for the checks."""

    def __init__(self, make_iterator: Callable[[], Iterable]):
        self._make, self._rest = make_iterator, iter(make_iterator())
        if iter(make_iterator()) is self._rest:
            raise ValueError(
                "make_iterator must return a fresh iterator over the batches each time it is "
                "called, got the same one twice"
            )
        self.first = next(self._rest, None)

    def __call__(self) -> Iterator:
        if self._rest is None:
            return iter(self._make())
        rest, self._rest = self._rest, None
        return itertools.chain([self.first], rest)


@takes_mesh
def hessian_matvec_over(
    loss: Callable,
    params: Any,
    make_iterator: Callable[[], Iterable],
    *operands: Any,
    mask: Any = None,
    where: Where = is_weight,
    mesh: Mesh | None = None,
) -> Operator:
    """Make the product with the Hessian over data that are read again for each product.

    For data that do not fit in memory; the matrix is that of `hessian_matvec`. A Python loop over
    the batches, with one compiled product for each shape of batch; memory of one batch. The
    operator is not traceable: call it eagerly.

    Args:
        loss: see `hessian_matvec`.
        params: pytree of real floating arrays.
        make_iterator: `make_iterator()`, a fresh iterator over the batches, each a pytree whose
            leaves are [batch, ...]; batches may differ in size, and their order does not matter.
        *operands: passed on to `loss`.
        mask: as in `MatvecSettings`.
        where: as in `MatvecSettings`.
        mesh: devices to share the examples of each batch. Every process reads all batches.

    Returns:
        An `Operator` on [D] that is not traceable.

    Raises:
        TypeError: if `make_iterator` is not callable, or as `hessian_matvec`.
        ValueError: if an iterator is empty or the same one comes twice, or as `hessian_matvec`; the
            operator itself raises it if a later pass has another number of examples.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ w) ** 2)
    >>> read = lambda: (row[None] for row in jnp.diag(jnp.array([1.0, 2.0])))
    >>> hessian_matvec_over(loss, jnp.zeros(2), read)(jnp.ones(2))
    Array([0.5, 2. ], dtype=float32)
    """
    if not callable(make_iterator):
        raise TypeError(
            "make_iterator must be a function that returns a fresh iterator, "
            f"got {type(make_iterator).__name__}"
        )
    passes = _Passes(make_iterator)
    batch = passes.first
    if batch is None:
        raise ValueError("make_iterator must return an iterator over batches, got an empty one")
    check_studied(params, where)
    loss, operands = mean_loss(loss, params, [batch], operands)
    if loss.kind == WEIGHTED:
        operands = (1.0, *operands[1:])  # the product divides by the weights itself
    return make_host_operator(
        Hessian(loss), params, passes, operands, mask=mask, where=where, mesh=mesh
    )

"""Gradient maps g(θ), whose derivative at the weights is the operator.

Each gives g over a stack of batches [num_batches, batch, ...]; what is held fixed is taken at
`weights`. They are frozen dataclasses, so equal ones share compiled programs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxlimit._core.batches import Group, leading_size, mean_over
from jaxlimit._core.functions import Frozen
from jaxlimit._core.losses import EACH, WEIGHTED, MeanLoss
from jaxlimit._core.scale import wide_type

GradientMap = Callable[[Float[Array, "D"]], Float[Array, "D"]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a gradient map is differentiated.

    Attributes:
        vectorize: whether the batches of a stack run side by side, by `vmap`, or in a loop.
        reverse: whether its derivative is taken in reverse mode, for functions that have no forward
            mode.
    """

    vectorize: bool = True
    reverse: bool = False

    def each(self, function: Callable, *stacks: Any) -> Any:
        """Return `function` of each batch of the stacks; a single batch is not wrapped at all."""
        if leading_size(stacks[0]) == 1:
            alone = function(*(jax.tree.map(lambda leaf: leaf[0], stack) for stack in stacks))
            return jax.tree.map(lambda leaf: leaf[None], alone)
        if self.vectorize:
            return jax.vmap(function)(*stacks)
        return jax.lax.map(lambda batch: function(*batch), stacks)

    def given(self, operands: tuple) -> tuple:
        """Return the user's own operands, without the scale of the loss's weights."""
        return operands[1:]

    def derivative(self, gradient: GradientMap, weights: Array, vector: Array) -> Array:
        """Multiply a vector by the derivative of a gradient map, which is symmetric."""
        if self.reverse:
            return jax.vjp(gradient, weights)[1](vector)[0]
        return jax.jvp(gradient, (weights,), (vector,))[1]

    def linearize(self, gradient: GradientMap, weights: Array) -> Callable:
        """Return the derivative of a gradient map as a function with all that it needs."""
        if self.reverse:
            return Partial(_first_of, jax.vjp(gradient, weights)[1])
        return jax.linearize(gradient, weights)[1]


def _first_of(pull: Callable, vector: Array) -> Array:
    return pull(vector)[0]


def _mean_gradient(values: Callable[[Any], Array]) -> Callable[[Any], Any]:
    """Return the gradient of a mean of values, computed as a sum in narrow types.

    There a cotangent of 1/n would be rounded, and might vanish.
    """

    def gradient(at):
        like = jax.eval_shape(values, at)
        if wide_type(like.dtype) == like.dtype:
            return jax.grad(lambda at: values(at).mean())(at)
        summed = jax.grad(lambda at: values(at).astype(wide_type(like.dtype)).sum())(at)
        return jax.tree.map(lambda leaf: leaf / like.size, summed)

    return gradient


@dataclass(frozen=True)
class Hessian(Kind):
    """g(θ) = ∇L(θ)."""

    loss: MeanLoss

    def given(self, operands: tuple) -> tuple:
        """Return the user's operands."""
        return operands[1:] if self.loss.kind == WEIGHTED else operands

    def gradient_map(
        self, unflatten: Partial, weights: Array, batches: Any, operands: tuple
    ) -> GradientMap:
        """Return g; nothing is held fixed."""
        del weights

        def of_stack(stack, vector):
            params = unflatten(vector)
            return self.each(lambda batch: self.loss(params, batch, *operands), stack)

        if self.vectorize:
            return _mean_gradient(partial(of_stack, batches))

        def of_batch(vector, batch):
            one = jax.tree.map(lambda leaf: leaf[None], batch)
            return _mean_gradient(partial(of_stack, one))(vector)

        # The loop is differentiated once, the gradient inside of it: after twice, JAX no longer
        # knows the derivative that a function of the host was given.
        groups = (Group(1.0, batches),)
        return lambda vector: mean_over(groups, partial(of_batch, vector))


@dataclass(frozen=True)
class GaussNewton(Kind):
    """g(θ) = Jᵀ ∇ℓ(f(θ)), J = ∂f held fixed; the first operand is the tuple of those of ℓ."""

    apply: Frozen
    output_loss: MeanLoss

    def gradient_map(
        self, unflatten: Partial, weights: Array, batches: Any, operands: tuple
    ) -> GradientMap:
        """Return g with J taken at `weights`."""
        of_loss, *rest = operands

        def outputs(vector):
            params = unflatten(vector)
            return self.each(lambda batch: self.apply(params, batch, *rest), batches)

        def losses(y):
            return self.each(lambda y, b: self.output_loss(y, b, *of_loss), y, batches)

        def of_batch(y, batch):
            return _mean_gradient(lambda y: self.output_loss(y, batch, *of_loss)[None])(y)

        def in_loop(y):  # differentiated once, as the Hessian's
            num_batches = leading_size(batches)
            return jax.tree.map(lambda leaf: leaf / num_batches, self.each(of_batch, y, batches))

        _, transpose = jax.vjp(outputs, weights)
        gradient = _mean_gradient(losses) if self.vectorize else in_loop
        return lambda vector: transpose(gradient(outputs(vector)))[0]


@dataclass(frozen=True)
class EmpiricalFisher(Kind):
    """g(θ) = Jᵀ W l(θ) / N, l the losses of N examples, W their weights, J = ∂l held fixed.

    The first operand is the tuple of those of `example_losses`.
    """

    apply: Frozen
    example_losses: MeanLoss

    def gradient_map(
        self, unflatten: Partial, weights: Array, batches: Any, operands: tuple
    ) -> GradientMap:
        """Return g with J taken at `weights`."""
        of_losses, *rest = operands

        def losses(vector):
            params = unflatten(vector)

            def of_batch(batch):
                outputs = self.apply(params, batch, *rest)
                losses, _ = self.example_losses.split(outputs, batch, *of_losses)
                return losses

            return self.each(of_batch, batches)

        def example_weights():
            def of_batch(batch):
                outputs = self.apply(unflatten(weights), batch, *rest)
                _, weight = self.example_losses.split(outputs, batch, *of_losses)
                return of_losses[0] * weight

            return self.each(of_batch, batches)

        values, transpose = jax.vjp(losses, weights)
        if self.example_losses.kind == EACH:
            return lambda vector: transpose(losses(vector) / values.size)[0]
        scaled = jax.lax.stop_gradient(example_weights()) / (values.shape[0] * values.shape[1])
        return lambda vector: transpose(scaled * losses(vector))[0]

"""Gradient maps g(θ), whose derivative at the weights is the operator.

Each gives g over a stack of batches [num_batches, batch, ...], with what is held fixed taken at
`weights`. Frozen dataclasses, so that equal ones share compiled programs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Float

GradientMap = Callable[[Float[Array, "D"]], Float[Array, "D"]]


def _on_each(function: Callable, unflatten: Partial, batches: Any, operands: tuple) -> Callable:
    """Return θ ↦ `function(params, batch, *operands)` on each batch of the stack."""

    def values(vector):
        params = unflatten(vector)
        return jax.vmap(lambda batch: function(params, batch, *operands))(batches)

    return values


@dataclass(frozen=True)
class Hessian:
    """g(θ) = ∇L(θ)."""

    loss: Callable

    def gradient_map(
        self, unflatten: Partial, weights: Array, batches: Any, operands: tuple
    ) -> GradientMap:
        """Return g; nothing is held fixed."""
        del weights
        losses = _on_each(self.loss, unflatten, batches, operands)
        return jax.grad(lambda vector: losses(vector).mean())


@dataclass(frozen=True)
class GaussNewton:
    """g(θ) = Jᵀ ∇ℓ(f(θ)), J = ∂f held fixed."""

    apply: Callable
    output_loss: Callable

    def loss(self, params: Any, batch: Any, *operands: Any) -> Array:
        """Return ℓ(f(θ)) on one batch."""
        return self.output_loss(self.apply(params, batch, *operands), batch)

    def gradient_map(
        self, unflatten: Partial, weights: Array, batches: Any, operands: tuple
    ) -> GradientMap:
        """Return g with J taken at `weights`."""
        outputs = _on_each(self.apply, unflatten, batches, operands)
        _, transpose = jax.vjp(outputs, weights)
        gradient = jax.grad(lambda y: jax.vmap(self.output_loss)(y, batches).mean())
        return lambda vector: transpose(gradient(outputs(vector)))[0]


@dataclass(frozen=True)
class EmpiricalFisher:
    """g(θ) = Jᵀ l(θ) / N, l the losses of N examples and J = ∂l held fixed."""

    apply: Callable
    example_losses: Callable

    def losses(self, params: Any, batch: Any, *operands: Any) -> Float[Array, "n"]:
        """Return the losses of one batch's examples."""
        return self.example_losses(self.apply(params, batch, *operands), batch)

    def gradient_map(
        self, unflatten: Partial, weights: Array, batches: Any, operands: tuple
    ) -> GradientMap:
        """Return g with J taken at `weights`."""
        losses = _on_each(self.losses, unflatten, batches, operands)
        values, transpose = jax.vjp(losses, weights)
        return lambda vector: transpose(losses(vector) / values.size)[0]

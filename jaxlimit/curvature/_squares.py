"""Sums of squared gradients over examples, without one gradient an example for dense layers.

The gradient of a dense kernel is Σₙ xₙ ⊗ δₙ and that of its bias Σₙ δₙ, so the sums of squares are
Σₙ xₙ² ⊗ δₙ² and Σₙ δₙ²: the same product of squares. The program of a backward pass over the batch
shows where this applies: where the last step before a leaf of the parameters is a product or sum
that contracts the examples and nothing else. Convolutions and shared weights end otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

_UNUSUAL = 7919  # a number of examples that no other axis is likely to have
_SHAPERS = {"transpose", "reshape", "squeeze", "expand_dims", "convert_element_type", "copy"}


class Ending(NamedTuple):
    """How a program ends in one leaf: the places of its product or sum and of changes of shape."""

    place: int
    shapers: tuple[int, ...]


class Dense:
    """The leaves of dense layers in a backward pass, and their sums of squares."""

    def __init__(self, backward: Callable, cotangent: Any, leaves: list, batch: Any) -> None:
        """Look at `backward(cotangent, leaves, batch)`, which returns the leaves' gradients."""
        num = cotangent.shape[0]
        self.program = jax.make_jaxpr(backward)(cotangent, leaves, batch)
        self.arguments = leaves, batch
        jaxpr = self.program.jaxpr
        self.varying = _varying(jaxpr)
        unusual = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((_UNUSUAL, *x.shape[1:]), x.dtype), (cotangent, batch)
        )
        try:
            other = jax.make_jaxpr(backward)(unusual[0], leaves, unusual[1]).jaxpr
        except (TypeError, ValueError):  # written for one size of batch
            self.endings: list[Ending | None] = [None] * len(leaves)
            return
        pairs = zip(_endings(jaxpr, num), _endings(other, _UNUSUAL), strict=True)
        self.endings = [a if a == b and self._is_product(a) else None for a, b in pairs]

    def num_bytes(self) -> int:
        """Count what a backward pass of one column may take."""
        made = {v for equation in self.program.jaxpr.eqns for v in equation.outvars}
        return sum(v.aval.size * v.aval.dtype.itemsize for v in made & self.varying)

    def squares(self, sum_over_columns: Callable[[Callable], list]) -> list[Array | None]:
        """Return for each leaf the sum of squares over examples and columns, None for others.

        Args:
            sum_over_columns: sums a function of a cotangent over all of them.
        """
        found = [self.program.jaxpr.eqns[e.place] for e in self.endings if e is not None]
        if not found:
            return [None] * len(self.endings)
        sides = [[v in self.varying for v in equation.invars] for equation in found]
        moving = [eqn.invars[side.index(True)] for eqn, side in zip(found, sides, strict=True)]
        still = [v for eqn in found for v in eqn.invars if v not in self.varying]
        sums = sum_over_columns(lambda column: self._squared(moving, column))
        fixed = iter(self._squared(still, None))
        made = (
            _contract(equation, side, total, fixed)
            for equation, side, total in zip(found, sides, sums, strict=True)
        )
        return [None if e is None else self._shaped(next(made), e) for e in self.endings]

    def _is_product(self, ending: Ending | None) -> bool:
        """Whether one factor alone depends on the cotangent."""
        if ending is None:
            return False
        operands = self.program.jaxpr.eqns[ending.place].invars
        return [v in self.varying for v in operands].count(True) == 1

    def _squared(self, variables: list, cotangent: Array | None) -> list[Array]:
        """Compute the squares of some of the program's variables."""
        jaxpr, leaves = self.program.jaxpr, jax.tree.leaves(self.arguments)
        if cotangent is None:  # of what does not depend on it
            cotangent = jnp.zeros(jaxpr.invars[0].aval.shape, jaxpr.invars[0].aval.dtype)
        names = jaxpr.debug_info._replace(result_paths=None)
        cut = jaxpr.replace(outvars=variables, debug_info=names)
        run = core.jaxpr_as_fun(core.ClosedJaxpr(cut, self.program.consts))
        return [_wide(value) ** 2 for value in run(cotangent, *leaves)]

    def _shaped(self, value: Array, ending: Ending) -> Array:
        for place in reversed(ending.shapers):
            equation = self.program.jaxpr.eqns[place]
            if equation.primitive.name != "convert_element_type":
                value = equation.primitive.bind(value, **equation.params)
        return value


def _contract(equation: core.JaxprEqn, side: list[bool], total: Array, fixed: Any) -> Array:
    """Make the product or sum of an ending, of squares."""
    if equation.primitive.name == "reduce_sum":
        return total.sum(equation.params["axes"])
    left, right = (total if moves else next(fixed) for moves in side)
    return jax.lax.dot_general(left, right, equation.params["dimension_numbers"])


def _endings(jaxpr: core.Jaxpr, num: int) -> list[Ending | None]:
    makers = {v: i for i, equation in enumerate(jaxpr.eqns) for v in equation.outvars}
    return [_ending(jaxpr, makers, variable, num) for variable in jaxpr.outvars]


def _ending(jaxpr: core.Jaxpr, makers: dict, variable: Any, num: int) -> Ending | None:
    shapers = []
    while not isinstance(variable, core.Literal) and variable in makers:
        place = makers[variable]
        equation = jaxpr.eqns[place]
        if _only_shapes(equation):
            shapers.append(place)
            variable = equation.invars[0]
        else:
            return Ending(place, tuple(shapers)) if _sums_examples(equation, num) else None
    return None


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _only_shapes(equation: core.JaxprEqn) -> bool:
    """Whether an equation changes only shape or type; a sum over axes of size 1 counts as one."""
    if equation.primitive.name == "reduce_sum":
        shape = _shape(equation.invars[0])
        return all(shape[axis] == 1 for axis in equation.params["axes"])
    return equation.primitive.name in _SHAPERS


def _sums_examples(equation: core.JaxprEqn, num: int) -> bool:
    """Whether a product or sum contracts one axis, that of `num` examples."""
    shapes = [_shape(v) for v in equation.invars]
    if equation.primitive.name == "reduce_sum":
        axes = equation.params["axes"]
        return len(axes) == 1 and shapes[0][axes[0]] == num
    if equation.primitive.name != "dot_general":
        return False
    contracted, batched = equation.params["dimension_numbers"]
    return not any(batched) and all(
        len(axes) == 1 and shape[axes[0]] == num
        for axes, shape in zip(contracted, shapes, strict=True)
    )


def _varying(jaxpr: core.Jaxpr) -> set:
    """Return the variables that depend on the first argument."""
    found = {jaxpr.invars[0]}
    for equation in jaxpr.eqns:
        if any(not isinstance(v, core.Literal) and v in found for v in equation.invars):
            found.update(equation.outvars)
    return found


def _wide(value: Array) -> Float[Array, "..."]:
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))

"""Operations of matrix products and convolutions, counted in a traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


def count_flops(function: Callable, *args: Any) -> int:
    """Count the operations of all matrix products and convolutions in a traced function.

    A loop counts as often as it runs (a `while` of unknown length once), a branch by its most
    expensive side. Nothing runs.

    Args:
        function: anything that traces.
        *args: its arguments, or `jax.ShapeDtypeStruct` in their place.

    Returns:
        The operations; a multiply-add counts as two.

    >>> import jax.numpy as jnp
    >>> count_flops(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
    60
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # The compiler leaves out what nothing reads, such as the primal gradient next to its tangent.
    return _flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _flops(jaxpr: core.Jaxpr) -> int:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        return _product_flops(equation)
    inner = [_flops(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _product_flops(equation: core.JaxprEqn) -> int:
    avals: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    left, right, out = (aval.shape for aval in avals)
    out = math.prod(out)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    kernel = equation.params["dimension_numbers"].rhs_spec
    taps = math.prod(right[axis] for axis in kernel[2:]) * right[kernel[1]]
    # The zeros that a transposed convolution puts between pixels cost nothing.
    spread = math.prod(equation.params["lhs_dilation"]) * math.prod(equation.params["rhs_dilation"])
    return 2 * out * taps // spread

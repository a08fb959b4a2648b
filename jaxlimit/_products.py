"""Matrix products of a linear function in a narrower type, accumulated in the wider one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Array

_PRODUCTS = {"dot_general", "conv_general_dilated"}
_INLINED = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


@dataclass(frozen=True, eq=False)
class _Evaluate:
    """Evaluate a jaxpr whose leading inputs are stored constants; hashed by identity."""

    jaxpr: Any

    def __call__(self, constants: list, vector: Array) -> Array:
        (result,) = jax.core.eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, *constants, vector)
        return result


def narrow_products(linear: Partial, vector: Any, dtype: Any) -> Partial:
    """Round the operands of every matrix product and convolution in `linear` to `dtype`.

    Products accumulate in the type they had, and everything between them stays as it was. The
    constants that only products read are rounded once, here, which also halves their memory.
    Loop bodies (`scan`, `while`) are left unrounded.

    Args:
        linear: a function of one vector that carries its constants, from `jax.linearize`.
        vector: an example argument; only its shape and type matter.
        dtype: the narrower floating type, such as `jnp.bfloat16`.
    """
    constants, treedef = jax.tree.flatten(linear)

    def apply(*arguments):
        return jax.tree.unflatten(treedef, arguments[:-1])(arguments[-1])

    plain = jax.make_jaxpr(apply)(*constants, vector)
    rounded = jax.make_jaxpr(lambda *args: _evaluate(plain, args, dtype))(*constants, vector)
    constants = [
        constant.astype(dtype) if _only_rounded(rounded.jaxpr, variable, dtype) else constant
        for variable, constant in zip(rounded.jaxpr.invars, constants, strict=False)
    ]
    # Traced again, so that the rounding of the constants rounded above is gone from the program.
    return Partial(
        _Evaluate(jax.make_jaxpr(core.jaxpr_as_fun(rounded))(*constants, vector)), constants
    )


def _evaluate(closed: Any, arguments: Sequence, dtype: Any) -> list:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]  # noqa: E731
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        values.update(zip(equation.outvars, _bind(equation, inputs, dtype), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: Any, inputs: list, dtype: Any) -> list:
    name, params = equation.primitive.name, equation.params
    if name in _INLINED:
        inner = params.get("jaxpr") or params["call_jaxpr"]
        return _evaluate(inner, inputs, dtype)
    if name in _PRODUCTS and all(jnp.issubdtype(x.dtype, jnp.floating) for x in inputs):
        params = params | {
            "preferred_element_type": equation.outvars[0].aval.dtype,
            "precision": None,
        }
        inputs = [x.astype(dtype) for x in inputs]
    result = equation.primitive.bind(*inputs, **params)
    return list(result) if equation.primitive.multiple_results else [result]


def _only_rounded(jaxpr: Any, variable: Any, dtype: Any) -> bool:
    """Whether every use of `variable` is a conversion to `dtype`."""
    users = [equation for equation in jaxpr.eqns if variable in equation.invars]
    return bool(users) and all(
        equation.primitive.name == "convert_element_type"
        and equation.params["new_dtype"] == jnp.dtype(dtype)
        for equation in users
    )

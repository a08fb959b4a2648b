"""Change how a traced program multiplies matrices, and nothing else."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Array

from jaxlimit._core import convolutions

CONVOLUTION = "conv_general_dilated"
PRODUCTS = {"dot_general", CONVOLUTION}
_INLINED = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}

# Takes a product's own function of its operands, they and its parameters; gives the result.
Change = Callable[[Callable, list, dict], Array]


def precise_products() -> AbstractContextManager:
    """Multiply in the full precision of the operands, unless the caller has chosen a precision.

    NVIDIA's devices would round float32 operands to TF32. The caller's choice is
    `jax.default_matmul_precision`.
    """
    config: Any = jax.config
    if config.jax_default_matmul_precision is None:
        return jax.default_matmul_precision("highest")
    return nullcontext()


def change_products(program: core.ClosedJaxpr, change: Change) -> core.ClosedJaxpr:
    """Apply `change` to every product of floating arrays, also inside loops and branches.

    The types of the program's inputs and outputs, and of each product's result, stay as they were.
    """

    def changed(*arguments):
        return _evaluate(program.jaxpr, program.consts, arguments, change)

    return jax.make_jaxpr(changed)(*program.in_avals)


def canonical_convolutions(function: Callable) -> Callable:
    """Make convolutions of a function in a loop fast on a CPU; on other devices change nothing.

    XLA's CPU backend has a fast convolution for channels last, and brings others into that order,
    but not within loops, where the gradient of a kernel takes tens of times as long. Where other
    forms are faster than its own, they are taken (`convolutions.choose`).
    """
    if jax.default_backend() != "cpu":
        return function

    def changed(*arguments):
        program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _convolves(program.jaxpr):
            return function(*arguments)
        leaves = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(arguments), _canonical)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return changed


def _canonical(product: Callable, operands: list, params: dict) -> Array:
    """Convolve with the channels last, in the form that is the fastest."""
    if "window_strides" not in params:
        return product(*operands, **params)
    (batch, channel, *space), (out, into, *taps), result = params["dimension_numbers"]
    images = jnp.transpose(operands[0], (batch, *space, channel))
    kernel = jnp.transpose(operands[1], (*taps, into, out))
    last = images.ndim - 1
    order = (0, last, *range(1, last))
    numbers = jax.lax.ConvDimensionNumbers(order, (last, last - 1, *range(last - 1)), order)
    direct = partial(product, **params | {"dimension_numbers": numbers})
    convolved = convolutions.convolve(images, kernel, params, direct)
    return jnp.transpose(convolved, [order[result.index(axis)] for axis in range(images.ndim)])


def _convolves(jaxpr: core.Jaxpr) -> bool:
    return has(jaxpr, CONVOLUTION)


def has(jaxpr: core.Jaxpr, name: str) -> bool:
    """Whether a program has a primitive of this name, also inside loops and branches."""
    return any(equation.primitive.name == name for equation in jaxpr.eqns) or any(
        has(inner, name) for inner in core.subjaxprs(jaxpr)
    )


def check_forward_mode(function: Callable, *args: Any) -> None:
    """Raise if a derivative needs the forward mode of a function that has only a `custom_vjp`.

    Nothing runs. JAX itself says so only when the program is compiled.

    Raises:
        TypeError: if it does.
    """
    if has(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr, "custom_lin"):
        raise TypeError("a function of jax.custom_vjp in it has no forward mode")


def highest_precision(product: Callable, operands: list, params: dict) -> Array:
    """Multiply in the full precision of the operands: no TF32 or bfloat16 passes."""
    return product(*operands, **params | {"precision": (jax.lax.Precision.HIGHEST,) * 2})


@dataclass(frozen=True)
class _Narrow:
    """Round operands to a narrower type, and accumulate in the type that the result had."""

    dtype: Any

    def __call__(self, product: Callable, operands: list, params: dict) -> Array:
        operands = [operand.astype(self.dtype) for operand in operands]
        # XLA's CPU backend refuses a bfloat16 product that it has moved a later transpose into.
        return jax.lax.optimization_barrier(product(*operands, **params | {"precision": None}))


@dataclass(frozen=True, eq=False)
class _Evaluate:
    """Evaluate a program whose leading inputs are stored constants; hashed by identity."""

    program: core.ClosedJaxpr

    def __call__(self, constants: list, vector: Array) -> Array:
        (result,) = core.jaxpr_as_fun(self.program)(*constants, vector)
        return result


def canonical_linear(linear: Callable, vector: Any) -> Callable:
    """Make convolutions of a linear function with constants fast on a CPU, also in loops.

    Args:
        linear: from `jax.linearize`.
        vector: an example argument; only its shape and type matter.
    """
    constants, apply = _split(linear)
    changed = canonical_convolutions(apply)
    if changed is apply:
        return linear
    program = jax.make_jaxpr(changed)(*constants, vector)
    return Partial(_Evaluate(program), constants) if _convolves(program.jaxpr) else linear


def narrow_products(linear: Callable, vector: Any, dtype: Any) -> Partial:
    """Round the operands of every matrix product and convolution in `linear` to `dtype`.

    Products accumulate in the type they had, and everything between them stays as it was. The
    constants that only products read are rounded once, here, which also halves their memory.

    Args:
        linear: a function of one vector that carries its constants, from `jax.linearize`.
        vector: an example argument; only its shape and type matter.
        dtype: the narrower floating type, such as `jnp.bfloat16`.
    """
    constants, apply = _split(linear)
    narrowed = change_products(jax.make_jaxpr(apply)(*constants, vector), _Narrow(dtype))
    constants = [
        constant.astype(dtype) if _only_rounded(narrowed.jaxpr, variable, dtype) else constant
        for variable, constant in zip(narrowed.jaxpr.invars, constants, strict=False)
    ]
    # Traced again, so that the rounding of the constants rounded above is gone from the program.
    return Partial(
        _Evaluate(jax.make_jaxpr(core.jaxpr_as_fun(narrowed))(*constants, vector)), constants
    )


def _split(linear: Callable) -> tuple[list, Callable]:
    """Return the constants that a function of one vector carries, and the function of them all."""
    constants, treedef = jax.tree.flatten(linear)

    def apply(*arguments):
        return jax.tree.unflatten(treedef, arguments[:-1])(arguments[-1])

    return constants, apply


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence, arguments: Sequence, change: Change) -> list:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        values.update(zip(equation.outvars, _bind(equation, inputs, change), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: core.JaxprEqn, inputs: list, change: Change) -> list:
    name, params = equation.primitive.name, equation.params
    if name in _INLINED:
        # Seen through, so a constant that is read inside counts as read by a product.
        inner = params.get("jaxpr") or params["call_jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, inputs, change)
    if name in PRODUCTS and all(jnp.issubdtype(x.dtype, jnp.floating) for x in inputs):
        params = params | {"preferred_element_type": _dtype(equation.outvars[0])}
        return [change(equation.primitive.bind, inputs, params)]
    if name == "shard_map":
        return _bind_shard_map(params, inputs, change)
    if core.jaxprs_in_params(params):
        params = {key: _change_nested(value, change) for key, value in params.items()}
    result = equation.primitive.bind(*inputs, **params)
    return list(result) if equation.primitive.multiple_results else [result]


def _bind_shard_map(params: dict, inputs: list, change: Change) -> list:
    """Map anew, since the program inside can be traced only where its mesh has names."""

    def of_device(*arguments):
        return tuple(_evaluate(params["jaxpr"], (), arguments, change))

    mapped = jax.shard_map(
        of_device,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        check_vma=params["check_vma"],
    )
    return list(mapped(*inputs))


def _change_nested(value: Any, change: Change) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return change_products(value, change)
    if isinstance(value, core.Jaxpr):
        return change_products(core.ClosedJaxpr(value, ()), change).jaxpr
    if type(value) is tuple:
        return tuple(_change_nested(entry, change) for entry in value)
    return value


def _only_rounded(jaxpr: core.Jaxpr, variable: Any, dtype: Any) -> bool:
    """Whether every use of `variable` is a conversion to `dtype`."""
    users = [equation for equation in jaxpr.eqns if variable in equation.invars]
    return bool(users) and all(
        equation.primitive.name == "convert_element_type"
        and equation.params["new_dtype"] == jnp.dtype(dtype)
        for equation in users
    )


def _dtype(variable: Any) -> Any:
    return variable.aval.dtype


def product_dtypes(jaxpr: core.Jaxpr) -> set[str]:
    """Return the names of the operand types of all products in a program."""
    found = {
        str(_dtype(operand))
        for equation in jaxpr.eqns
        if equation.primitive.name in PRODUCTS
        for operand in equation.invars
    }
    return found.union(*(product_dtypes(inner) for inner in core.subjaxprs(jaxpr)))

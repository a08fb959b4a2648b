"""Principal blocks of a linear program: what lies on no way from the block to itself is left out.

The derivative of a gradient passes forward through all layers and back. The block of one layer
needs neither the tangents of the weights of others nor what is before it, so its product costs what
that of an operator on this layer alone costs, and reads the same stored constants as all others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

_INLINED = {"jit", "pjit", "closed_call"}
_SUMS = {"add", "add_any"}
_ENTRYWISE = {"mul", "div", "neg", *_SUMS}


class _Zero:
    """An array of zeros that is never made."""

    def __init__(self, like: Any) -> None:
        self.shape, self.dtype = tuple(like.shape), like.dtype
        self.size = int(like.size)


class _Pieces:
    """A vector in pieces, each of them an array or zero."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        self.pieces = list(pieces)

    def take(self, start: int, stop: int) -> Any:
        """Return a part: zero where all pieces that it meets are."""
        found, begin = [], 0
        for piece in self.pieces:
            low, high = max(start - begin, 0), min(stop - begin, piece.size)
            begin += piece.size
            if low >= high:
                continue
            is_zero = isinstance(piece, _Zero)
            found.append(_zeros((high - low,), piece.dtype) if is_zero else piece[low:high])
        if all(isinstance(part, _Zero) for part in found):
            return _zeros((stop - start,), found[0].dtype)
        return found[0] if len(found) == 1 else jnp.concatenate(list(map(_made, found)))

    @property
    def sizes(self) -> list[int]:
        """Return the sizes of the pieces."""
        return [piece.size for piece in self.pieces]


def _zeros(shape: tuple[int, ...], dtype: Any) -> _Zero:
    return _Zero(jax.ShapeDtypeStruct(shape, dtype))


def principal_block(
    function: Callable, constants: Any, vector: Any, start: int, stop: int
) -> Callable[[Any, Array], Array]:
    """Restrict `function(constants, vector)`, linear in the vector, to a principal block.

    Args:
        function: maps a vector [D] to one.
        constants: pytree of arrays.
        vector: the shape and type of a vector.
        start: first entry of the block.
        stop: the entry after its last.

    Returns:
        A function of the constants and of a vector [stop - start].

    >>> H = jnp.array([[1.0, 2.0, 0.0], [2.0, 3.0, 4.0], [0.0, 4.0, 5.0]])
    >>> block = principal_block(lambda H, v: H @ v, H, jax.ShapeDtypeStruct((3,), H.dtype), 1, 3)
    >>> block(H, jnp.array([1.0, 10.0]))
    Array([43., 54.], dtype=float32)
    """
    program = jax.make_jaxpr(function)(constants, vector)

    def block(constants: Any, part: Array) -> Array:
        before, after = start, vector.size - stop
        whole = _Pieces([_zeros((before,), part.dtype), part, _zeros((after,), part.dtype)])
        leaves = jax.tree.leaves(constants)
        is_linear = [False] * len(leaves) + [True]
        (result,) = _evaluate(program, [*leaves, whole], is_linear)
        result = result if isinstance(result, _Pieces) else _Pieces([result])
        return _made(result.take(start, stop))

    return block


def _evaluate(program: core.ClosedJaxpr, arguments: list, of_vector: list[bool]) -> list:
    """Evaluate a program, some of whose arguments are linear in the vector."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    linear = {x for x, is_linear in zip(jaxpr.invars, of_vector, strict=True) if is_linear}
    for equation in jaxpr.eqns:
        atoms = equation.invars
        inputs = [a.val if isinstance(a, core.Literal) else values[a] for a in atoms]
        is_linear = [not isinstance(a, core.Literal) and a in linear for a in atoms]
        outputs = _bind(equation, inputs, is_linear)
        values.update(zip(equation.outvars, outputs, strict=True))
        linear.update(equation.outvars if any(is_linear) else ())
    return [a.val if isinstance(a, core.Literal) else values[a] for a in jaxpr.outvars]


def _bind(equation: core.JaxprEqn, inputs: list, is_linear: list[bool]) -> list:
    name, params = equation.primitive.name, equation.params
    of_vector = [x for x, linear in zip(inputs, is_linear, strict=True) if linear]
    if of_vector and all(isinstance(x, _Zero) for x in of_vector):
        return [_Zero(variable.aval) for variable in equation.outvars]
    if name in _INLINED:
        inner = params.get("jaxpr") or params["call_jaxpr"]
        return _evaluate(inner, inputs, is_linear)
    known = _of_pieces(name, params, inputs)
    if known is not None:
        return known
    if name in _SUMS and any(isinstance(x, _Zero) for x in inputs):
        (rest,) = [x for x in inputs if not isinstance(x, _Zero)]
        like: Any = equation.outvars[0].aval
        if jnp.shape(rest) == like.shape:
            return [rest]
    result = equation.primitive.bind(*map(_made, inputs), **params)
    return list(result) if equation.primitive.multiple_results else [result]


def _of_pieces(name: str, params: dict, inputs: list) -> list | None:
    """Cut, join and scale vectors in pieces; None for all else."""
    first = inputs[0]
    if name == "split" and isinstance(first, _Pieces):
        ends = [0]
        for size in params["sizes"]:
            ends.append(ends[-1] + int(size))
        return [first.take(*ends[i : i + 2]) for i in range(len(ends) - 1)]
    if name == "slice" and isinstance(first, _Pieces) and params["strides"] is None:
        return [first.take(int(params["start_indices"][0]), int(params["limit_indices"][0]))]
    if name == "concatenate" and all(len(_shape(x)) == 1 for x in inputs):
        return [_Pieces([_made(x) if isinstance(x, _Pieces) else x for x in inputs])]
    pieces = [x for x in inputs if isinstance(x, _Pieces)]
    if name not in _ENTRYWISE or not pieces:
        return None
    rest = [x for x in inputs if not isinstance(x, _Pieces)]
    if any(_shape(x) for x in rest) or len({tuple(x.sizes) for x in pieces}) > 1:
        return None
    found = []
    for i, part in enumerate(pieces[0].pieces):
        own = [x.pieces[i] if isinstance(x, _Pieces) else x for x in inputs]
        found.append(_entrywise(name, own, part))
    return [_Pieces(found)]


def _entrywise(name: str, inputs: list, like: Any) -> Any:
    zeros = [isinstance(x, _Zero) for x in inputs]
    if name in _SUMS:
        kept = [x for x, is_zero in zip(inputs, zeros, strict=True) if not is_zero]
        return sum(kept[1:], start=kept[0]) if kept else like
    if any(zeros):
        return like
    operation = {"mul": jnp.multiply, "div": jnp.divide, "neg": jnp.negative}[name]
    return operation(*inputs)


def _shape(value: Any) -> tuple[int, ...]:
    return (sum(value.sizes),) if isinstance(value, _Pieces) else jnp.shape(value)


def _made(value: Any) -> Any:
    """Return an array, of zeros where it has to be."""
    if isinstance(value, _Zero):
        return jnp.zeros(value.shape, value.dtype)
    return jnp.concatenate(list(map(_made, value.pieces))) if isinstance(value, _Pieces) else value

"""Argument checks shared by the public functions: they name the argument and what was given."""

import difflib
import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as a Python int, or raise if it is no integer or below `minimum`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a static int, got {value!r}") from None
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}")
    return count


def check_seed(name: str, value: Any) -> int:
    """Return `value` as an int below 2³², or raise: of a larger one a key takes the low 32 bits.

    >>> check_seed("seed", 2**32)  # would be another name of seed 0
    Traceback (most recent call last):
    ValueError: seed must be below 2**32, got 4294967296
    """
    seed = check_count(name, value, 0)
    if seed >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {seed}")
    return seed


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value`, or raise if it is not one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_key(name: str, key: Any) -> None:
    """Raise unless `key` is one typed random key, as `jax.random.key` makes them."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        old = dtype == jnp.uint32 and jnp.shape(key)[-1:] in ((2,), (4,))
        hint = "; wrap an old key by jax.random.wrap_key_data" if old else ""
        raise TypeError(f"{name} must come from jax.random.key, got {_shown(key)}{hint}")
    if jnp.ndim(key) != 0:
        raise ValueError(f"{name} must be one key, got shape {jnp.shape(key)}")


def check_known(function: str, **values: Any) -> None:
    """Raise if one of the values, by name, is traced: `function` decides by numbers as it goes.

    >>> jax.jit(lambda key: check_known("f", key=key))(jax.random.key(0))
    Traceback (most recent call last):
    TypeError: key must be known, got a traced one: f decides on the host by the numbers ...
    """
    for name, value in values.items():
        if not is_concrete(value):
            raise TypeError(
                f"{name} must be known, got a traced one: {function} decides on the host by the "
                "numbers that it finds, so it cannot run under jit or vmap"
            )


def check_keywords(function: str, given: Any, known: Any) -> None:
    """Raise unless all of the names `given` are `known`; names the nearest known one.

    >>> check_keywords("f", ["num_stepz"], ["num_steps", "tolerance"])
    Traceback (most recent call last):
    TypeError: f has no argument 'num_stepz': did you mean 'num_steps'?
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
            raise TypeError(f"{function} has no argument {name!r}: {hint}")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise `TypeError` unless `value` is of one of this package's types."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {_shown(value)}")


def as_array(name: str, value: Any) -> jax.Array:
    """Convert a value to an array of real numbers, or raise `TypeError`.

    >>> as_array("grid", ["x"])
    Traceback (most recent call last):
    TypeError: grid must be real numbers, got list ['x']
    """
    try:
        array = None if value is None else jnp.asarray(value)
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise TypeError(f"{name} must be real numbers, got {_shown(value)}")
    if jnp.iscomplexobj(array):
        raise TypeError(f"{name} must be real, got dtype {array.dtype}")
    return array


def is_concrete(*values: Any) -> bool:
    """Whether every leaf is a known value, whose contents can be checked now."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_real(name: str, value: Any) -> jnp.dtype:
    """Return the type of a real number or array, or raise; Booleans and lists are neither."""
    try:
        # A string could be the name of a type.
        if isinstance(value, bool | str | bytes | list | type | None) or (
            isinstance(value, tuple) and not hasattr(value, "__jax_array__")
        ):
            raise TypeError
        dtype = jnp.result_type(getattr(value, "value", value))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a real number or array, got {_shown(value)}"
            f"{'; use jnp.asarray' if isinstance(value, list | tuple) else ''}"
        ) from None
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be real, got dtype {dtype}")
    return dtype


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"


def check_range(
    name: str, value: Any, low: float = -jnp.inf, high: float = jnp.inf, *, open_low: bool = False
) -> None:
    """Raise unless every entry of `value` is within [low, high]; traced values pass unchecked."""
    dtype = check_real(name, value)
    if not is_concrete(value):
        return
    with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
        # A Python number is checked without JAX, which would initialise its devices.
        if isinstance(value, int | float):
            array = np.asarray(value).astype(dtype if isinstance(value, float) else int)
            inside = _is_inside(array, low, high, open_low=open_low)
        else:
            inside = _all_inside(jnp.asarray(value), low, high, open_low=open_low)
    if not inside:
        left = "(" if open_low else "["
        raise ValueError(f"{name} must lie in {left}{low}, {high}], got {value}")


def _is_inside(array: Any, low: float, high: float, *, open_low: bool) -> Any:
    above = array > low if open_low else array >= low
    return (above & (array <= high)).all()


# One program each, where operations one by one would be four.
_all_inside = jax.jit(_is_inside, static_argnames="open_low")
_all_finite = jax.jit(lambda array: jnp.isfinite(array).all())


def is_finite(array: Any) -> bool:
    """Whether every entry is finite, as far as is known now: traced arrays are taken to be."""
    if not is_concrete(array):
        return True
    # Inside a caller's `jit`, operations on known values would be traced too.
    with jax.ensure_compile_time_eval():
        return bool(_all_finite(array))


def check_floating_tree(name: str, tree: Any, floating: list[bool] | None = None) -> None:
    """Raise unless `tree` is a non-empty pytree of real floating arrays, finite where known.

    Args:
        name: of the argument.
        tree: its value.
        floating: for each leaf, whether it must be floating; the others may be any real arrays,
            such as frozen integer weights. By default all must.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got an empty pytree")
    for (path, leaf), must in zip(leaves, floating or [True] * len(leaves), strict=True):
        where = name + jax.tree_util.keystr(path)
        if callable(leaf) and not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{where} must be a real floating array, got a function. Of a whole Equinox model "
                "pass the arrays alone, arrays, rest = eqx.partition(model, eqx.is_inexact_array), "
                "and have the loss call eqx.combine(arrays, rest)"
            )
        if not must and str(getattr(leaf, "dtype", None)) == "bool":
            continue
        dtype = check_real(where, leaf)
        if must and not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{where} must be a real floating array, got dtype {dtype}")
    known = [(path, leaf) for path, leaf in leaves if is_concrete(leaf)]
    with jax.ensure_compile_time_eval():
        finite = np.asarray(_are_finite([leaf for _, leaf in known])) if known else ()
    for (path, _), all_finite in zip(known, finite, strict=True):
        if not all_finite:
            where = name + jax.tree_util.keystr(path)
            raise ValueError(f"{where} must be finite, got NaN or infinity")


@jax.jit
def _are_finite(leaves: list) -> jax.Array:
    """Whether each leaf is finite, in one program: a network has leaves of many shapes."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])

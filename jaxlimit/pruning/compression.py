"""A pruned network as a smaller dense one, without the units and channels that do nothing.

A network is described by its *spaces*: the axes of units or channels that layers write and read. A
plan lists them with their writers and readers. What can be removed is then found in the same way
for every architecture.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxlimit.pruning._plans import Plan, Reader, Space, Writer, plan_of

_BATCH_NORM_EPSILON = 1e-5


class Compressed(NamedTuple):
    """A smaller dense network with the same outputs.

    Attributes:
        module: the module with smaller widths; None for `compress_dense`.
        params: its parameters.
        state: its other variables, such as the statistics of BatchNorm.
        widths: remaining units or channels of each space, by name.
        num_params: numbers in `params`.
        num_params_before: numbers in the parameters before.
        num_bytes: bytes of `params`, stored dense; compare `formats.stored_size` of the parameters
            before.
    """

    module: Any
    params: Any
    state: Any
    widths: dict[str, int]
    num_params: int
    num_params_before: int
    num_bytes: int


def compress(module: Any, params: Any, state: Any = None) -> Compressed:
    """Remove the units and channels of a pruned network of the zoo that do nothing.

    Outputs in evaluation mode stay the same on every input, up to rounding. Units that nothing
    reads are removed. Units without inputs are constant: they are removed too, and a constant other
    than 0 is folded into the bias (or BatchNorm's mean) of the layers that read it. A reader that
    pads its input with zeros sees no constant at the border; there one of several such channels is
    kept and stands for all. Channels of a residual stream are removed if nothing reads them, or if
    they always stay 0. Heads of an attention are removed if nothing reads them, or if their values
    do not depend on the tokens; the width of a residual stream of tokens stays. A removal may allow
    others, so this is repeated until nothing changes. Every space keeps at least one unit.

    Costs a few passes over the parameters on the host.

    Args:
        module: an `MLP`, `VGG`, `AlexNet`, `ResNet`, `CNN` or `ViT` of `jaxlimit.models`.
        params: its parameters, pruned weights exactly 0.
        state: its `batch_stats`, if it has any.

    Returns:
        A `Compressed`.

    Raises:
        TypeError: if `module` is of another type; `compress_dense` takes any chain of dense layers.
        ValueError: if `params` or `state` lacks leaves of the module.

    >>> import jax, jax.numpy as jnp
    >>> from jaxlimit import models
    >>> module = models.MLP(widths=(4, 3), num_classes=2)
    >>> params = module.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))["params"]
    >>> params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:, 0].set(0.0)
    >>> compress(module, params).module.widths
    (3, 3)
    """
    plan = plan_of(module)
    state = {} if state is None else state
    leaves = _flat({"params": params, **state})
    missing = {name for space in plan.spaces for name in space.names} - set(leaves)
    if missing:
        raise ValueError(
            f"params and state must hold {sorted(missing)}, which are leaves of {module}"
        )
    widths = _shrink(leaves, plan)
    tree = _nested(leaves)
    return _result(plan.rebuild(widths), tree.pop("params"), tree, widths, params)


def compress_dense(
    params: Any,
    *,
    layers: Sequence[str] | None = None,
    activation: Callable = jax.nn.relu,
) -> Compressed:
    """Remove the units of any chain of dense layers that do nothing, as `compress` does.

    Args:
        params: nested dictionaries with a `kernel` [in, out] and perhaps a `bias` [out] a layer. A
            layer without a bias gets one where a constant unit is folded into it.
        layers: paths of the layers, first to last, such as `Dense_0`; None takes them by the
            numbers in their names, if their shapes form a chain.
        activation: the elementwise function between the layers.

    Returns:
        A `Compressed` without a module.

    Raises:
        ValueError: if the layers form no chain.

    >>> import jax.numpy as jnp
    >>> params = {"a_1": {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.array([0.0, 2.0])},
    ...           "a_2": {"kernel": jnp.array([[3.0], [5.0]]), "bias": jnp.array([1.0])}}
    >>> compress_dense(params).params["a_2"]["bias"]  # 1 + 5 * relu(2)
    Array([11.], dtype=float32)
    """
    leaves = _flat(params)
    layers = _chain(leaves) if layers is None else list(layers)
    spaces = []
    for name, after in itertools.pairwise(layers):
        found = [leaves.get(f"{layer}/kernel") for layer in (name, after)]
        shapes: list[Sequence[int]] = [() if kernel is None else kernel.shape for kernel in found]
        if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][0]:
            raise ValueError(
                f"layers must form a chain of kernels [in, out]; {name} and {after} do not, "
                f"with shapes {shapes}"
            )
        for layer in (name, after):
            kernel = leaves[f"{layer}/kernel"]
            leaves.setdefault(f"{layer}/bias", np.zeros(kernel.shape[1], kernel.dtype))
        writer, reader = (Writer(f"{n}/kernel", f"{n}/bias") for n in (name, after))
        spaces.append(Space(name, ((writer,),), (Reader(reader),)))
    widths = _shrink(leaves, Plan(tuple(spaces), lambda widths: None, activation))
    return _result(None, _nested(leaves), {}, widths, params)


def _chain(leaves: dict[str, np.ndarray]) -> list[str]:
    names = [name.removesuffix("/kernel") for name in leaves if name.endswith("/kernel")]
    number = lambda name: [int(part) for part in "".join(  # noqa: E731
        c if c.isdigit() else " " for c in name).split()]  # fmt: skip
    return sorted(names, key=number)


def _result(module: Any, params: Any, state: Any, widths: dict, before: Any) -> Compressed:
    params = jax.tree.map(jax.numpy.asarray, params)
    state = jax.tree.map(jax.numpy.asarray, state)
    leaves = jax.tree.leaves(params)
    return Compressed(
        module,
        params,
        state,
        widths,
        sum(leaf.size for leaf in leaves),
        sum(np.size(leaf) for leaf in jax.tree.leaves(before)),
        sum(leaf.nbytes for leaf in leaves),
    )


def _flat(tree: Any) -> dict[str, np.ndarray]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in paths
    }


def _nested(leaves: dict[str, np.ndarray]) -> dict:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _shrink(leaves: dict[str, np.ndarray], plan: Plan) -> dict[str, int]:
    """Remove what does nothing from all spaces, in place, until nothing changes; return widths."""
    sizes: dict[str, int] = {}
    while sizes != (sizes := _sizes(leaves, plan)):
        for attention in plan.attentions:
            _shrink_heads(leaves, attention)
        for space in plan.spaces:
            _shrink_space(leaves, space, plan.activation)
    return sizes


def _sizes(leaves: dict[str, np.ndarray], plan: Plan) -> dict[str, int]:
    heads = {at.removeprefix("params/"): len(leaves[f"{at}/out/kernel"]) for at in plan.attentions}
    return heads | {space.name: _size(leaves, space) for space in plan.spaces}


def _shrink_heads(leaves: dict[str, np.ndarray], at: str) -> None:
    """Remove heads that nothing reads, and those with constant values, which averages keep."""
    out, value = leaves[f"{at}/out/kernel"], leaves[f"{at}/value/kernel"]
    gone = (out == 0).all((1, 2))
    constant = (value == 0).all((0, 2)) & ~gone
    bias, name = leaves[f"{at}/value/bias"].astype(np.float64), f"{at}/out/bias"
    shift = np.einsum("hd,hdo->o", bias[constant], out[constant])
    leaves[name] = (leaves[name] + shift).astype(leaves[name].dtype)
    gone = gone | constant
    if gone.all():  # an attention needs a head: one stays, though nothing reads it
        leaves[f"{at}/out/kernel"] = np.zeros_like(out)
        gone = np.arange(gone.size) > 0
    leaves[f"{at}/out/kernel"] = leaves[f"{at}/out/kernel"][~gone]
    for part in ("query", "key", "value"):
        leaves[f"{at}/{part}/kernel"] = leaves[f"{at}/{part}/kernel"][:, ~gone]
        leaves[f"{at}/{part}/bias"] = leaves[f"{at}/{part}/bias"][~gone]


def _size(leaves: dict[str, np.ndarray], space: Space) -> int:
    return leaves[space.writers[0].kernel].shape[-1]


def _shrink_space(leaves: dict[str, np.ndarray], space: Space, activation: Callable) -> None:
    size = _size(leaves, space)
    slices = [_slices(leaves, reader, size) for reader in space.readers]
    unread = np.all([(s == 0).all((0, 2)) for s in slices], 0)
    values = _constants(leaves, space, activation)
    constant = np.isfinite(values).all(0) & ~unread
    zero = constant & (values == 0).all(0)
    gone = unread | zero
    if len(space.steps) == 1:
        nonzero = constant & ~zero
        if not any(reader.padded for reader in space.readers):
            for reader, s in zip(space.readers, slices, strict=True):
                _shift(leaves, reader.layer, values[0], s, nonzero)
            gone = gone | nonzero
        elif nonzero.sum() > 1:
            gone = gone | _merge(leaves, space, slices, values[0], nonzero)
    if gone.all():
        # A layer needs a unit: one stays, though nothing reads it.
        for reader, s in zip(space.readers, slices, strict=True):
            leaves[reader.layer.kernel] = _joined(np.zeros_like(s), leaves[reader.layer.kernel])
        gone = np.arange(size) > 0
    _take(leaves, space, ~gone)


def _slices(leaves: dict, reader: Reader, size: int) -> Float[np.ndarray, "taps size out"]:
    """Return a reader's kernel as [places, units, out]."""
    kernel = leaves[reader.layer.kernel]
    return kernel.reshape(-1, size, kernel.shape[-1])


def _joined(slices: np.ndarray, like: np.ndarray) -> np.ndarray:
    return slices.reshape(*like.shape[:-2], -1, like.shape[-1]).astype(like.dtype)


def _constants(leaves: dict, space: Space, activation: Callable) -> Float[np.ndarray, "steps size"]:
    """Return the constant of each unit after each step, NaN where it depends on the input."""
    value, found = np.zeros(_size(leaves, space)), []
    for step in space.steps:
        added = [_constant(leaves, writer) for writer in step]
        value = np.asarray(activation(np.sum([value, *added], 0)), np.float64)
        found.append(value)
    return np.stack(found)


def _constant(leaves: dict, writer: Writer) -> Float[np.ndarray, "size"]:
    kernel = leaves[writer.kernel]
    value = np.zeros(kernel.shape[-1])
    if writer.bias is not None:
        value = value + leaves[writer.bias]
    if writer.norm is not None:
        scale, shift, mean, variance = (np.float64(leaves[n]) for n in writer.norm_names)
        value = (value - mean) / np.sqrt(variance + _BATCH_NORM_EPSILON) * scale + shift
    free = (kernel != 0).any(tuple(range(kernel.ndim - 1)))
    return np.where(free, np.nan, value)


def _shift(leaves: dict, layer: Writer, values: np.ndarray, slices: np.ndarray, which: Any) -> None:
    """Add what constant units contribute to a layer to its bias, or subtract it from its mean."""
    shift = np.float64(slices[:, which]).sum(0).T @ values[which]
    name = layer.bias if layer.bias is not None else layer.norm_names[2]
    sign = 1 if layer.bias is not None else -1
    leaves[name] = (leaves[name] + sign * shift).astype(leaves[name].dtype)


def _merge(
    leaves: dict, space: Space, slices: list, values: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """Merge constant units into the first of them; return which may be removed."""
    first, *others = np.flatnonzero(which)
    shares = values[others] / values[first]
    for reader, s in zip(space.readers, slices, strict=True):
        s = s.copy()
        s[:, first] += np.einsum("tuo,u->to", np.float64(s[:, others]), shares)
        leaves[reader.layer.kernel] = _joined(s, leaves[reader.layer.kernel])
    gone = which.copy()
    gone[first] = False
    return gone


def _take(leaves: dict, space: Space, keep: np.ndarray) -> None:
    """Keep some units of a space, in all its writers and readers."""
    size = keep.size
    for reader in space.readers:
        kernel = leaves[reader.layer.kernel]
        slices = _slices(leaves, reader, size)[:, keep]
        leaves[reader.layer.kernel] = _joined(slices, kernel)
    for name in space.names:
        leaves[name] = leaves[name][..., keep]

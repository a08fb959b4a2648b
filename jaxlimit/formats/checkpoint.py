"""Parameters out of a checkpoint, and back into one of the same form."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit._core.digests import without_keys
from jaxlimit.formats import _kinds
from jaxlimit.formats._kinds import CheckpointError, Content

Name = tuple[str, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpoint:
    """Parameters with everything needed to write them back in the same form.

    Attributes:
        params: the parameters as NumPy arrays with the bits on disk, in the structure of `like` or
            as nested dictionaries.
        kind: orbax, safetensors, msgpack, npz or eqx.
        path: path of the checkpoint.
        places: for each leaf of `params`, its place among the leaves of `content`.
        content: the whole content of the checkpoint.
    """

    params: Any
    kind: str
    path: Path
    places: tuple[int, ...]
    content: Content

    def __repr__(self) -> str:
        """Show kind, size and path in one line."""
        leaves = [np.asarray(leaf) for leaf in self._stored()]
        types = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        size = sum(leaf.size for leaf in leaves)
        return f"Checkpoint({self.kind}, {size:,} numbers of {types}, {str(self.path)!r})"

    def _stored(self) -> list[Any]:
        leaves = jax.tree.leaves(self.content.tree)
        return [leaves[place] for place in self.places]


def load(
    path: str | os.PathLike, like: Any = None, *, at: str | None = None, step: int | None = None
) -> Checkpoint:
    """Read parameters from a checkpoint in any of the forms.

    A folder is Orbax's (the newest step if there are steps); a file is recognised by its name or
    its first bytes. Nothing is unpickled. Leaves are matched to those of `like` by name. The
    `value` at the end of an NNX path is ignored, and in flat files `/` or `.` separates the parts
    of a name. An eqx file has no names; its arrays go to the leaves of `like` in order.

    Args:
        path: of the checkpoint.
        like: a pytree with the structure of the parameters, such as `variables["params"]`, an NNX
            state, an Equinox model, or one of `jax.ShapeDtypeStruct`; leaves that are no arrays are
            kept. If None, the parameters are nested dictionaries.
        at: path of the parameters in the checkpoint, such as "params" or "ema/params"; if None it
            is searched for, first at the top and below `params`.
        step: step in an Orbax folder; by default the newest.

    Returns:
        A `Checkpoint`.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        CheckpointError: if it is damaged, of another kind, or has other names or shapes than
            `like`; says which.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/w.npz"
    >>> np.savez(path, **{"dense/kernel": np.ones((2, 3), np.float32)})
    >>> load(path).params["dense"]["kernel"].shape
    (2, 3)
    """
    path = Path(path)
    content = _kinds.read(path, step)
    stored = jax.tree_util.tree_leaves_with_path(content.tree)
    leaves = [leaf for _, leaf in stored]
    names = _names(stored, flat=content.kind in ("npz", "safetensors"))
    if content.kind == "eqx":
        places = _in_order(path, leaves, like)
    elif like is None:
        prefix = _prefix_without_like(names) if at is None else _split(at)
        places = [i for i, name in enumerate(names) if name[: len(prefix)] == prefix]
        if not places:
            raise CheckpointError(f"at must be a path in {path}, got {at!r}; it has {_tops(names)}")
        params = _nested({names[i][len(prefix) :]: leaves[i] for i in places})
        order = {names[i][len(prefix) :]: i for i in places}
        found = _names(jax.tree_util.tree_leaves_with_path(params), flat=False)
        places = [order[name] for name in found]
        return Checkpoint(params, content.kind, path, tuple(places), content)
    else:
        places = _by_name(path, names, leaves, like, at)
    params = _fill(path, like, [leaves[i] for i in places])
    return Checkpoint(params, content.kind, path, tuple(places), content)


def save(path: str | os.PathLike, params: Any, *, like: Checkpoint) -> Path:
    """Write parameters in the form and types of a checkpoint, with the rest of its content.

    Args:
        path: of the new checkpoint; an older one is replaced when the new one is whole.
        params: pytree of the structure and shapes of `like.params`.
        like: the checkpoint that they came from.

    Returns:
        `path`.

    Raises:
        CheckpointError: if structure or shapes differ, or the checkpoint's type cannot hold a value
            exactly (cast it first).
        OSError: if it cannot be written; an older checkpoint at `path` stays whole.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.savez(folder + "/w.npz", w=np.ones(2, np.float32))
    >>> checkpoint = load(folder + "/w.npz")
    >>> load(save(folder + "/new.npz", {"w": 2 * checkpoint.params["w"]}, like=checkpoint)).params
    {'w': array([2., 2.], dtype=float32)}
    """
    params = without_keys(params)
    leaves = _arrays(params)
    stored = like._stored()
    if len(leaves) != len(stored):
        raise CheckpointError(
            f"params must have the {len(stored)} arrays of the checkpoint, got {len(leaves)}"
        )
    named = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(p) for p, leaf in named if _is_array(leaf)]
    pairs = zip(names, leaves, stored, strict=True)
    cast = [_cast(name, np.asarray(leaf), np.asarray(old)) for name, leaf, old in pairs]
    return _replace(path, like, cast)


def save_pruned(path: str | os.PathLike, mask: Any, *, like: Checkpoint) -> Path:
    """Write the parameters of a checkpoint with those outside a mask set to 0.

    The others keep every bit that they have on disk, also types that JAX does not use.

    Args:
        path: as `save`.
        mask: pytree of Booleans of the structure of `like.params`, True where a weight is kept.
        like: as `save`.

    Returns:
        `path`.

    Raises:
        CheckpointError: as `save`.
        OSError: as `save`.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.savez(folder + "/w.npz", w=np.ones(2, np.float32))
    >>> mask = {"w": np.array([True, False])}
    >>> load(save_pruned(folder + "/new.npz", mask, like=load(folder + "/w.npz"))).params
    {'w': array([1., 0.], dtype=float32)}
    """
    kept = _check_mask(mask, like)
    leaves = zip(kept, like._stored(), strict=True)
    pruned = [np.where(keep, old, np.zeros((), np.asarray(old).dtype)) for keep, old in leaves]
    return _replace(path, like, pruned)


def save_mask(path: str | os.PathLike, mask: Any, *, like: Checkpoint) -> Path:
    """Write a mask as a checkpoint of Booleans, in the form and with the names of the parameters.

    Args:
        path: as `save`.
        mask: as `save_pruned`.
        like: as `save`.

    Returns:
        `path`.

    Raises:
        CheckpointError: as `save`.
        OSError: as `save`.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.savez(folder + "/w.npz", w=np.ones(2, np.float32))
    >>> mask = {"w": np.array([True, False])}
    >>> load(save_mask(folder + "/mask.npz", mask, like=load(folder + "/w.npz"))).params
    {'w': array([ True, False])}
    """
    return _replace(path, like, _check_mask(mask, like), rest=False)


def _check_mask(mask: Any, like: Checkpoint) -> list[np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in _arrays(mask)]
    stored = like._stored()
    shapes = [leaf.shape for leaf in leaves], [np.shape(leaf) for leaf in stored]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"mask must have the shapes {shapes[1]}, got {shapes[0]}")
    wrong = [str(leaf.dtype) for leaf in leaves if leaf.dtype != bool]
    if wrong:
        raise CheckpointError(f"mask must hold Booleans, got {wrong[0]}")
    return leaves


def _replace(path: Any, like: Checkpoint, new: list[Any], *, rest: bool = True) -> Path:
    tree = like.content.tree
    if not rest and isinstance(tree, list):
        tree = new
    else:
        leaves, treedef = jax.tree.flatten(tree)
        changed = dict(zip(like.places, new, strict=True))
        values = [changed.get(i, leaf if rest else None) for i, leaf in enumerate(leaves)]
        tree = jax.tree.unflatten(treedef, values)
        if not rest and like.kind in ("npz", "safetensors"):
            tree = {name: leaf for name, leaf in tree.items() if leaf is not None}
    _kinds.write(Path(path), like.content._replace(tree=tree))
    return Path(path)


def _cast(name: str, leaf: np.ndarray, old: np.ndarray) -> np.ndarray:
    if leaf.shape != old.shape:
        raise CheckpointError(f"params{name} must have shape {old.shape}, got {leaf.shape}")
    if old.dtype.kind == "V" and leaf.dtype != old.dtype and leaf.itemsize == old.itemsize:
        return leaf.view(old.dtype)
    with np.errstate(over="ignore"):
        cast = leaf.astype(old.dtype)
    back = cast.astype(leaf.dtype)
    if not np.array_equal(back, leaf) and not np.array_equal(back, leaf, equal_nan=True):
        raise CheckpointError(
            f"params{name} must be numbers that {old.dtype}, the checkpoint's type, holds exactly; "
            f"some of its {leaf.dtype} are not: cast it first"
        )
    return cast


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_array(leaf)]


def _names(leaves: list[tuple[Any, Any]], *, flat: bool) -> list[Name]:
    """Return the parts of each leaf's name, without the `value` of NNX."""
    texts = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    separator = "." if flat and not any("/" in text for text in texts) else "/"
    names = [tuple(text.split(separator)) if text else () for text in texts]
    short = [name[:-1] if len(name) > 1 and name[-1] == "value" else name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _split(at: str) -> Name:
    return tuple(part for part in at.split("/") if part)


def _prefix_without_like(names: list[Name]) -> Name:
    return ("params",) if any(len(n) > 1 and n[0] == "params" for n in names) else ()


def _tops(names: list[Name]) -> str:
    return ", ".join(sorted({name[0] for name in names})[:12])


def _nested(leaves: dict[Name, Any]) -> Any:
    if set(leaves) == {()}:
        return leaves[()]
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        below = tree
        for part in name[:-1]:
            below = below.setdefault(part, {})
            if not isinstance(below, dict):
                return {"/".join(name): leaf for name, leaf in leaves.items()}
        if name[-1] in below:
            return {"/".join(name): leaf for name, leaf in leaves.items()}
        below[name[-1]] = leaf
    return tree


def _by_name(
    path: Path, names: list[Name], leaves: list[Any], like: Any, at: str | None
) -> list[int]:
    """Find each leaf of `like` below one path of the checkpoint."""
    named = [(p, leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(like) if _is_array(leaf)]
    wanted = _names(named, flat=False)
    if not wanted:
        raise CheckpointError("like must hold at least one array, got none")
    where = {name: i for i, name in enumerate(names)}
    if at is not None:
        prefixes = [_split(at)]
    else:
        first = wanted[0]
        ends = [name for name in names if name[len(name) - len(first) :] == first]
        prefixes = sorted({name[: len(name) - len(first)] for name in ends}, key=_by_worth)
    fitting = [p for p in prefixes if all((*p, *name) in where for name in wanted)]
    if not fitting:
        raise CheckpointError(_what_is_missing(path, names, wanted, prefixes))
    if len(fitting) > 1 and _by_worth(fitting[0])[0] > 1:
        options = ", ".join("/".join(p) for p in fitting[:6])
        raise CheckpointError(f"at must say which of {options} in {path} are the parameters")
    return [where[(*fitting[0], *name)] for name in wanted]


def _by_worth(prefix: Name) -> tuple[int, int, Name]:
    """Order paths: the top, then `params`, then the rest, short ones first."""
    kind = 0 if not prefix else 1 if prefix == ("params",) else 2
    return kind, len(prefix), prefix


def _what_is_missing(path: Path, names: list[Name], wanted: list[Name], prefixes: Any) -> str:
    prefix = prefixes[0] if prefixes else ()
    known = set(names)
    missing = ["/".join(n) for n in wanted if (*prefix, *n) not in known]
    return (
        f"{path} must hold the leaves of like, it lacks {', '.join(missing[:4])}"
        f"{' and others' if len(missing) > 4 else ''}; it has "
        f"{', '.join('/'.join(n) for n in names[:4])}{', …' if len(names) > 4 else ''}"
    )


def _in_order(path: Path, leaves: list[Any], like: Any) -> list[int]:
    if like is None:
        raise CheckpointError(
            f"like must be given: {path} is Equinox's, which keeps arrays without their names"
        )
    # Equinox writes Python numbers of a model too, as arrays without axes.
    kept = [leaf for leaf in jax.tree.leaves(like) if _is_array(leaf) or _is_number(leaf)]
    if len(kept) == len(leaves):
        return [i for i, leaf in enumerate(kept) if _is_array(leaf)]
    if len(arrays := _arrays(like)) == len(leaves):
        return list(range(len(arrays)))
    raise CheckpointError(f"{path} must hold the {len(kept)} arrays of like, got {len(leaves)}")


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | complex | np.generic)


def _fill(path: Path, like: Any, arrays: list[Any]) -> Any:
    """Put arrays in the place of those of `like`."""
    named, treedef = jax.tree_util.tree_flatten_with_path(like)
    rest, filled = iter(arrays), []
    for key, old in named:
        if not _is_array(old):
            filled.append(old)
            continue
        new = np.asarray(next(rest))
        name = jax.tree_util.keystr(key)
        of_keys = jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key)
        shape = jax.eval_shape(jax.random.key_data, old).shape if of_keys else tuple(old.shape)
        if new.shape != shape:
            raise CheckpointError(
                f"{path}: {name} must have shape {shape}, that of like, got {new.shape}"
            )
        if of_keys:  # such as those of dropout, which are stored as their integers
            filled.append(jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(old)))
            continue
        if new.dtype.kind == "V" and new.dtype.itemsize == np.dtype(old.dtype).itemsize:
            new = new.view(old.dtype)  # NumPy writes bfloat16 as bytes without a type
        filled.append(new)
    return jax.tree.unflatten(treedef, filled)

"""Checkpoints of a run: written whole or not at all, resumed only by the run that wrote them."""

import contextlib
import gc
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, PyTree, UInt32

from jaxlimit._core import files, locks
from jaxlimit._core.extras import require

MARK = ".jaxlimit-checkpoints"
_MARK_TEXT = (
    "jaxlimit keeps the newest checkpoint of one run in this folder, and removes older ones.\n"
)
# What Orbax puts at the top of a checkpoint, and what it has in the names of unfinished ones.
_ORBAX_FILES = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
_UNFINISHED = ".orbax-checkpoint-tmp"


def check_directory(directory: Any) -> None:
    """Raise unless checkpoints can be kept in `directory`, or it is None.

    Raises:
        NotADirectoryError: if it is a file.
        ValueError: if it holds checkpoints that are not jaxlimit's.
        ModuleNotFoundError: if Orbax is not installed.
    """
    if directory is None:
        return
    require("orbax.checkpoint", "train", "checkpoint_dir")
    folder = Path(directory)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"checkpoint_dir must be a folder, {folder} is a file")
    if foreign := _foreign(folder):
        raise ValueError(
            f"checkpoint_dir {folder} holds checkpoints that jaxlimit did not write "
            f"({', '.join(foreign[:3])}); give it a new or empty folder of its own"
        )


def _foreign(folder: Path) -> list[str]:
    """Name what looks like someone else's checkpoints."""
    if (folder / MARK).exists():
        return []
    steps = [child for child in folder.iterdir() if child.name.isdigit() and child.is_dir()]
    # Folders of earlier versions are without a mark.
    own = [step for step in steps if (step / "identity").is_dir() and (step / "run").is_dir()]
    if own:
        return []
    others = [
        child
        for child in folder.iterdir()
        if child.name in _ORBAX_FILES or _UNFINISHED in child.name
    ]
    return sorted(child.name for child in (*steps, *others))


class Checkpoints:
    """The checkpoints of one run in one directory; the newest is kept, saved at an interval.

    Orbax writes under a temporary name and renames when all is on disk, and the old checkpoint
    goes only after that; so a save that fails leaves the last one whole. What is damaged later
    shows in digests of the arrays, which are kept beside them. One process at a time has the
    directory: it is locked until `close`.

    Args:
        directory: where; None keeps no checkpoints.
        every: units between them.
        identity: what makes this run itself, as JSON; a checkpoint of another is refused.
        unit: what the run counts.
        defaults: what an older checkpoint, whose identity lacks these entries, was made with.
        optional: how entries begin that are compared only where both identities have them.

    Raises:
        InUseError: if another run is at work in the directory.
        OSError, ValueError: as `check_directory`, or if the directory cannot be made.
    """

    def __init__(
        self,
        directory: Any,
        every: int,
        identity: Callable[[], dict],
        *,
        unit: str,
        defaults: dict | None = None,
        optional: tuple[str, ...] = (),
    ):
        self.directory = None if directory is None else Path(directory).absolute()
        self.every, self.unit, self.saved = every, unit, 0
        if self.directory is None:
            return
        self._defaults, self._optional = defaults or {}, optional
        self._identity = json.loads(json.dumps(identity()))
        check_directory(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ocp: Any = require("orbax.checkpoint", "train", "checkpoint_dir")
        with contextlib.ExitStack() as held:
            if jax.process_index() == 0:
                held.enter_context(locks.hold(self.directory))
                if not (self.directory / MARK).exists() and os.access(self.directory, os.W_OK):
                    files.write_text(self.directory / MARK, _MARK_TEXT)
            self._manager = self._ocp.CheckpointManager(
                self.directory,
                options=self._ocp.CheckpointManagerOptions(
                    max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
                ),
            )
            held.callback(self._manager.close)
            self._held = held.pop_all()

    def restore(self, target: Callable[[int], PyTree]) -> PyTree | None:
        """Return the newest checkpoint, in the form of `target(count)`, or None if there is none.

        `saved` then says how far it had come.

        Raises:
            ValueError: if it belongs to another run, says what differs; or if it is damaged.
        """
        if self.directory is None or (count := self._manager.latest_step()) is None:
            return None
        self._check_identity(self._read(count, "identity", self._ocp.args.JsonRestore()))
        like = target(count)
        tree = self._read(count, "run", self._ocp.args.StandardRestore(without_keys(like)))
        # Checkpoints of earlier versions came without digests.
        if (self.directory / str(count) / "digests").is_dir():
            self._check_digests(
                count, tree, self._read(count, "digests", self._ocp.args.JsonRestore())
            )
        self.saved = count
        return jax.tree.map(_as_key, like, tree)

    def save(self, count: int, tree: PyTree, *, last: bool) -> None:
        """Save `tree` if it is due, or the last.

        Raises:
            OSError: if it could not be written; says which checkpoint is still whole.
        """
        due = last or count - self.saved >= self.every
        if self.directory is None or count == self.saved or not due:
            return
        if failure := self._try_to_save(count, without_keys(tree)):
            # What was being written waits in the frames of the error; were it left to the end of
            # the process, it would have the last word there.
            gc.collect()
            for half in self.directory.glob(f"{count}{_UNFINISHED}*"):
                shutil.rmtree(half, ignore_errors=True)
            raise failure
        self.saved = count

    def _try_to_save(self, count: int, tree: PyTree) -> OSError | None:
        args = self._ocp.args
        try:
            items = args.Composite(
                run=args.StandardSave(tree),
                identity=args.JsonSave(self._identity),
                digests=args.JsonSave(digests(tree)),
            )
            self._manager.save(count, args=items, force=True)
        except Exception as error:
            what = f"could not save the checkpoint of {self.unit} {count}; {self.describe()}"
            return OSError(f"{what}: {error}")
        return None

    def describe(self) -> str:
        """Say in words where the run can be taken up again."""
        if not self.saved:
            return "no checkpoint was kept"
        return f"the checkpoint of {self.unit} {self.saved} in {self.directory} is whole"

    def close(self) -> None:
        """Close the directory."""
        if self.directory is not None:
            self._held.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _read(self, count: int, name: str, item: Any) -> Any:
        args = self._ocp.args.Composite(**{name: item})
        try:
            return self._manager.restore(count, args=args)[name]
        except Exception as error:
            cause = error.__cause__ or error  # orbax wraps some
            # Lack of memory or permission and the death of a process are no fault of the files.
            if isinstance(cause, MemoryError | PermissionError | jax.errors.JaxRuntimeError):
                raise
            said = " ".join(str(cause).split())[:200]
            failure = self._damage(count, f"{type(cause).__name__} in {name}: {said}")
        gc.collect()  # as where a save fails
        raise failure

    def _check_digests(self, count: int, tree: PyTree, saved: dict) -> None:
        found = digests(tree)
        names = [name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name)]
        if names:
            raise self._damage(count, f"not as it was saved is {', '.join(sorted(names)[:4])}")

    def _damage(self, count: int, what: str) -> ValueError:
        return ValueError(
            f"the checkpoint of {self.unit} {count} in {self.directory} is damaged: {what}; "
            "move it away, or give another checkpoint_dir, to start again"
        )

    def _check_identity(self, found: dict) -> None:
        wanted, found = _flat(self._identity), _flat(self._defaults) | _flat(found)
        lone = {name for name in wanted.keys() ^ found.keys() if name.startswith(self._optional)}
        different = [
            f"{name}: checkpoint {found.get(name)!r}, this run {wanted.get(name)!r}"
            for name in sorted((wanted.keys() | found.keys()) - lone)
            if wanted.get(name) != found.get(name)
        ]
        if different:
            raise ValueError(
                f"checkpoint_dir {self.directory} holds a checkpoint of another run, which "
                f"differs in {'; '.join(different[:8])}. Give this run another checkpoint_dir"
            )


def checksum(tree: PyTree) -> int:
    """Return a checksum of the values of arrays."""
    total = 0
    for leaf in jax.tree.leaves(without_keys(tree)):
        total = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, total)
    return total


def without_keys(tree: PyTree) -> PyTree:
    """Replace random keys, which a network with dropout may keep, by their integers."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_key(like: Any, leaf: Any) -> Any:
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))


def digests(tree: PyTree) -> dict[str, int]:
    """Return one number for each array, whatever its layout over devices and processes.

    It is the sum mod 2³² of a bijection of every 32 bits, which depends on their place: a change
    of one word always shows, any other but once in 2³². One pass over the memory, no copies.

    >>> digests({"a": jnp.zeros(2)}) == digests({"a": jnp.zeros(3)[:2]})
    True
    >>> digests({"a": jnp.array([1.0, 2.0])}) == digests({"a": jnp.array([2.0, 1.0])})
    False
    """
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _digest_of(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {name: int(digest) for name, digest in found.items()}


def _digest_of(leaf: Any) -> UInt32[Array, ""]:
    if isinstance(leaf, jax.Array):
        return _digest(leaf)
    # As words, since JAX may narrow numbers of 64 bits.
    leaf = np.ascontiguousarray(leaf)
    return _digest(leaf.reshape(-1).view(f"u{min(leaf.itemsize, 4)}"))


@jax.jit
def _digest(array: Num[Array, "..."]) -> UInt32[Array, ""]:
    if jax.typeof(array).memory_space != jax.memory.Space.Host:
        return _sum_of_words(array, 0)

    def add_row(i: Array, total: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(array, i, keepdims=False)
        return total + _sum_of_words(jax.device_put(row, jax.memory.Space.Device), i * row.size)

    return jax.lax.fori_loop(0, len(array), add_row, jnp.uint32(0))


def _sum_of_words(array: Num[Array, "..."], first: Any) -> UInt32[Array, ""]:
    words = _words_of(array)
    # Counted axis by axis, since to flatten a split array would gather it.
    place = jnp.asarray(first).astype(jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride)
    return jnp.sum(_mixed(words, place), dtype=jnp.uint32)


def mixed_words(array: Num[Array, "n ..."], seed: int | None) -> UInt32[Array, "n ..."]:
    """Mix the words of each row of an array with their place in the row, and with a seed.

    Without a seed the rows are taken for words that are mixed already, and mixed alone.
    """
    words = _words_of(array)
    if seed is None:
        return _mixed(words, jnp.uint32(1))
    size = math.prod(words.shape[1:])
    place = jnp.arange(size, dtype=jnp.uint32).reshape(1, *words.shape[1:])
    return _mixed(words, place + np.uint32((seed * 0x27D4EB2F + 1) % 2**32))


def _words_of(array: Num[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    word = f"uint{8 * min(array.dtype.itemsize, 4)}"
    return jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)


def _mixed(words: UInt32[Array, "..."], place: Any) -> UInt32[Array, "..."]:
    # The finaliser of MurmurHash3 (Appleby 2011).
    x = words ^ (place * np.uint32(0x9E3779B1))
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        below = isinstance(value, dict)
        leaves |= _flat(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return leaves

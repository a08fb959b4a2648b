"""Checkpoints of a run: written whole or not at all, resumed only by the run that wrote them."""

import contextlib
import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxlimit._core import files, locks
from jaxlimit._core.digests import digests, is_key, without_keys
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

    Orbax writes under a temporary name and renames when everything is on disk, and only then the
    old checkpoint is removed. So a failed save leaves the last one whole. Digests of the arrays,
    saved with them, show later damage. One process at a time uses the directory: it is locked until
    `close`.

    Args:
        directory: the folder; None keeps no checkpoints.
        every: units between checkpoints.
        identity: what identifies this run, as JSON; a checkpoint of another run is refused.
        unit: the unit that the run counts, such as "epoch".
        defaults: values of entries that the identity of an older checkpoint lacks.
        optional: prefixes of entries that are compared only where both identities have them.

    Raises:
        InUseError: if another run is using the directory.
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
            ValueError: if it belongs to another run (says what differs), or is damaged.
        """
        if self.directory is None or (count := self._manager.latest_step()) is None:
            return None
        self._check_identity(self._read(count, "identity", self._ocp.args.JsonRestore()))
        like = target(count)
        tree = self._read(count, "run", self._ocp.args.StandardRestore(without_keys(like)))
        # Checkpoints of earlier versions have no digests.
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
        """Say in words where the run can continue."""
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


def _as_key(like: Any, leaf: Any) -> Any:
    if not is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        below = isinstance(value, dict)
        leaves |= _flat(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return leaves

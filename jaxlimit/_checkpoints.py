"""Checkpoints of a run: written whole or not at all, resumed by their own run alone."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree


class Checkpoints:
    """The checkpoints of one run in one directory; the newest is kept, saved at an interval.

    Orbax writes under a temporary name and renames when all is on disk, and the old checkpoint
    goes only after that; so a save that fails leaves the last one whole.

    Args:
        directory: where; None keeps no checkpoints.
        every: units between them.
        identity: what makes this run itself, as JSON; a checkpoint of another is refused.
        unit: what the run counts.
        defaults: what an older checkpoint, whose identity lacks these entries, was made with.
    """

    def __init__(
        self,
        directory: Any,
        every: int,
        identity: Callable[[], dict],
        *,
        unit: str,
        defaults: dict | None = None,
    ):
        self.directory = None if directory is None else Path(directory).absolute()
        self.every, self.unit, self.saved = every, unit, 0
        if self.directory is None:
            return
        self._defaults = defaults or {}
        self._identity = json.loads(json.dumps(identity()))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def restore(self, target: Callable[[int], PyTree]) -> PyTree | None:
        """Return the newest checkpoint, in the form of `target(count)`, or None if there is none.

        `saved` then says how far it had come.

        Raises:
            ValueError: if it belongs to another run; says what differs.
        """
        if self.directory is None or (count := self._manager.latest_step()) is None:
            return None
        items = ocp.args.Composite(identity=ocp.args.JsonRestore())
        self._check_identity(self._manager.restore(count, args=items)["identity"])
        items = ocp.args.Composite(run=ocp.args.StandardRestore(target(count)))
        self.saved = count
        return self._manager.restore(count, args=items)["run"]

    def save(self, count: int, tree: PyTree, *, last: bool) -> None:
        """Save `tree` if its turn has come or it is the last.

        Raises:
            OSError: if it could not be written; says which checkpoint is still whole.
        """
        due = last or count - self.saved >= self.every
        if self.directory is None or count == self.saved or not due:
            return
        items = ocp.args.Composite(
            run=ocp.args.StandardSave(tree), identity=ocp.args.JsonSave(self._identity)
        )
        try:
            self._manager.save(count, args=items, force=True)
        except Exception as error:
            raise OSError(
                f"could not save the checkpoint of {self.unit} {count}; {self.describe()}: {error}"
            ) from error
        self.saved = count

    def describe(self) -> str:
        """Say in words where the run can be taken up again."""
        if not self.saved:
            return "no checkpoint was kept"
        return f"the checkpoint of {self.unit} {self.saved} in {self.directory} is whole"

    def close(self) -> None:
        """Let go of the directory."""
        if self.directory is not None:
            self._manager.close()

    def _check_identity(self, found: dict) -> None:
        wanted, found = _flat(self._identity), _flat(self._defaults) | _flat(found)
        different = [
            f"{name}: checkpoint {found.get(name)!r}, this run {wanted.get(name)!r}"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        if different:
            raise ValueError(
                f"checkpoint_dir {self.directory} holds a checkpoint of another run, which "
                f"differs in {'; '.join(different[:8])}. Give another checkpoint_dir, or remove it"
            )


def checksum(tree: PyTree) -> int:
    """Return one number that tells arrays of other values apart, in all likelihood."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, total)
    return total


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        below = isinstance(value, dict)
        leaves |= _flat(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return leaves

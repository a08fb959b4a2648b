"""Checkpoints of a training run: written whole or not at all, resumed by their own run alone."""

import dataclasses
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxlimit.training.config import TrainingConfig

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run in one directory; the newest is kept, saved every few epochs.

    Orbax writes under a temporary name and renames when all is on disk, and the old checkpoint
    goes only after that; so a save that fails leaves the last one whole.

    Args:
        directory: where; None keeps no checkpoints.
        every: epochs between them.
        identity: what makes this run itself, as JSON; a checkpoint of another is refused.
    """

    def __init__(self, directory: Any, every: int, identity: Callable[[], dict]):
        self.directory = None if directory is None else Path(directory).absolute()
        self.every = every
        self.saved = 0
        if self.directory is None:
            return
        self._identity = json.loads(json.dumps(identity()))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def restore(self, target: Callable[[int], PyTree]) -> PyTree | None:
        """Return the newest checkpoint, in the form of `target(epoch)`, or None if there is none.

        Raises:
            ValueError: if it belongs to another run; says what differs.
        """
        if self.directory is None or (epoch := self._manager.latest_step()) is None:
            return None
        items = ocp.args.Composite(identity=ocp.args.JsonRestore())
        self._check_identity(self._manager.restore(epoch, args=items)["identity"])
        items = ocp.args.Composite(run=ocp.args.StandardRestore(target(epoch)))
        self.saved = epoch
        return self._manager.restore(epoch, args=items)["run"]

    def save(self, epoch: int, tree: PyTree, *, last: bool) -> None:
        """Save `tree` if the epoch's turn has come or it is the last.

        Raises:
            OSError: if it could not be written; says which checkpoint is still whole.
        """
        if self.directory is None or epoch == self.saved or (epoch % self.every and not last):
            return
        items = ocp.args.Composite(
            run=ocp.args.StandardSave(tree), identity=ocp.args.JsonSave(self._identity)
        )
        try:
            self._manager.save(epoch, args=items, force=True)
        except Exception as error:
            raise OSError(
                f"could not save the checkpoint of epoch {epoch}; {self.describe()}: {error}"
            ) from error
        self.saved = epoch

    def describe(self) -> str:
        """Say in words where training can be taken up again."""
        if not self.saved:
            return "no checkpoint was kept"
        return f"the checkpoint of epoch {self.saved} in {self.directory} is whole"

    def close(self) -> None:
        """Let go of the directory."""
        if self.directory is not None:
            self._manager.close()

    def _check_identity(self, found: dict) -> None:
        # A checkpoint older than a setting was made with what is now the setting's default.
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
        found["config"] = defaults | found["config"]
        wanted, found = _flat(self._identity), _flat(found)
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


def run_identity(module: Any, config: TrainingConfig, params: PyTree, **arrays: PyTree) -> dict:
    """Collect what makes a run itself: settings, network, and checksums of what it starts from."""
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        # Functions show their address, which is another in every process.
        "module": re.sub(r" at 0x[0-9a-f]+", "", repr(module)),
        "params": shapes,
        "checksum": {name: _checksum(tree) for name, tree in arrays.items()},
    }


def _checksum(tree: PyTree) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, checksum)
    return checksum


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        below = isinstance(value, dict)
        leaves |= _flat(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return leaves

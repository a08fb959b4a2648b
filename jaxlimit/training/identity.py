"""What makes a training run itself, so that it goes on from no other's checkpoint."""

import dataclasses
import re
from typing import Any

import jax
from jaxtyping import PyTree

from jaxlimit._checkpoints import checksum
from jaxlimit.training.config import TrainingConfig

FORMAT = 1
# A checkpoint older than a setting was made with what is now the setting's default.
DEFAULTS = {"config": {f.name: f.default for f in dataclasses.fields(TrainingConfig)
                       if f.default is not dataclasses.MISSING}}  # fmt: skip


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
        "checksum": {name: checksum(tree) for name, tree in arrays.items()},
    }

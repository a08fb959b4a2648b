"""Checkpoints in and out: orbax, safetensors, msgpack (Flax), npz and Equinox's own.

`load` reads a checkpoint, and `save` writes parameters back in its form and types; `save_pruned`
and `save_mask` do the same for a mask. Nothing is ever unpickled.
"""

from jaxlimit.formats._kinds import CheckpointError
from jaxlimit.formats.checkpoint import Checkpoint, load, save, save_mask, save_pruned
from jaxlimit.formats.size import Size, stored_size

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Size",
    "load",
    "save",
    "save_mask",
    "save_pruned",
    "stored_size",
]

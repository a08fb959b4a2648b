"""Checkpoints in and out: orbax, safetensors, msgpack (Flax), npz and Equinox's own.

`load` reads one, `save` writes parameters back in the form and the types that it had, `save_pruned`
and `save_mask` do so for what pruning leaves. Nothing is ever unpickled.
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

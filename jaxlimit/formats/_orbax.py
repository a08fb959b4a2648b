"""Orbax folders: one tree, or a `CheckpointManager`'s steps and items."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxlimit._core.memory import host_memory
from jaxlimit.formats._kinds import CheckpointError, Content

_MARKS = ("_METADATA", "manifest.ocdbt")


def read(path: Path, step: int | None = None) -> Content:
    """Read the tree in an Orbax folder, of its newest step if there are steps.

    Raises:
        CheckpointError: if the folder is no Orbax checkpoint, is damaged, or lacks `step`.
    """
    place = _place(path, step)
    folder = path.joinpath(*place).absolute()
    checkpointer = ocp.PyTreeCheckpointer()
    try:
        metadata: Any = checkpointer.metadata(folder)
        metadata = getattr(metadata, "item_metadata", metadata)
        shapes = getattr(metadata, "tree", metadata)
        _check_sizes(folder, shapes)
        wanted = jax.tree.map(_restore_as, shapes)
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=wanted))
    except (CheckpointError, MemoryError, PermissionError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder} cannot be read as orbax; it is damaged or of another kind: "
            f"{type(error).__name__}: {said}"
        ) from error
    return Content("orbax", tree, {"origin": str(path.absolute())}, place)


def write(path: Path, content: Content) -> None:
    """Write the tree to the new folder `path`, at the step and item that it was read from."""
    path.mkdir(parents=True)
    checkpointer = ocp.StandardCheckpointer()
    folder = path.joinpath(*content.place)
    try:
        checkpointer.save(folder, content.tree, force=not content.place)
        checkpointer.wait_until_finished()
    finally:
        checkpointer.close()
    if content.place:
        step = Path(content.metadata["origin"]) / content.place[0]
        for other in step.iterdir():
            if other.name == content.place[-1]:
                continue
            if other.is_dir():
                shutil.copytree(other, folder.parent / other.name)
            else:
                shutil.copy2(other, folder.parent / other.name)


def _check_sizes(folder: Path, shapes: Any) -> None:
    """Raise if a damaged header asks for more than there is, which would end the process."""
    arrays = [leaf for leaf in jax.tree.leaves(shapes) if _is_array(leaf)]
    size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in arrays)
    memory = host_memory()
    if memory is not None and size > memory:
        raise CheckpointError(
            f"{folder} holds {size:,} bytes by its own account, and the machine's memory is "
            f"{memory:,}; it is damaged, or too large to be read here"
        )


def _is_array(leaf: Any) -> bool:
    return getattr(leaf, "storage", None) is not None


def _restore_as(leaf: Any) -> ocp.RestoreArgs:
    # On this host whatever the devices were, and with every bit.
    return ocp.RestoreArgs(restore_type=np.ndarray) if _is_array(leaf) else ocp.RestoreArgs()


def _place(path: Path, step: int | None) -> tuple[str, ...]:
    """Return the step and the item of the tree below `path`, nothing if it is the tree."""
    if _is_tree(path):
        if step is not None:
            raise CheckpointError(f"step must be None: {path} is one checkpoint, without steps")
        return ()
    steps = sorted((int(p.name) for p in path.iterdir() if p.name.isdigit()), reverse=True)
    if not steps:
        raise CheckpointError(f"{path} must be an orbax checkpoint or a folder of its steps")
    if step is not None and step not in steps:
        raise CheckpointError(f"step must be one of {steps[:8]} in {path}, got {step}")
    chosen = str(steps[0] if step is None else step)
    if _is_tree(path / chosen):
        return (chosen,)
    items = sorted(p.name for p in (path / chosen).iterdir() if _is_tree(p))
    for name in ("params", "state", "default", "model"):
        if name in items:
            return (chosen, name)
    if len(items) != 1:
        raise CheckpointError(
            f"{path / chosen} must hold one tree, or one called params, state, default or model; "
            f"got {items}: give the folder of one of them as path"
        )
    return (chosen, items[0])


def _is_tree(folder: Path) -> bool:
    if not folder.is_dir() or not any((folder / name).exists() for name in _MARKS):
        return False
    try:
        return not (folder / "_METADATA").exists() or bool(
            json.loads((folder / "_METADATA").read_text())
        )
    except ValueError:
        return True  # damaged: reading it says so

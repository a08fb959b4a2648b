"""Files of a study: page, text, JSON, masks, spectrum, figures, and the pruned network."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlimit import formats
from jaxlimit._core import files
from jaxlimit.reports import contents, pages
from jaxlimit.reports.figures import pictures
from jaxlimit.reports.sizes import Stored, stored
from jaxlimit.studies import Study, Task


def write(study: Study, folder: str | os.PathLike) -> Path:
    """Write report.html, report.md, result.json, the masks, the spectrum and the figures.

    Each file is written whole or not at all; result.json, which is needed to read the others, comes
    last.

    Args:
        study: the study.
        folder: the folder to write to; created if necessary.

    Returns:
        The path of report.html.

    Raises:
        OSError: if a file cannot be written; an earlier one stays whole.
    """
    folder, result, drawn = Path(folder), contents.content(study), pictures(study)
    folder.mkdir(parents=True, exist_ok=True)
    page = pages.html(study, drawn)
    _write_tensors(study, folder, result)
    for picture in drawn:
        _write_figure(picture, folder / "figures")
    files.write_text(folder / "report.md", pages.markdown(study, drawn))
    files.write_text(folder / "report.html", page)
    files.write_json(folder / "result.json", result)
    return folder / "report.html"


def _write_tensors(study: Study, folder: Path, result: dict[str, Any]) -> None:
    """Write the masks and the spectrum as safetensors."""
    about = {name: str(value) for name, value in study.about.items()}
    masks = {"magnitude": _magnitude(study)}
    if study.found is not None:
        masks["found"] = study.mask
    if study.guaranteed is not None:
        masks["safe"] = study.mask_at(study.guaranteed.ratio)
    for name, mask in masks.items():
        named = _named(mask)
        ratio = float(sum(leaf.sum() for leaf in named.values()))
        said = {"what": f"{name} mask, True where a weight stays", "kept": f"{ratio:.0f}"}
        _safetensors(folder / f"mask_{name}.safetensors", named, about | said)
    if study.estimate is None:
        return
    measure, said = study.estimate.measure, {
        "what": "nodes: Ritz values of the Hessian; weights: the share of the spectrum at each",
        "dim": str(study.measured.dim), "epsilon": str(result["epsilon"]["value"]),
    }  # fmt: skip
    arrays = {"nodes": np.asarray(measure.nodes), "weights": np.asarray(measure.weights)}
    _safetensors(folder / "spectrum.safetensors", arrays, about | said)


def _magnitude(study: Study) -> Any:
    from jaxlimit import pruning

    task = study.task
    return pruning.magnitude_mask(task.params, study.measured.by_loss, where=task.where)


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "params": np.asarray(leaf)
        for path, leaf in leaves
    }


def _safetensors(path: Path, tree: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save

    arrays = {name: np.array(leaf, order="C") for name, leaf in tree.items()}
    with files.replacing(path) as file:
        file.write(save(arrays, metadata=metadata))


def _write_figure(picture: Any, folder: Path) -> None:
    from jaxlimit import plotting

    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / f"{picture.name}.png") as file:
        file.write(plotting.png(picture.figure))
    files.write_text(folder / f"{picture.name}.svg", plotting.svg(picture.figure))


def write_pruned(task: Task, path: str | os.PathLike, mask: Any) -> Stored:
    """Write the pruned parameters in the form of the task's checkpoint, safetensors without one.

    The mask goes beside it, under the name with `-mask` added.

    Args:
        task: the network.
        path: of the file.
        mask: pytree of Booleans like the parameters.

    Returns:
        The storage that the pruned parameters take, dense, sparse and compressed.

    Raises:
        CheckpointError: if the mask has another structure or other shapes than the parameters.
        OSError: if a file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-mask{path.suffix}")
    if task.checkpoint is not None:
        formats.save_pruned(path, mask, like=task.checkpoint)
        formats.save_mask(beside, mask, like=task.checkpoint)
    else:
        keep = jax.tree.map(np.asarray, mask)
        pruned = jax.tree.map(_pruned, task.params, keep)
        _safetensors(path, _named(pruned), {"made by": "jaxlimit"})
        _safetensors(beside, _named(keep), {"what": "True where a weight stays"})
    return stored(task, formats.load(path, like=task.params).params)


def _pruned(leaf: Any, keep: np.ndarray) -> np.ndarray:
    leaf = np.asarray(leaf)
    return np.where(keep, leaf, np.zeros((), leaf.dtype))


def read_mask(folder: str | os.PathLike, name: str, params: Any) -> Any:
    """Read a mask of a saved study.

    Args:
        folder: the folder that the study was saved to.
        name: "found", "safe" or "magnitude".
        params: the parameters, for the structure.

    Returns:
        A pytree of Booleans like `params`.

    Raises:
        FileNotFoundError: if the study has no such mask.
        CheckpointError: if the file is damaged, or of another network.
    """
    path = Path(folder) / f"mask_{name}.safetensors"
    if not path.exists():
        there = sorted(p.stem.removeprefix("mask_") for p in Path(folder).glob("mask_*"))
        raise FileNotFoundError(
            f"the study in {folder} has no mask {name!r}, it has {', '.join(there) or 'none'}"
        )
    return formats.load(path, like=params).params

"""The content of result.json, and its schema."""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlimit import pruning
from jaxlimit._core import files
from jaxlimit._core.checks import check_type
from jaxlimit.reports.sizes import Stored, stored
from jaxlimit.studies import Study, summary
from jaxlimit.studies.findings import Found

SCHEMA_VERSION = 1
SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def content(study: Study) -> dict[str, Any]:
    """Return everything that a study found in a form for JSON; None stands for unknown.

    Ratios are fractions of weights kept. The keys are those of the schema, `read_schema()`.

    Args:
        study: the study.

    Returns:
        Nested dictionaries of what JSON holds.

    Raises:
        TypeError: if `study` is no `Study`.
    """
    check_type("study", study, Study)
    measured, found = study.measured, study.found
    dim = measured.dim
    whole: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "study",
        "about": study.about,
        "settings": study.settings,
        "dim": dim,
        "epsilon": {"value": measured.epsilon, "standard_error": measured.epsilon_error},
        "dense": {"loss": measured.dense_loss, "accuracy": measured.dense_accuracy},
        "measured": {"by_loss": measured.by_loss, "by_accuracy": measured.by_accuracy},
        "sweep": {
            "ratios": measured.ratios,
            "losses": measured.losses,
            "radii": measured.radii,
            "accuracies": measured.accuracies,
        },
        "found": None if found is None else _found(found, dim) | {"bytes": _bytes(study)},
        "certified": None,
        "prediction": None if study.estimate is None else _prediction(study),
        "layers": None,
        "guaranteed": study.guaranteed,
        "safe_ratio": study.safe_ratio,
        "verdict": summary.verdict(study),
        "missing": study.missing,
        "seconds": study.seconds,
    }
    if study.certified is not None:
        certified = study.certified._asdict()
        shares = dict(zip(("linear", "quadratic", "remainder"), certified["shares"], strict=True))
        whole["certified"] = certified | {"ratio": certified["num_kept"] / dim, "shares": shares}
    if study.layers is not None:
        whole["layers"] = [
            {"name": name, "size": size, "magnitude": by_size, "found": of_mask, "theory": asked}
            for name, size, by_size, of_mask, asked in layer_rows(study)
        ]
    return plain(whole)


def _found(found: Found, dim: int) -> dict[str, Any]:
    return {
        "ratio": found.num_kept / dim,
        "num_kept": found.num_kept,
        "method": found.method,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "notes": found.notes,
        "candidates": [
            {"method": name, "num_kept": kept, "ratio": kept / dim, "loss": loss}
            for name, kept, loss in zip(found.names, found.kept, found.losses, strict=True)
        ],
    }


def _bytes(study: Study) -> dict[str, Any]:
    form = stored_of(study)
    size = form.size
    return {
        "dense": size.dense,
        "sparse": min(size.bitmap, size.indexed),
        "compressed": form.compressed,
    }


def stored_of(study: Study) -> Stored:
    """Return the storage that the network pruned by the mask found takes."""
    params, mask = study.task.params, study.mask
    return stored(study.task, pruning.apply_mask(params, mask))


def _prediction(study: Study) -> dict[str, Any]:
    estimate, at = study.estimate, study.at_prediction
    assert estimate is not None
    of = lambda limit: {name: getattr(limit, name) for name in ("ratio", "lower", "upper")}  # noqa: E731
    return {
        "published": of(estimate.prediction),
        "clipped": of(estimate.clipped),
        "corrected": of(estimate.corrected),
        "gap": {"value": estimate.gap.value, "lower": estimate.gap.lower,
                "upper": estimate.gap.upper},
        "radius": estimate.prediction.radius,
        "eigenvalues": {"smallest": estimate.smallest, "largest": estimate.largest,
                        "near_zero": estimate.near_zero},
        "depth": estimate.measure.nodes.shape[-1],
        "loss_there": None if at is None else at.loss,
        "accuracy_there": None if at is None else at.accuracy,
        "reasons": estimate.reasons,
    }  # fmt: skip


def layer_rows(study: Study) -> list[tuple]:
    """Return name and size of each layer, and what magnitude, mask and theory keep of it.

    None stands for unknown.
    """
    if study.layers is None:
        return []
    known = study.layer_limits
    asked = {} if known is None else dict(zip(known.names, known.kept, strict=True))
    return [
        (str(name), int(size), int(by_size), int(of_mask) if of_mask >= 0 else None,
         int(asked[name]) if name in asked else None)
        for name, size, by_size, of_mask in zip(*study.layers, strict=True)
    ]  # fmt: skip


def plain(tree: Any) -> Any:
    """Return results in a form for JSON; a number that is not finite becomes None."""
    if hasattr(tree, "_asdict"):
        return plain(tree._asdict())
    if hasattr(tree, "__dataclass_fields__"):
        return {name: plain(getattr(tree, name)) for name in tree.__dataclass_fields__}
    if isinstance(tree, dict):
        return {str(name): plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(tree).tolist())
    if isinstance(tree, float):
        return float(f"{tree:.9g}") if math.isfinite(tree) else None
    return str(tree) if isinstance(tree, Path) else tree


def read(folder: Any) -> dict[str, Any]:
    """Read the result.json of a saved study.

    Args:
        folder: the folder that it was saved to, or the file itself.

    Returns:
        The content, see `content`.

    Raises:
        FileNotFoundError: if it is no folder of a study.
        ValueError: if the file is damaged, or of another kind or version.

    >>> read("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: no/such/folder must be the folder of a saved study: no result.json
    """
    path = Path(folder)
    path = path / "result.json" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{folder} must be the folder of a saved study: no result.json")
    result = files.read_json(path)
    if result.get("kind") != "study" or result.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} must be a study's result of schema version {SCHEMA_VERSION}, got "
            f"{result.get('kind')!r} of {result.get('schema_version')!r}"
        )
    return result


def read_schema() -> dict[str, Any]:
    """Return the JSON schema of result.json.

    Returns:
        The schema.

    >>> read_schema()["type"]
    'object'
    """
    text = resources.files("jaxlimit.reports").joinpath("schema.json").read_text()
    return json.loads(text)

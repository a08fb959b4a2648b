"""Save measures to disk and load them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlimit._core import files
from jaxlimit._core.checks import check_type
from jaxlimit.lanczos import Tridiagonalization
from jaxlimit.spectrum.measure import SpectralMeasure, exact_measure, measure_from

FORMAT_VERSION = 1
_RECURRENCE = ("diagonal", "off_diagonal", "residual_norm", "num_valid")
_KINDS = ({"dim", "eigenvalues"}, {"dim", *_RECURRENCE}, {"dim", "nodes", "weights", "exact"})


def save(path: Any, measure: SpectralMeasure, *, identity: dict | None = None) -> None:
    """Write a measure as a versioned npz: its recurrence, its spectrum or its nodes.

    Args:
        path: of the file, under just this name.
        measure: the measure.
        identity: what it was made from, as JSON; kept in the file for `load` to compare.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.

    >>> import pathlib, tempfile, jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "measure.npz"
    ...     save(path, exact_measure(jnp.array([1.0, 3.0])))
    ...     load(path).nodes
    Array([[1., 3.]], dtype=float32)
    """
    check_type("measure", measure, SpectralMeasure)
    nodes, weights = measure.nodes, measure.weights
    if measure.recurrence is not None:
        fields = {name: getattr(measure.recurrence, name) for name in _RECURRENCE}
    elif measure.exact and nodes.shape == (1, measure.dim) and (weights == weights[0, 0]).all():
        fields = {"eigenvalues": nodes}
    else:
        fields = {"nodes": nodes, "weights": weights, "exact": measure.exact}
    files.save(path, FORMAT_VERSION, identity=identity, dim=measure.dim, **fields)


def load(path: Any, *, identity: dict | None = None) -> SpectralMeasure:
    """Read a measure that `save` wrote, and rebuild its rules.

    Args:
        path: of the file.
        identity: what it must have been made from; None takes any.

    Returns:
        The `SpectralMeasure`.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no measure, of another version, cut short, inconsistent, or made from
            something else (then an `OtherRunError`).

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "measure.npz"
    ...     _ = path.write_bytes(b"PK")
    ...     load(path)
    Traceback (most recent call last):
    ValueError: ...measure.npz must be a spectral measure of format 1, got a file that ...
    """
    what = "a spectral measure"
    fields = files.load(path, what, FORMAT_VERSION, *_KINDS, identity=identity)
    try:
        return _measure_of(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a spectral measure, got a damaged one: {error}"
        ) from error


def _measure_of(fields: dict[str, np.ndarray]) -> SpectralMeasure:
    if fields["dim"].shape != () or not int(fields["dim"]) >= 1:
        raise ValueError(f"dim must be a count, got {fields['dim']}")
    dim = int(fields["dim"])
    if "eigenvalues" in fields:
        eigenvalues = fields["eigenvalues"]
        if eigenvalues.shape != (1, dim):
            raise ValueError(f"eigenvalues must be {dim}, got shape {eigenvalues.shape}")
        return exact_measure(jnp.asarray(eigenvalues[0]))
    if "nodes" in fields:
        nodes, weights = jnp.asarray(fields["nodes"]), jnp.asarray(fields["weights"])
        return SpectralMeasure.from_nodes(nodes, weights, dim=dim, exact=bool(fields["exact"]))
    _check_recurrence(dim, *(fields[name] for name in _RECURRENCE))
    recurrence = {name: jnp.asarray(fields[name]) for name in _RECURRENCE}
    failed = jnp.full(recurrence["num_valid"].shape, -1, jnp.int32)
    return measure_from(Tridiagonalization(basis=None, failed_step=failed, **recurrence), dim=dim)


def _check_recurrence(
    dim: int,
    diagonal: np.ndarray,
    off_diagonal: np.ndarray,
    residual_norm: np.ndarray,
    num_valid: np.ndarray,
) -> None:
    if diagonal.ndim != 2 or diagonal.size == 0 or diagonal.shape[1] > dim:
        raise ValueError(f"diagonal must be [probes, at most {dim}], got shape {diagonal.shape}")
    num_probes, m = diagonal.shape
    shapes = (off_diagonal.shape, residual_norm.shape, num_valid.shape)
    if shapes != ((num_probes, m - 1), (num_probes,), (num_probes,)):
        raise ValueError(f"the recurrence must be of {num_probes} x {m} steps, got shapes {shapes}")
    for name, values in (("off_diagonal", off_diagonal), ("residual_norm", residual_norm)):
        if not (values >= 0).all() or not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite and not negative, got {values.min()}")
    if not np.issubdtype(diagonal.dtype, np.floating) or not np.isfinite(diagonal).all():
        raise ValueError("diagonal must be finite real numbers")
    if (
        not np.issubdtype(num_valid.dtype, np.integer)
        or not ((num_valid >= 0) & (num_valid <= m)).all()
    ):
        raise ValueError(f"num_valid must be counts up to {m}, got {num_valid}")

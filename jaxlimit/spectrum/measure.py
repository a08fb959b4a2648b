"""The measure itself: made from recurrences or a known spectrum, re-ruled, saved and loaded."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlimit import lanczos
from jaxlimit._core import files
from jaxlimit._core.checks import is_concrete, is_finite
from jaxlimit.spectrum import _quadrature

FORMAT_VERSION = 1
_RECURRENCE = ("diagonal", "off_diagonal", "residual_norm", "num_valid")


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class SpectralMeasure:
    """Weighted eigenvalue estimates of an operator, one row a probe.

    Attributes:
        nodes: Gauss nodes (Ritz values).
        weights: their weights, each row summing to 1.
        diagonal: α of each probe's recurrence; None for an exact spectrum.
        off_diagonal: β of the same.
        residual_norm: the last β, which couples to the step not taken.
        num_valid: steps before an invariant subspace ended the recurrence.
        family_nodes: at half and at full depth, nodes of the rules with one more node, prescribed:
            row 0 at 0, then across the gap around 0, last the Gauss rule.
        family_weights: their weights.
        dim: D.
    """

    nodes: Float[Array, "p m"]
    weights: Float[Array, "p m"]
    diagonal: Float[Array, "p m"] | None
    off_diagonal: Float[Array, "p m-1"] | None
    residual_norm: Float[Array, "p"] | None
    num_valid: Int[Array, "p"] | None
    family_nodes: Float[Array, "p 2 r m+1"] | None
    family_weights: Float[Array, "p 2 r m+1"] | None
    dim: int = field(metadata={"static": True})


def measure_from(tridiagonal: lanczos.Tridiagonalization, *, dim: int) -> SpectralMeasure:
    """Turn recurrences that started from probes on the unit sphere into a measure.

    Args:
        tridiagonal: one result of Lanczos, or several stacked along a first axis.
        dim: D.

    Returns:
        A `SpectralMeasure` with one row a recurrence, padded with weights 0 where an invariant
        subspace ended it. Where a product was not finite and nothing can be raised under `jit`, the
        row is NaN.

    Raises:
        FloatingPointError: if a product was not finite; names the probe and the step.

    >>> import jax.numpy as jnp
    >>> result = lanczos.tridiagonalize(lambda v: jnp.arange(3.0) * v, jnp.ones(3), num_steps=3)
    >>> measure_from(result, dim=3).nodes.round(3) + 0.0
    Array([[0., 1., 2.]], dtype=float32)
    """
    t = tridiagonal._replace(basis=None)
    if t.diagonal.ndim == 1:
        t = jax.tree.map(lambda x: x[None], t)
    check_steps(t.failed_step)
    diagonal = jnp.where(t.failed_step[:, None] >= 0, jnp.nan, t.diagonal)
    rules = _rules(diagonal, t.off_diagonal, t.residual_norm, t.num_valid)
    return SpectralMeasure(
        nodes=rules.nodes,
        weights=rules.weights,
        diagonal=diagonal,
        off_diagonal=t.off_diagonal,
        residual_norm=t.residual_norm,
        num_valid=t.num_valid,
        family_nodes=rules.family_nodes,
        family_weights=rules.family_weights,
        dim=dim,
    )


def check_steps(failed_step: Any, first: int = 0) -> None:
    """Raise where a product is known to have failed in the recurrence of a probe.

    Args:
        failed_step: of each probe's recurrence, -1 where none did; traced values pass unchecked.
        first: index of the first of these probes.
    """
    if not is_concrete(failed_step):
        return
    failed = np.atleast_1d(failed_step)
    for index in np.flatnonzero(failed >= 0)[:1]:
        raise FloatingPointError(
            f"matvec returned NaN or infinity at Lanczos step {failed[index]} "
            f"of probe {first + index}"
        )


def _rules(diagonal, off_diagonal, residual_norm, num_valid) -> _quadrature.Rules:
    num_probes, m = diagonal.shape
    gauss = jax.ShapeDtypeStruct((num_probes, m), diagonal.dtype)
    family = jax.ShapeDtypeStruct((num_probes, 2, _quadrature.NUM_PINNED, m + 1), diagonal.dtype)

    def on_host(*recurrences):
        rows = zip(*map(np.asarray, recurrences), strict=True)
        results = [_quadrature.rules(a, b, float(r), int(n)) for a, b, r, n in rows]
        return jax.tree.map(lambda *rows: np.stack(rows).astype(diagonal.dtype), *results)

    # A host callback, so that the eigenproblems are in float64 under `jit` and `vmap` too.
    arguments = (diagonal, off_diagonal, residual_norm, num_valid)
    rules = _quadrature.Rules(gauss, gauss, family, family)
    return jax.pure_callback(on_host, rules, *arguments, vmap_method="sequential")


def exact_measure(eigenvalues: Float[Array, "D"]) -> SpectralMeasure:
    """Wrap a known spectrum, so that everything that takes a measure can be used on it exactly.

    Args:
        eigenvalues: all D of them; integers are taken to floats.

    Returns:
        A `SpectralMeasure` of one row, all weights 1/D.

    Raises:
        TypeError: if they are complex.
        ValueError: if there are none, or one is not finite.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import trace_function
    >>> trace_function(exact_measure(jnp.array([1.0, 3.0])), jnp.square).value
    Array(5., dtype=float32)
    """
    eigenvalues = jnp.asarray(eigenvalues)
    if jnp.iscomplexobj(eigenvalues):
        raise TypeError(f"eigenvalues must be real, got dtype {eigenvalues.dtype}")
    if not jnp.issubdtype(eigenvalues.dtype, jnp.floating):
        eigenvalues = eigenvalues.astype(jnp.result_type(float))
    if eigenvalues.ndim != 1 or eigenvalues.size == 0:
        raise ValueError(f"eigenvalues must be a vector [D], got shape {eigenvalues.shape}")
    if not is_finite(eigenvalues):
        raise ValueError("eigenvalues must be finite, got NaN or infinity")
    nodes = eigenvalues[None]
    weights = jnp.full_like(nodes, 1 / eigenvalues.size)
    none = (None,) * 6
    return SpectralMeasure(nodes, weights, *none, dim=eigenvalues.size)


def pinned_measure(tridiagonal: Any, node: float, *, dim: int | None = None) -> SpectralMeasure:
    """Prescribe one more quadrature node: the Gauss-Radau rule.

    T is bordered by the last β and the diagonal entry that makes `node` an eigenvalue. With the
    node at 0, the end that ∫f takes its least value at, it bounds `trace_function` from below for
    the f of `trace_bracket`. Costs a tridiagonal eigenproblem, no product.

    Args:
        tridiagonal: a `Tridiagonalization` or a `SpectralMeasure`.
        node: where, a static float. If T has it already, the rule is the Gauss rule.
        dim: D; taken from `tridiagonal` where that knows it.

    Returns:
        A `SpectralMeasure` with nodes and weights [p, m+1] and no family of its own.

    Raises:
        ValueError: if `node` is not finite, `dim` is missing, or the measure is exact.

    >>> import jax.numpy as jnp
    >>> result = lanczos.tridiagonalize(lambda v: jnp.arange(4.0) * v, jnp.ones(4), num_steps=2)
    >>> jnp.abs(pinned_measure(result, 0.0).nodes).min()
    Array(0., dtype=float32)

    Golub (1973), "Some modified matrix eigenvalue problems", section 7.
    """
    if tridiagonal.diagonal is None:
        raise ValueError("tridiagonal must come from Lanczos, got an exact measure")
    if not np.isfinite(node):
        raise ValueError(f"node must be finite, got {node}")
    basis = getattr(tridiagonal, "basis", None)
    dim = dim or getattr(tridiagonal, "dim", None) or (None if basis is None else basis.shape[-1])
    if dim is None:
        raise ValueError("dim must be given where tridiagonal keeps no basis")
    recurrence = {name: jnp.asarray(getattr(tridiagonal, name)) for name in _RECURRENCE}
    if recurrence["diagonal"].ndim == 1:
        recurrence = {name: values[None] for name, values in recurrence.items()}
    diagonal = recurrence["diagonal"]
    shape = jax.ShapeDtypeStruct((len(diagonal), 2, diagonal.shape[1] + 1), diagonal.dtype)

    def on_host(*arrays):
        padded = np.zeros(shape.shape, shape.dtype)
        for row, a, b, r, n in zip(padded, *map(np.asarray, arrays), strict=True):
            if np.isnan(a).any():
                row[:] = np.nan
                continue
            rule = _quadrature.radau_rule(a[:n], b[: n - 1], float(r), float(node))
            row[:, : len(rule[0])] = rule
        return padded

    rules = jax.pure_callback(on_host, shape, *recurrence.values(), vmap_method="sequential")
    return SpectralMeasure(
        nodes=rules[:, 0],
        weights=rules[:, 1],
        family_nodes=None,
        family_weights=None,
        dim=dim,
        **recurrence,
    )


def truncate(measure: SpectralMeasure, num_steps: int) -> SpectralMeasure:
    """Return the measure as it was after its first `num_steps` steps; costs no product.

    Args:
        measure: from Lanczos.
        num_steps: at most its own depth.

    Returns:
        A `SpectralMeasure` of that depth.

    Raises:
        ValueError: if the measure is exact or `num_steps` lies outside [1, its depth].

    >>> import jax, jax.numpy as jnp
    >>> from jaxlimit.spectrum import spectral_measure
    >>> operator = lambda v: jnp.arange(8.0) * v
    >>> measure = spectral_measure(operator, jax.random.key(0), dim=8, num_steps=6)
    >>> truncate(measure, 3).nodes.shape
    (1, 3)
    """
    if measure.diagonal is None:
        raise ValueError("measure must come from Lanczos, got an exact measure")
    diagonal, off_diagonal, residual_norm, num_valid = (
        jnp.asarray(getattr(measure, name)) for name in _RECURRENCE
    )
    depth = diagonal.shape[-1]
    if not 1 <= num_steps <= depth:
        raise ValueError(f"num_steps must lie in [1, {depth}], got {num_steps}")
    return measure_from(
        lanczos.Tridiagonalization(
            diagonal=diagonal[:, :num_steps],
            off_diagonal=off_diagonal[:, : num_steps - 1],
            basis=None,
            residual_norm=residual_norm if num_steps == depth else off_diagonal[:, num_steps - 1],
            num_valid=jnp.minimum(num_valid, num_steps),
            failed_step=jnp.full(len(diagonal), -1, jnp.int32),
        ),
        dim=measure.dim,
    )


def save(path: Any, measure: SpectralMeasure, *, identity: dict | None = None) -> None:
    """Write a measure as a versioned npz: the recurrence, or the spectrum if exact.

    Args:
        path: of the file, under just this name.
        measure: the measure.
        identity: what it was made from, as JSON, kept in the same file for `load` to compare.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.

    >>> import pathlib, tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "measure.npz"
    ...     save(path, exact_measure(jnp.array([1.0, 3.0])))
    ...     load(path).nodes
    Array([[1., 3.]], dtype=float32)
    """
    if measure.diagonal is None:
        fields = {"eigenvalues": measure.nodes}
    else:
        fields = {name: getattr(measure, name) for name in _RECURRENCE}
    files.save(path, FORMAT_VERSION, identity=identity, dim=measure.dim, **fields)


def load(path: Any, *, identity: dict | None = None) -> SpectralMeasure:
    """Read a measure that `save` wrote; its rules are built anew.

    Args:
        path: of the file.
        identity: what it must have been made from; None takes any.

    Returns:
        The `SpectralMeasure`.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no measure, of another version, cut short, or made from something
            else (then an `OtherRunError`).

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "measure.npz"
    ...     _ = path.write_bytes(b"PK")
    ...     load(path)
    Traceback (most recent call last):
    ValueError: ...measure.npz must be a spectral measure of format 1, got a file that ...
    """
    kinds = ({"dim", "eigenvalues"}, {"dim", *_RECURRENCE})
    fields = files.load(path, "a spectral measure", FORMAT_VERSION, *kinds, identity=identity)
    if "eigenvalues" in fields:
        return exact_measure(jnp.asarray(fields["eigenvalues"][0]))
    recurrence = {name: jnp.asarray(fields[name]) for name in _RECURRENCE}
    failed = jnp.full(recurrence["num_valid"].shape, -1, jnp.int32)
    return measure_from(
        lanczos.Tridiagonalization(basis=None, failed_step=failed, **recurrence),
        dim=int(fields["dim"]),
    )

"""The measure itself, made from recurrences, from nodes or from a known spectrum."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import as_array, check_count, check_type, is_concrete, is_finite
from jaxlimit.lanczos import Tridiagonalization
from jaxlimit.spectrum import _quadrature


class PinnedRules(NamedTuple):
    """Rules with one more node, which is prescribed, at half and at full depth.

    Attributes:
        nodes: row 0 has the prescribed node at 0, the next rows have it across the gap around 0;
            the last row is the Gauss rule.
        weights: their weights.
    """

    nodes: Float[Array, "p 2 r m+1"]
    weights: Float[Array, "p 2 r m+1"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpectralMeasure:
    """Weighted eigenvalue estimates of an operator, one row a probe.

    Attributes:
        nodes: Gauss nodes (Ritz values).
        weights: their weights, each row summing to 1.
        recurrence: the Lanczos recurrence of each probe, stacked and without a basis; None if the
            measure does not come from Lanczos.
        rules: the pinned rules; None where there are none.
        dim: D.
        exact: whether it is the spectrum itself, with no random error.
    """

    nodes: Float[Array, "p m"]
    weights: Float[Array, "p m"]
    recurrence: Tridiagonalization | None = None
    rules: PinnedRules | None = None
    dim: int = field(default=1, metadata={"static": True})
    exact: bool = field(default=False, metadata={"static": True})

    @classmethod
    def from_nodes(
        cls,
        nodes: Float[Array, "*p m"],
        weights: Float[Array, "*p m"],
        *,
        dim: int,
        exact: bool = False,
    ) -> "SpectralMeasure":
        """Make a measure from the nodes and weights of any quadrature.

        Args:
            nodes: eigenvalue estimates, one row a probe, or a single row.
            weights: those of the nodes, not negative, each row summing to 1. Nodes of weight 0 are
                padding.
            dim: D.
            exact: whether the nodes are the spectrum itself, with no random error.

        Returns:
            A `SpectralMeasure`. Unless it is exact, its rows count as independent probes, uniform
            on the unit sphere.

        Raises:
            TypeError: if nodes or weights are not real, or `dim` is no static int.
            ValueError: if their shapes differ, a number is not finite, a weight is negative, or the
                weights of a row do not sum to 1 within 1e-3.

        >>> import jax.numpy as jnp
        >>> from jaxlimit.spectrum import trace_function
        >>> measure = SpectralMeasure.from_nodes(
        ...     jnp.array([0.0, 2.0]), jnp.array([0.75, 0.25]), dim=100)
        >>> trace_function(measure, jnp.square).value
        Array(1., dtype=float32)
        """
        nodes, weights = _rows_of("nodes", nodes), _rows_of("weights", weights)
        if nodes.shape != weights.shape:
            raise ValueError(
                f"weights must have the shape of nodes, {nodes.shape}, got {weights.shape}"
            )
        if is_concrete(weights):
            host = np.asarray(weights, np.float64)
            if (host < 0).any():
                raise ValueError(f"weights must not be negative, got {host.min():.3g}")
            if (np.abs(host.sum(-1) - 1) > 1e-3).any():
                raise ValueError(f"weights must sum to 1 in each row, got {host.sum(-1)}")
        return cls(nodes, weights, dim=check_count("dim", dim), exact=bool(exact))


def _rows_of(name: str, values: Any) -> Array:
    """Return real, finite numbers as floating rows [p, m]."""
    array = as_array(name, values)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{name} must be a vector [m] or rows [p, m], got shape {array.shape}")
    if not is_finite(array):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return jnp.atleast_2d(array)


def measure_from(tridiagonal: Tridiagonalization, *, dim: int) -> SpectralMeasure:
    """Turn recurrences that started from probes on the unit sphere into a measure.

    Args:
        tridiagonal: one result of Lanczos, or several stacked along a first axis.
        dim: D.

    Returns:
        A `SpectralMeasure` with one row a recurrence, padded with weights 0 where an invariant
        subspace ended it. Under `jit`, where nothing can be raised, a row whose product was not
        finite is NaN.

    Raises:
        FloatingPointError: if a product was not finite; names the probe and the step.

    >>> import jax.numpy as jnp
    >>> from jaxlimit import lanczos
    >>> result = lanczos.tridiagonalize(lambda v: jnp.arange(3.0) * v, jnp.ones(3), num_steps=3)
    >>> measure_from(result, dim=3).nodes.round(3) + 0.0
    Array([[0., 1., 2.]], dtype=float32)
    """
    t = _stacked(tridiagonal)
    check_steps(t.failed_step)
    t = t._replace(diagonal=jnp.where(t.failed_step[:, None] >= 0, jnp.nan, t.diagonal))
    (num_probes, m), dtype = t.diagonal.shape, t.diagonal.dtype
    gauss = jax.ShapeDtypeStruct((num_probes, m), dtype)
    family = jax.ShapeDtypeStruct((num_probes, 2, _quadrature.NUM_PINNED, m + 1), dtype)
    shapes = _quadrature.Rules(gauss, gauss, family, family)
    rules = _on_host(_rules, shapes, t)
    pinned = PinnedRules(rules.family_nodes, rules.family_weights)
    return SpectralMeasure(rules.nodes, rules.weights, t, pinned, dim=check_count("dim", dim))


def _stacked(tridiagonal: Tridiagonalization) -> Tridiagonalization:
    """Return recurrences along a first axis, without their bases."""
    check_type("tridiagonal", tridiagonal, Tridiagonalization)
    t = jax.tree.map(jnp.asarray, tridiagonal._replace(basis=None))
    return jax.tree.map(lambda x: x[None], t) if t.diagonal.ndim == 1 else t


def _on_host(function: Callable, shapes: Any, t: Tridiagonalization) -> Any:
    """Call NumPy on recurrences: the eigenproblems are solved in float64, whatever their type.

    Known values go there directly, since every callback is a program that is compiled and kept. The
    function must be equal to itself from call to call.
    """
    arrays = (t.diagonal, t.off_diagonal, t.residual_norm, t.num_valid)
    if is_concrete(arrays):
        return jax.tree.map(jnp.asarray, function(*map(np.asarray, arrays)))
    return jax.pure_callback(function, shapes, *arrays, vmap_method="sequential")


def _rules(*recurrences: Any) -> _quadrature.Rules:
    arrays = [np.asarray(array) for array in recurrences]
    rows = zip(*arrays, strict=True)
    results = [_quadrature.rules(a, b, float(r), int(n)) for a, b, r, n in rows]
    return jax.tree.map(lambda *rows: np.stack(rows).astype(arrays[0].dtype), *results)


def check_steps(failed_step: Any, first: int = 0) -> None:
    """Raise where a product is known to have failed in the recurrence of a probe.

    Args:
        failed_step: of each probe's recurrence, -1 where none did; traced values pass unchecked.
        first: index of the first of these probes among all.
    """
    if not is_concrete(failed_step):
        return
    failed = np.atleast_1d(failed_step)
    for index in np.flatnonzero(failed >= 0)[:1]:
        raise FloatingPointError(
            f"matvec returned NaN or infinity at Lanczos step {failed[index]} "
            f"of probe {first + index}"
        )


def exact_measure(eigenvalues: Float[Array, "D"]) -> SpectralMeasure:
    """Wrap a known spectrum as a measure without error.

    Args:
        eigenvalues: all D of them; integers are taken to floats.

    Returns:
        A `SpectralMeasure` of one row, all weights 1/D.

    Raises:
        TypeError: if they are not real numbers.
        ValueError: if there are none, or one is not finite.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import trace_function
    >>> trace_function(exact_measure(jnp.array([1.0, 3.0])), jnp.square).value
    Array(5., dtype=float32)
    """
    nodes = _rows_of("eigenvalues", eigenvalues)
    if np.ndim(eigenvalues) != 1:
        raise ValueError(f"eigenvalues must be a vector [D], got shape {np.shape(eigenvalues)}")
    weights = jnp.full_like(nodes, 1 / nodes.size)
    return SpectralMeasure(nodes, weights, dim=nodes.size, exact=True)


def pinned_measure(
    tridiagonal: Tridiagonalization | SpectralMeasure, node: float, *, dim: int | None = None
) -> SpectralMeasure:
    """Prescribe one more quadrature node: the Gauss-Radau rule.

    T is bordered by the last β and the diagonal entry that makes `node` an eigenvalue. For the f of
    `trace_bracket`, the rule with a node at 0 gives the least ∫f, a lower bound of
    `trace_function`. Costs a tridiagonal eigenproblem, no product.

    Args:
        tridiagonal: a `Tridiagonalization` or a `SpectralMeasure`.
        node: where to prescribe it, a static float. If T has this eigenvalue, the rule is Gauss's.
        dim: D; taken from `tridiagonal` where that knows it.

    Returns:
        A `SpectralMeasure` with nodes and weights [p, m+1] and no family of its own.

    Raises:
        TypeError: if `tridiagonal` is neither, or `node` no real number.
        ValueError: if `node` is not finite, `dim` is missing, or the measure is not of Lanczos.

    >>> import jax.numpy as jnp
    >>> from jaxlimit import lanczos
    >>> result = lanczos.tridiagonalize(lambda v: jnp.arange(4.0) * v, jnp.ones(4), num_steps=2)
    >>> jnp.abs(pinned_measure(result, 0.0).nodes).min()
    Array(0., dtype=float32)

    Golub (1973), section 7.
    """
    if isinstance(tridiagonal, SpectralMeasure):
        t, dim = recurrence_of("tridiagonal", tridiagonal), dim or tridiagonal.dim
    elif isinstance(tridiagonal, Tridiagonalization):
        t, basis = _stacked(tridiagonal), tridiagonal.basis
        dim = dim or (None if basis is None else basis.shape[-1])
    else:
        raise TypeError(
            "tridiagonal must be a Tridiagonalization or a SpectralMeasure, "
            f"got {type(tridiagonal).__name__}"
        )
    if isinstance(node, bool) or not isinstance(node, int | float | np.number):
        raise TypeError(f"node must be a static real number, got {node!r}")
    if not np.isfinite(node):
        raise ValueError(f"node must be finite, got {node}")
    if dim is None:
        raise ValueError("dim must be given where tridiagonal keeps no basis")
    shape = jax.ShapeDtypeStruct((len(t.diagonal), 2, t.diagonal.shape[1] + 1), t.diagonal.dtype)
    rules = _on_host(_Pinned(float(node)), shape, t)
    return SpectralMeasure(rules[:, 0], rules[:, 1], t, dim=check_count("dim", dim))


@dataclass(frozen=True)
class _Pinned:
    node: float

    def __call__(self, *recurrences: Any) -> np.ndarray:
        diagonals, *others = (np.asarray(array) for array in recurrences)
        padded = np.zeros((len(diagonals), 2, diagonals.shape[1] + 1), diagonals.dtype)
        for row, a, b, r, n in zip(padded, diagonals, *others, strict=True):
            if np.isnan(a).any():
                row[:] = np.nan
                continue
            rule = _quadrature.radau_rule(a[:n], b[: n - 1], float(r), self.node)
            row[:, : len(rule[0])] = rule
        return padded


def recurrence_of(name: str, measure: SpectralMeasure) -> Tridiagonalization:
    """Return the recurrence of a measure, or raise where it has none."""
    check_type(name, measure, SpectralMeasure)
    if measure.recurrence is None:
        what = "an exact measure" if measure.exact else "one made of nodes"
        raise ValueError(f"{name} must come from Lanczos, got {what}")
    return measure.recurrence


def truncate(measure: SpectralMeasure, num_steps: int) -> SpectralMeasure:
    """Return the measure as it was after its first `num_steps` steps, without a product.

    Args:
        measure: from Lanczos.
        num_steps: at most its own depth.

    Returns:
        A `SpectralMeasure` of that depth.

    Raises:
        ValueError: if the measure is not of Lanczos or `num_steps` lies outside [1, its depth].

    >>> import jax, jax.numpy as jnp
    >>> from jaxlimit.spectrum import spectral_measure
    >>> operator = lambda v: jnp.arange(8.0) * v
    >>> measure = spectral_measure(operator, jax.random.key(0), dim=8, num_steps=6)
    >>> truncate(measure, 3).nodes.shape
    (1, 3)
    """
    t = recurrence_of("measure", measure)
    depth = t.diagonal.shape[-1]
    if not 1 <= check_count("num_steps", num_steps) <= depth:
        raise ValueError(f"num_steps must lie in [1, {depth}], got {num_steps}")
    return measure_from(
        Tridiagonalization(
            diagonal=t.diagonal[:, :num_steps],
            off_diagonal=t.off_diagonal[:, : num_steps - 1],
            basis=None,
            residual_norm=(
                t.residual_norm if num_steps == depth else t.off_diagonal[:, num_steps - 1]
            ),
            num_valid=jnp.minimum(t.num_valid, num_steps),
            failed_step=jnp.full_like(t.failed_step, -1),
        ),
        dim=measure.dim,
    )

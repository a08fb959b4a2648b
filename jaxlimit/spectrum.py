"""The spectrum of a symmetric operator as a measure: stochastic Lanczos quadrature and its errors.

A probe u, uniform on the unit sphere, sees the spectrum as the measure Σ (uᵀvᵢ)² δ(λᵢ), whose mean
is the spectral distribution (1/D) Σ δ(λᵢ). Lanczos from u gives that measure's moments, and Gauss
quadrature turns them into (1/D) tr f(H) for any f. Two errors stay apart throughout: that of the
probes, which averaging reduces, and that of the depth, which only more steps reduce.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlimit import _quadrature, lanczos
from jaxlimit._checks import check_count, is_concrete, is_finite
from jaxlimit._estimate import Estimate, exact_estimate
from jaxlimit._matvec import prepare

FORMAT_VERSION = 1


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


def probe(key: PRNGKeyArray, dim: int, dtype: Any = jnp.float32) -> Float[Array, "dim"]:
    """Draw a vector uniformly from the unit sphere."""
    vector = jax.random.normal(key, (dim,), dtype)
    return vector / jnp.linalg.norm(vector)


def spectral_measure(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    vectorize: bool = False,
    dtype: Any = jnp.float32,
) -> SpectralMeasure:
    """Estimate the spectral distribution of a symmetric operator by stochastic Lanczos quadrature.

    Costs num_probes · num_steps products; memory of 48 vectors, or of num_steps reorthogonalised
    fully, or of three if not at all.

    Args:
        matvec: H, a symmetric `Array[D] -> Array[D]`.
        key: random key of the probes.
        dim: D.
        num_steps: Lanczos steps a probe, at most D.
        num_probes: independent probes.
        reorthogonalize: "selective", "full" or "none", see `lanczos.tridiagonalize`; without it
            the bracket of `trace_bracket` closes at twice the depth or more.
        vectorize: run all probes side by side by `vmap` instead of one after the other.
        dtype: floating type of the probes.

    Returns:
        A `SpectralMeasure` with one row a probe.

    Raises:
        TypeError: if a count is no static int.
        ValueError: if a count is below 1, or `matvec` does not map [D] to [D].
        FloatingPointError: if a product was not finite; names the probe and the step.

    >>> import jax, jax.numpy as jnp
    >>> measure = spectral_measure(
    ...     lambda v: jnp.arange(8.0) * v, jax.random.key(0), dim=8, num_steps=8,
    ...     reorthogonalize="full")
    >>> jnp.round(measure.nodes[0])
    Array([0., 1., 2., 3., 4., 5., 6., 7.], dtype=float32)

    Golub, Meurant (2010), chapter 7; Ubaru, Chen, Saad (2017).
    """
    check_count("num_probes", num_probes)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    keys = jax.random.split(key, num_probes)
    settings = (dim, num_steps, reorthogonalize, dtype)
    return measure_from(_run_probes(matvec, keys, vectorize, *settings), dim=dim)


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _run_probes(matvec, keys, vectorize, dim, num_steps, reorthogonalize, dtype):
    def one(key):
        result = lanczos.tridiagonalize(
            matvec, probe(key, dim, dtype), num_steps=num_steps, reorthogonalize=reorthogonalize
        )
        return result._replace(basis=None)

    return jax.vmap(one)(keys) if vectorize else jax.lax.map(one, keys)


def run_probes(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    chunk: int = 32,
    stop: Callable[[SpectralMeasure], bool] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    stage: str = "spectrum",
    dtype: Any = jnp.float32,
) -> SpectralMeasure:
    """Run `spectral_measure` in chunks, so that it can be watched, and stopped when good enough.

    Costs the same products; memory of 48 vectors a probe, or as `spectral_measure` has it.

    Args:
        matvec: as for `spectral_measure`.
        key: as for `spectral_measure`; the same key gives the same measure.
        dim: D.
        num_steps: steps a probe, at most.
        num_probes: independent probes, carried on in turn.
        reorthogonalize: as for `spectral_measure`.
        chunk: steps between two looks.
        stop: called with the measure so far, once the depth has doubled since the last look and
            at least 4 chunks are done; True ends the run.
        on_progress: called as `on_progress(stage, steps_done, steps)` after every chunk.
        stage: a name for `on_progress`.
        dtype: floating type of the probes.

    Returns:
        A `SpectralMeasure` of the depth reached.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`.
        FloatingPointError: as `spectral_measure`.
    """
    check_count("num_probes", num_probes)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    states = [
        lanczos.start(probe(k, dim, dtype), num_steps=num_steps, reorthogonalize=reorthogonalize)
        for k in jax.random.split(key, num_probes)
    ]
    done, looked = 0, 2 * chunk
    while done < num_steps:
        take = min(chunk, num_steps - done)
        for i, state in enumerate(states):
            states[i] = lanczos.extend(
                matvec, state, num_steps=take, reorthogonalize=reorthogonalize
            )
            if on_progress is not None:
                jax.block_until_ready(states[i].current)
                on_progress(stage, done * num_probes + (i + 1) * take, num_steps * num_probes)
        done += take
        if stop is not None and (done >= 2 * looked or done == num_steps):
            looked = done
            if stop(_measure_of_states(states, done, dim)):
                break
    return _measure_of_states(states, done, dim)


def _measure_of_states(states: list, depth: int, dim: int) -> SpectralMeasure:
    parts = [lanczos.finish(state)._replace(basis=None) for state in states]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    return measure_from(
        stacked._replace(
            diagonal=stacked.diagonal[:, :depth], off_diagonal=stacked.off_diagonal[:, : depth - 1]
        ),
        dim=dim,
    )


def measure_from(tridiagonal: lanczos.Tridiagonalization, *, dim: int) -> SpectralMeasure:
    """Turn recurrences that started from probes on the unit sphere into a measure.

    Args:
        tridiagonal: one result of Lanczos, or several stacked along a first axis.
        dim: D.

    Raises:
        FloatingPointError: if a product was not finite; names the probe and the step.
    """
    t = tridiagonal._replace(basis=None)
    if t.diagonal.ndim == 1:
        t = jax.tree.map(lambda x: x[None], t)
    if is_concrete(t.failed_step) and (np.asarray(t.failed_step) >= 0).any():
        failed = np.asarray(t.failed_step)
        raise FloatingPointError(
            f"matvec returned NaN or infinity at Lanczos step {failed[failed >= 0][0]} "
            f"of probe {int(np.argmax(failed >= 0))}"
        )
    rules = _rules(t.diagonal, t.off_diagonal, t.residual_norm, t.num_valid)
    return SpectralMeasure(
        nodes=rules.nodes,
        weights=rules.weights,
        diagonal=t.diagonal,
        off_diagonal=t.off_diagonal,
        residual_norm=t.residual_norm,
        num_valid=t.num_valid,
        family_nodes=rules.family_nodes,
        family_weights=rules.family_weights,
        dim=dim,
    )


def _rules(diagonal, off_diagonal, residual_norm, num_valid) -> _quadrature.Rules:
    num_probes, m = diagonal.shape
    gauss = jax.ShapeDtypeStruct((num_probes, m), diagonal.dtype)
    family = jax.ShapeDtypeStruct((num_probes, 2, _quadrature.NUM_PINNED, m + 1), diagonal.dtype)

    def on_host(*recurrences):
        rows = zip(*(np.asarray(x) for x in recurrences), strict=True)
        results = [
            _quadrature.rules(np.float64(a), np.float64(b), float(r), int(n)) for a, b, r, n in rows
        ]
        return jax.tree.map(lambda *rows: np.stack(rows).astype(diagonal.dtype), *results)

    # A host callback, so that the eigenproblems are in float64 under `jit` and `vmap` too.
    arguments = (diagonal, off_diagonal, residual_norm, num_valid)
    rules = _quadrature.Rules(gauss, gauss, family, family)
    return jax.pure_callback(on_host, rules, *arguments, vmap_method="sequential")


def exact_measure(eigenvalues: Float[Array, "D"]) -> SpectralMeasure:
    """Wrap a known spectrum, so that everything that takes a measure can be used on it exactly.

    Args:
        eigenvalues: all D of them.

    Raises:
        ValueError: if there are none, or one is not finite.

    >>> import jax.numpy as jnp
    >>> trace_function(exact_measure(jnp.array([1.0, 3.0])), jnp.square).value
    Array(5., dtype=float32)
    """
    eigenvalues = jnp.asarray(eigenvalues)
    if eigenvalues.ndim != 1 or eigenvalues.size == 0:
        raise ValueError(f"eigenvalues must be a vector [D], got shape {eigenvalues.shape}")
    if not is_finite(eigenvalues):
        raise ValueError("eigenvalues must be finite, got NaN or infinity")
    nodes = eigenvalues[None]
    weights = jnp.full_like(nodes, 1 / eigenvalues.size)
    none = (None,) * 6
    return SpectralMeasure(nodes, weights, *none, dim=eigenvalues.size)


def trace_function(measure: SpectralMeasure, f: Callable[[Array], Array]) -> Estimate:
    """Estimate the normalised trace (1/D) tr f(H) by Gauss quadrature.

    The value is the mean over probes of Σ wⱼ f(θⱼ). For u uniform on the sphere the variance of
    uᵀf(H)u is 2/(D+2) · (mean f² - (mean f)²) over the spectrum, and the same quadrature gives
    that too: one probe tells its own standard error. The interval is value ± 1.96 standard errors
    and knows nothing of the depth; see `trace_bracket` for functions with their least value at 0.

    Args:
        measure: from `spectral_measure` or `exact_measure`.
        f: maps arrays of eigenvalues elementwise.

    Returns:
        An `Estimate`, its error 0 for an exact measure.
    """
    mean = lambda g: jnp.sum(measure.weights * g, axis=-1).mean(0)  # noqa: E731
    values = f(measure.nodes)
    value = mean(values)
    if measure.diagonal is None:
        return exact_estimate(value)
    standard_error = _sphere_error(measure, value, mean(values**2))
    return Estimate(
        value, standard_error, value - 1.96 * standard_error, value + 1.96 * standard_error
    )


def _sphere_error(measure, mean, mean_square):
    variance = jnp.maximum(mean_square - mean**2, 0) * 2 / (measure.dim + 2)
    return jnp.sqrt(variance / measure.nodes.shape[0])


def trace_bracket(measure: SpectralMeasure, f: Callable[[Array], Array]) -> Estimate:
    """Bracket the normalised trace (1/D) tr f(H) of an f that is least at 0 with a kink there.

    Among all measures with the moments that Lanczos saw, the rule with a node prescribed at 0 puts
    the most mass there and so gives the least ∫f; the greatest is found among the rules with the
    node prescribed elsewhere in the gap around 0, up to the Gauss rule itself. Made for
    f(λ) = |λ|/(|λ|+c) and its clipped form, where plain Gauss jumps with depth.

    Args:
        measure: from `spectral_measure` or `exact_measure`.
        f: maps arrays of eigenvalues elementwise; increasing and concave away from 0 on each side
            (constant allowed).

    Returns:
        An `Estimate` whose interval joins both errors: from the low end of the bracket less 1.96
        of its standard errors to the high end plus 1.96 of its own. `standard_error` is that of
        the probes alone. `value` extrapolates in depth: from half to full depth the low end rises
        as the bracket closes, and the line of low end against width is followed to width 0 (and
        kept inside the bracket). The width is 0 for an exact measure and where Lanczos met an
        invariant subspace.

    >>> import jax, jax.numpy as jnp
    >>> eigenvalues = jnp.concatenate([jnp.zeros(900), jnp.linspace(-1, 5, 100)])
    >>> measure = spectral_measure(
    ...     lambda v: eigenvalues * v, jax.random.key(0), dim=1000, num_steps=16)
    >>> f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.1)
    >>> estimate = trace_bracket(measure, f)
    >>> truth = trace_function(exact_measure(eigenvalues), f)
    >>> bool(estimate.lower <= truth.value <= estimate.upper)
    True

    Golub, Meurant (2010), chapter 6, for Gauss-Radau; Krein, Nudelman (1977), chapter III, for the
    extremal measures of a truncated moment problem.
    """
    if measure.family_nodes is None:
        return trace_function(measure, f)
    values = f(measure.family_nodes)
    means = jnp.sum(measure.family_weights * values, axis=-1)
    squares = jnp.sum(measure.family_weights * values**2, axis=-1)
    greatest = jnp.argmax(means, axis=-1, keepdims=True)
    average = lambda x, row: jnp.take_along_axis(x, row, -1)[..., 0].mean(0)  # noqa: E731
    low, low_square = average(means, 0 * greatest), average(squares, 0 * greatest)
    high, high_square = average(means, greatest), average(squares, greatest)
    half_width, width = high - low
    slope = _safe_ratio(low[1] - low[0], half_width - width)
    value = low[1] + jnp.clip(slope, 0, 1) * width
    low_error = _sphere_error(measure, low[1], low_square[1])
    high_error = _sphere_error(measure, high[1], high_square[1])
    return Estimate(
        value,
        (low_error + high_error) / 2,
        low[1] - 1.96 * low_error,
        high[1] + 1.96 * high_error,
    )


def _safe_ratio(numerator, denominator):
    return numerator / jnp.where(denominator > 0, denominator, jnp.inf)


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
    fields = ("diagonal", "off_diagonal", "residual_norm", "num_valid")
    recurrence = [jnp.asarray(getattr(tridiagonal, name)) for name in fields]
    if recurrence[0].ndim == 1:
        recurrence = [x[None] for x in recurrence]
    shape = jax.ShapeDtypeStruct(
        (len(recurrence[0]), 2, recurrence[0].shape[1] + 1), recurrence[0].dtype
    )

    def on_host(*arrays):
        rows = zip(*(np.asarray(x) for x in arrays), strict=True)
        padded = np.zeros(shape.shape, shape.dtype)
        for row, (a, b, r, n) in zip(padded, rows, strict=True):
            rule = _quadrature.radau_rule(
                np.float64(a[:n]), np.float64(b[: n - 1]), float(r), float(node)
            )
            row[:, : len(rule[0])] = rule
        return padded

    rules = jax.pure_callback(on_host, shape, *recurrence, vmap_method="sequential")
    return SpectralMeasure(rules[:, 0], rules[:, 1], *recurrence, None, None, dim=dim)


def density(measure: SpectralMeasure, grid: Float[Array, "g"], *, width: Any) -> Float[Array, "g"]:
    """Smooth a measure into a density on a grid, for looking at: never for a bound.

    ρ(x) = Σ wⱼ K((x-θⱼ)/σ), K Gaussian, each kernel scaled to have mass exactly 1 on the grid, so
    that the density integrates (trapezoid rule) to 1 over it; a node beyond the grid is counted at
    the grid's end.

    Args:
        measure: the measure.
        grid: increasing points, any spacing.
        width: σ, a number or one for each grid point; no less than the grid's spacing there, since
            a kernel that falls between two points is lost.

    Raises:
        ValueError: if the grid does not increase or `width` is below its spacing.

    >>> import jax.numpy as jnp
    >>> grid = jnp.linspace(-1, 5, 61)
    >>> values = density(exact_measure(jnp.array([0.0, 3.0])), grid, width=0.2)
    >>> jnp.trapezoid(values, grid).round(5)
    Array(1., dtype=float32)
    """
    grid = jnp.asarray(grid)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"grid must be a vector of at least 2 points, got shape {grid.shape}")
    width = jnp.broadcast_to(jnp.asarray(width, grid.dtype), grid.shape)
    if is_concrete(grid, width):
        spacing = np.diff(np.asarray(grid))
        if (spacing <= 0).any():
            raise ValueError("grid must increase")
        needed = np.maximum(np.append(spacing, 0), np.append(0, spacing))
        if (np.asarray(width) < needed * (1 - 1e-5)).any():
            raise ValueError(
                f"width must be at least the grid's spacing, up to {needed.max():.3g}, "
                f"got {np.asarray(width).min():.3g}"
            )
    cells = (jnp.append(jnp.diff(grid), 0) + jnp.append(0, jnp.diff(grid))) / 2

    def add(total, node_and_weight):
        node, weight = node_and_weight
        at = jnp.clip(node, grid[0], grid[-1])
        sigma = jnp.interp(at, grid, width)
        kernel = jnp.exp(-0.5 * ((grid - at) / sigma) ** 2)
        return total + weight * kernel / jnp.sum(kernel * cells), None

    nodes = measure.nodes.astype(grid.dtype).ravel()
    weights = measure.weights.astype(grid.dtype).ravel() / len(measure.weights)
    return jax.lax.scan(add, jnp.zeros_like(grid), (nodes, weights))[0]


def save(path: Any, measure: SpectralMeasure) -> None:
    """Write a measure as a versioned npz: the recurrence, or the spectrum if exact.

    Raises:
        OSError: if the file cannot be written.
    """
    if measure.diagonal is None:
        fields = {"eigenvalues": measure.nodes}
    else:
        names = ("diagonal", "off_diagonal", "residual_norm", "num_valid")
        fields = {name: getattr(measure, name) for name in names}
    with open(path, "wb") as file:
        np.savez(file, version=FORMAT_VERSION, dim=measure.dim, **jax.tree.map(np.asarray, fields))


def load(path: Any) -> SpectralMeasure:
    """Read a measure that `save` wrote; its rules are built anew.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no measure, or of another version.
    """
    with np.load(path) as file:
        if int(file.get("version", -1)) != FORMAT_VERSION:
            raise ValueError(
                f"{path} must be a spectral measure of format {FORMAT_VERSION}, "
                f"got {file.get('version', 'none')}"
            )
        fields = {name: file[name] for name in file.files}
    if "eigenvalues" in fields:
        return exact_measure(jnp.asarray(fields["eigenvalues"][0]))
    recurrence = {
        name: jnp.asarray(fields[name])
        for name in ("diagonal", "off_diagonal", "residual_norm", "num_valid")
    }
    failed = jnp.full(recurrence["num_valid"].shape, -1, jnp.int32)
    return measure_from(
        lanczos.Tridiagonalization(basis=None, failed_step=failed, **recurrence),
        dim=int(fields["dim"]),
    )

"""What a measure is for: traces of matrix functions with their errors, and densities."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_range, is_concrete
from jaxlimit._core.estimate import Estimate, exact_estimate
from jaxlimit.spectrum.measure import SpectralMeasure


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

    Raises:
        ValueError: if `f` gives an array of another shape than it was given.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> trace_function(exact_measure(jnp.array([1.0, 3.0])), jnp.exp).value.round(3)
    Array(11.402, dtype=float32)
    """
    mean = lambda g: jnp.sum(measure.weights * g, axis=-1).mean(0)  # noqa: E731
    values = _values(f, measure.nodes)
    value = mean(values)
    if measure.diagonal is None:
        return exact_estimate(value)
    standard_error = _sphere_error(measure, value, mean(values**2))
    return Estimate(
        value, standard_error, value - 1.96 * standard_error, value + 1.96 * standard_error
    )


def _values(f, nodes):
    values = jnp.asarray(f(nodes))
    if values.shape not in (nodes.shape, ()):
        raise ValueError(
            f"f must map eigenvalues elementwise, [{nodes.size}] to [{nodes.size}], "
            f"got shape {values.shape} from {nodes.shape}"
        )
    return jnp.broadcast_to(values, nodes.shape)


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

    Raises:
        ValueError: as `trace_function`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure, spectral_measure
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
    if measure.family_nodes is None or measure.family_weights is None:
        return trace_function(measure, f)
    values = _values(f, measure.family_nodes)
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


def psd_bracket(measure: SpectralMeasure, f: Callable[[Array], Array]) -> Estimate:
    """Bracket (1/D) tr f(H) for positive semi-definite H and completely monotone f.

    Where the derivatives of f alternate in sign on [0, ∞), as those of c/(λ+c) and exp(-tλ) do, the
    Gauss rule gives the least ∫f that the moments allow and the rule with a node prescribed at 0
    the greatest. One minus a bounded such f, as λ/(λ+c), is bracketed the other way round.

    Args:
        measure: from `spectral_measure` or `exact_measure`, of a positive semi-definite H.
        f: maps arrays of eigenvalues elementwise.

    Returns:
        An `Estimate` whose value is the middle of the bracket, and whose interval joins the
        bracket and 1.96 standard errors of either end.

    Raises:
        ValueError: if a node is negative by more than rounding, 1e-4 of the largest; else as
            `trace_function`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxlimit.spectrum import spectral_measure
    >>> eigenvalues = jnp.linspace(0, 5, 100)
    >>> measure = spectral_measure(
    ...     lambda v: eigenvalues * v, jax.random.key(0), dim=100, num_steps=16)
    >>> estimate = psd_bracket(measure, lambda x: jnp.exp(-x))
    >>> bool(estimate.lower < jnp.exp(-eigenvalues).mean() < estimate.upper)
    True

    Golub, Meurant (2010), sections 6.2 and 6.3.
    """
    if is_concrete(measure.nodes):
        nodes = np.asarray(measure.nodes)
        if nodes.min() < -1e-4 * np.abs(nodes).max():
            raise ValueError(
                f"measure must be that of a positive semi-definite operator, got a node at "
                f"{nodes.min():.3g}; for others see trace_bracket"
            )
    if measure.family_nodes is None or measure.family_weights is None:
        return trace_function(measure, f)
    # At full depth, the last rule of the family is Gauss's and the first has its node at 0.
    nodes, weights = (x[:, 1, (-1, 0)] for x in (measure.family_nodes, measure.family_weights))
    values = _values(f, nodes)
    ends = jnp.sum(weights * values, axis=-1).mean(0)
    errors = _sphere_error(measure, ends, jnp.sum(weights * values**2, axis=-1).mean(0))
    return Estimate(
        ends.mean(),
        errors.mean(),
        ends.min() - 1.96 * errors[ends.argmin()],
        ends.max() + 1.96 * errors[ends.argmax()],
    )


def _safe_ratio(numerator, denominator):
    return numerator / jnp.where(denominator > 0, denominator, jnp.inf)


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

    Returns:
        ρ at each point of the grid, NaN where the measure is.

    Raises:
        ValueError: if the grid does not increase or `width` is below its spacing or NaN.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> grid = jnp.linspace(-1, 5, 61)
    >>> values = density(exact_measure(jnp.array([0.0, 3.0])), grid, width=0.2)
    >>> jnp.trapezoid(values, grid).round(5)
    Array(1., dtype=float32)
    """
    grid = _floating(grid)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"grid must be a vector of at least 2 points, got shape {grid.shape}")
    width = jnp.broadcast_to(jnp.asarray(width, grid.dtype), grid.shape)
    if is_concrete(grid, width):
        spacing = np.diff(np.asarray(grid))
        if not (spacing > 0).all():
            raise ValueError("grid must increase")
        needed = np.maximum(np.append(spacing, 0), np.append(0, spacing))
        if not (np.asarray(width) >= needed * (1 - 1e-5)).all():
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


def _floating(grid):
    grid = jnp.asarray(grid)
    return grid if jnp.issubdtype(grid.dtype, jnp.floating) else grid.astype(float)


def log_density(
    measure: SpectralMeasure, grid: Float[Array, "g"], *, width: float, sign: int = 1
) -> Float[Array, "g"]:
    """Smooth one side of a spectrum into a density over log₁₀|λ|, for looking at.

    Its integral over log₁₀ of the grid is the share of the spectrum with this sign and |λ| no less
    than the grid's least entry: what is smaller is left out, which is most of a network's spectrum.

    Args:
        measure: the measure.
        grid: increasing magnitudes > 0.
        width: σ of the kernel in decades, no less than the grid's spacing in decades.
        sign: 1 for the positive eigenvalues, -1 for the negative ones.

    Returns:
        The density at each point of the grid, NaN where the measure is.

    Raises:
        ValueError: if the grid is not positive and increasing, `width` is below its spacing, or
            `sign` is neither 1 nor -1.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> grid = jnp.geomspace(1e-2, 1e2, 81)
    >>> values = log_density(exact_measure(jnp.array([-1.0, 0.0, 1e-1, 3.0])), grid, width=0.2)
    >>> jnp.trapezoid(values, jnp.log10(grid)).round(5)
    Array(0.5, dtype=float32)
    """
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, got {sign}")
    grid = _floating(grid)
    check_range("grid", grid, 0, open_low=True)
    magnitudes = sign * measure.nodes
    seen = ~(magnitudes < grid[0])
    logarithms = replace(
        measure,
        nodes=jnp.log10(jnp.where(seen, magnitudes, 1)),
        weights=jnp.where(seen, measure.weights, 0),
    )
    return density(logarithms, jnp.log10(grid), width=width)

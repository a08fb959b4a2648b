"""Densities of a measure, for figures only: no bound is computed from them."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import as_array, check_range, check_type, is_concrete
from jaxlimit.spectrum.measure import SpectralMeasure


def density(measure: SpectralMeasure, grid: Float[Array, "g"], *, width: Any) -> Float[Array, "g"]:
    """Smooth a measure into a density on a grid, for figures only.

    ρ(x) = Σ wⱼ K((x-θⱼ)/σ), K Gaussian, each kernel scaled to mass 1 on the grid. So the density
    integrates to 1 over the grid by the trapezoid rule; a node beyond the grid counts at its end.

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
    check_type("measure", measure, SpectralMeasure)
    grid = _floating(grid)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"grid must be a vector of at least 2 points, got shape {grid.shape}")
    width = jnp.broadcast_to(as_array("width", width).astype(grid.dtype), grid.shape)
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
    nodes = measure.nodes.astype(grid.dtype).ravel()
    weights = measure.weights.astype(grid.dtype).ravel() / len(measure.weights)
    return _density(nodes, weights, grid, width)


@jax.jit
def _density(nodes, weights, grid, width):
    cells = (jnp.append(jnp.diff(grid), 0) + jnp.append(0, jnp.diff(grid))) / 2

    def add(total, node_and_weight):
        node, weight = node_and_weight
        at = jnp.clip(node, grid[0], grid[-1])
        sigma = jnp.interp(at, grid, width)
        kernel = jnp.exp(-0.5 * ((grid - at) / sigma) ** 2)
        return total + weight * kernel / jnp.sum(kernel * cells), None

    return jax.lax.scan(add, jnp.zeros_like(grid), (nodes, weights))[0]


def _floating(grid):
    grid = as_array("grid", grid)
    return grid if jnp.issubdtype(grid.dtype, jnp.floating) else grid.astype(float)


def log_density(
    measure: SpectralMeasure, grid: Float[Array, "g"], *, width: float, sign: int = 1
) -> Float[Array, "g"]:
    """Smooth one side of a spectrum into a density over log₁₀|λ|, for figures only.

    Its integral over log₁₀ of the grid is the share of the spectrum with this sign and |λ| at least
    the smallest grid point. Smaller eigenvalues, most of a network's spectrum, are left out.

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
    check_type("measure", measure, SpectralMeasure)
    if isinstance(sign, bool) or sign not in (1, -1):
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

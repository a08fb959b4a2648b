"""The one type in which every stochastic number of this package is returned."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from scipy.special import stdtrit

from jaxlimit._core.scale import deviation, wide_type

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.96  # standard errors on either side of a normal interval of 95 %


class Estimate(NamedTuple):
    """A number with its error bar.

    Attributes:
        value: the point estimate.
        standard_error: standard deviation of `value` over the random draws it is a mean of;
            0 where nothing was random, infinite where it cannot be told.
        lower: lower end of the stated 95 % interval, systematic error included where it is bounded.
        upper: upper end of the same.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def estimate_from_samples(samples: Float[Array, "n ..."]) -> Estimate:
    """Average independent samples over their first axis, with Student's t interval.

    The interval is mean ± t₀.₉₇₅(n-1) s/√n; one sample tells nothing of its own spread, so its
    standard error is infinite and its interval is the whole line.

    >>> import jax.numpy as jnp
    >>> estimate_from_samples(jnp.array([1.0, 2.0, 3.0])).value
    Array(2., dtype=float32)
    """
    num_samples = samples.shape[0]
    samples = samples.astype(wide_type(samples.dtype))
    value = samples.mean(0)
    if num_samples == 1:
        return unknown_error(value)
    return t_interval(value, deviation(samples) / num_samples**0.5, num_samples - 1)


def t_interval(
    value: Float[Array, "..."], standard_error: Float[Array, "..."], num_free: int
) -> Estimate:
    """Put Student's t interval of `num_free` degrees of freedom around a value.

    >>> t_interval(jnp.zeros(()), 1.0, 5).upper.round(3)
    Array(2.571, dtype=float32)
    """
    value, standard_error = jnp.asarray(value), jnp.asarray(standard_error)
    half_width = float(stdtrit(num_free, 0.5 + CONFIDENCE / 2)) * standard_error
    return Estimate(value, standard_error, value - half_width, value + half_width)


def unknown_error(value: Float[Array, "..."]) -> Estimate:
    """Wrap a number whose error cannot be told: the interval is the whole line."""
    infinite = jnp.full_like(value, jnp.inf)
    return Estimate(value, infinite, -infinite, infinite)


def exact_estimate(value: Float[Array, "..."]) -> Estimate:
    """Wrap a number that has no error, so that exact and sampled results compose alike."""
    return Estimate(value, jnp.zeros_like(value), value, value)

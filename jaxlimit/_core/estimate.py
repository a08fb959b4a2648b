"""`Estimate`, the type of every stochastic number of this package, and its intervals."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import stdtrit

from jaxlimit._core.scale import deviation, wide_type
from jaxlimit._core.summaries import short_repr

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.96  # standard errors on either side of a normal interval of 95 %


class Estimate(NamedTuple):
    """A number with its error bar.

    Used as a plain number (by `float`, in array arithmetic, in a format) it is its `value`.
    Multiplied or divided by a number, or shifted by one, it stays an `Estimate`.

    Attributes:
        value: the point estimate.
        standard_error: standard deviation of `value` over the random draws; 0 if nothing was
            random, infinite if it is unknown.
        lower: lower end of the 95 % interval, including systematic errors where they are bounded.
        upper: upper end of the interval.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]

    __repr__ = short_repr
    # NumPy would take it for an array of four.
    __array_ufunc__ = None

    def __float__(self) -> float:
        """Return the value as a number."""
        return float(self.value)

    def __format__(self, spec: str) -> str:
        """Write the value as a number is written."""
        return format(float(self), spec) if spec else repr(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the value where NumPy asks for an array."""
        return np.array(self.value, dtype, copy=copy)

    def __jax_array__(self) -> Array:
        """Return the value where JAX asks for an array."""
        return jnp.asarray(self.value)

    # A tuple would be repeated by * and joined by +.
    def __mul__(self, factor: Any) -> "Estimate":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scale the number, its error and its interval."""
        ends = (factor * self.lower, factor * self.upper)
        return Estimate(
            factor * self.value,
            abs(factor) * self.standard_error,
            jnp.minimum(*ends),
            jnp.maximum(*ends),
        )

    __rmul__ = __mul__  # pyright: ignore[reportAssignmentType]

    def __truediv__(self, divisor: Any) -> "Estimate":
        """Scale by the inverse of `divisor`."""
        return self * (1 / divisor)

    def __add__(self, shift: Any) -> "Estimate":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shift the number and its interval."""
        ends = (self.lower + shift, self.upper + shift)
        return Estimate(self.value + shift, self.standard_error, *ends)

    __radd__ = __add__

    def __sub__(self, shift: Any) -> "Estimate":
        """Shift the number and its interval."""
        return self + -shift


def estimate_from_samples(samples: Float[Array, "n ..."]) -> Estimate:
    """Average independent samples over their first axis, with Student's t interval.

    The interval is mean ± t₀.₉₇₅(n-1) s/√n. One sample says nothing about its spread: its standard
    error is infinite, and its interval is the whole line.

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


def normal_interval(value: Float[Array, "..."], standard_error: Float[Array, "..."]) -> Estimate:
    """Put the normal interval around a value whose standard error is (almost) exactly known.

    >>> normal_interval(jnp.zeros(()), 1.0)
    Estimate(value=0, standard_error=1, lower=-1.96, upper=1.96)
    """
    value, standard_error = jnp.asarray(value), jnp.asarray(standard_error)
    half_width = NORMAL_QUANTILE * standard_error
    return Estimate(value, standard_error, value - half_width, value + half_width)


def positive_interval(
    value: Float[Array, "..."], standard_error: Float[Array, "..."], num_free: int | None = None
) -> Estimate:
    """Put an interval around a number that cannot be negative, such as a spread.

    The interval is that of the logarithm, value · exp(± q · standard_error/value), q the quantile
    of the normal distribution, or of Student's t with `num_free` degrees of freedom. It stays
    positive and is longer above, like the distribution of a measured spread.

    >>> positive_interval(jnp.ones(()), 0.5)
    Estimate(value=1, standard_error=0.5, lower=0.375311, upper=2.66446)
    """
    value, standard_error = jnp.asarray(value), jnp.asarray(standard_error)
    relative = jnp.where(value == 0, 0, standard_error / jnp.where(value == 0, 1, value))
    zero = jnp.zeros_like(value)
    logs = (
        normal_interval(zero, relative)
        if num_free is None
        else t_interval(zero, relative, num_free)
    )
    return Estimate(value, standard_error, value * jnp.exp(logs.lower), value * jnp.exp(logs.upper))


def unknown_error(value: Float[Array, "..."]) -> Estimate:
    """Wrap a number whose error is unknown: the interval is the whole line."""
    infinite = jnp.full_like(value, jnp.inf)
    return Estimate(value, infinite, -infinite, infinite)


def exact_estimate(value: Float[Array, "..."]) -> Estimate:
    """Wrap a number without error, so that exact and sampled results combine in the same way."""
    return Estimate(value, jnp.zeros_like(value), value, value)


def value_of(number: Any) -> Any:
    """Return the value of an `Estimate`, and any other number as it is."""
    return number.value if isinstance(number, Estimate) else number

"""Short texts of results: numbers, and arrays as far as they fit on a line."""

from typing import Any

import jax.core
import numpy as np

_MOST_SHOWN = 6


def short_text(value: Any) -> str:
    """Write a number, or an array as its type, shape and, where it is small, its entries.

    >>> short_text(np.float32(0.25)), short_text(np.arange(3)), short_text(np.zeros((9, 2)))
    ('0.25', '[0, 1, 2]', 'float64[9, 2]')
    """
    if not hasattr(value, "dtype"):
        return repr(value)
    known = not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)
    if not known or value.size > _MOST_SHOWN:
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return _entries(np.asarray(value).tolist())


def _entries(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_entries, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def short_repr(self: Any) -> str:
    """Write a result's fields with their numbers; for `__repr__`.

    >>> from typing import NamedTuple
    >>> class Point(NamedTuple):
    ...     x: float
    ...     y: float
    ...     __repr__ = short_repr
    >>> Point(np.float32(0.1), np.float32(2))
    Point(x=0.1, y=2)
    """
    texts = (f"{name}={short_text(getattr(self, name))}" for name in self._fields)
    return f"{type(self).__name__}({', '.join(texts)})"

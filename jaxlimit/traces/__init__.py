"""Traces and diagonals of a symmetric operator, from products alone.

`hutchinson` needs no memory beyond that of a product. `hutch_plus_plus` and `xtrace` take most of
the trace from a sketch of the operator's range and sample only the rest, which pays where few
eigenvalues carry most of ‖H‖_F. `xtrace` uses every product twice; prefer it. `diagonal` does the
same for each entry. All return their errors.

The sketching estimators are exact where the sketch holds the whole range. With `dim` products or
more they multiply the unit vectors instead, which is exact and costs no more.
"""

from jaxlimit.traces.estimators import (
    DIAGONAL_METHODS,
    DISTRIBUTIONS,
    diagonal,
    hutch_plus_plus,
    hutchinson,
    xtrace,
)

__all__ = [
    "DIAGONAL_METHODS",
    "DISTRIBUTIONS",
    "diagonal",
    "hutch_plus_plus",
    "hutchinson",
    "xtrace",
]

"""Traces and diagonals of a symmetric operator seen through products only.

`hutchinson` needs no memory beyond a product's. `hutch_plus_plus` and `xtrace` take most of the
trace from a sketch of the operator's range and sample only what the sketch leaves out, which pays
where few eigenvalues carry most of ‖H‖_F; `xtrace` uses every product twice and is the one to reach
for. `diagonal` does the same entry by entry. Each says its own error.

Those that sketch are exact where the sketch holds the whole range; with `dim` products or more they
read the diagonal off the unit vectors instead, which is exact and never dearer.
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

"""The Lanczos recurrence: a symmetric operator seen from one vector, as a tridiagonal matrix.

The recurrence is a pytree, `LanczosState`, that `start` makes, `extend` carries on by as many steps
as one likes, and `finish` reads out; `tridiagonalize` is the three in a row. Whatever goes wrong
numerically (an invariant subspace, a product that is not finite) ends the recurrence where it
stands and is told in the result; it never spreads NaN.
"""

from jaxlimit.lanczos._basis import STORES
from jaxlimit.lanczos.eigenpairs import Eigenpairs, extremal_eigenpairs
from jaxlimit.lanczos.persistence import load, save, with_room
from jaxlimit.lanczos.recurrence import extend, finish, start, tridiagonalize
from jaxlimit.lanczos.state import (
    FULL_DEPTH,
    NUM_LOCKED,
    REORTHOGONALIZE,
    WARM_UP,
    LanczosState,
    Tridiagonalization,
    check_basis,
    choose,
    num_rows,
)
from jaxlimit.lanczos.two_pass import RitzPairs, two_pass_eigenpairs

__all__ = [
    "FULL_DEPTH",
    "NUM_LOCKED",
    "REORTHOGONALIZE",
    "STORES",
    "WARM_UP",
    "Eigenpairs",
    "LanczosState",
    "RitzPairs",
    "Tridiagonalization",
    "check_basis",
    "choose",
    "extend",
    "extremal_eigenpairs",
    "finish",
    "load",
    "num_rows",
    "save",
    "start",
    "tridiagonalize",
    "two_pass_eigenpairs",
    "with_room",
]

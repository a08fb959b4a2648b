"""The Lanczos recurrence: a symmetric operator seen from one vector, as a tridiagonal matrix.

The recurrence is a pytree, `LanczosState`: `start` makes it, `extend` advances it by any number of
steps, and `finish` turns it into a result; `tridiagonalize` does all three. Numerical trouble (an
invariant subspace, a product that is not finite) ends the recurrence where it is and is recorded in
the result; NaN never spreads.
"""

import warnings
from typing import Any

from jaxlimit.lanczos import storage
from jaxlimit.lanczos._basis import STORES
from jaxlimit.lanczos.eigenpairs import extremal_eigenpairs
from jaxlimit.lanczos.pairs import Eigenpairs
from jaxlimit.lanczos.persistence import load, save, with_room
from jaxlimit.lanczos.recurrence import extend, finish, start, tridiagonalize
from jaxlimit.lanczos.state import LanczosState, Tridiagonalization
from jaxlimit.lanczos.storage import FULL_DEPTH, NUM_LOCKED, REORTHOGONALIZE, WARM_UP
from jaxlimit.lanczos.two_pass import two_pass_eigenpairs

__all__ = [
    "FULL_DEPTH",
    "NUM_LOCKED",
    "REORTHOGONALIZE",
    "STORES",
    "WARM_UP",
    "Eigenpairs",
    "LanczosState",
    "Tridiagonalization",
    "extend",
    "extremal_eigenpairs",
    "finish",
    "load",
    "save",
    "start",
    "tridiagonalize",
    "two_pass_eigenpairs",
    "with_room",
]

_REMOVED = {
    "RitzPairs": (Eigenpairs, "Eigenpairs"),
    "check_basis": (storage.check_basis, "nothing: it is checked at every start"),
    "choose": (storage.choose, 'reorthogonalize="auto"'),
    "num_rows": (storage.num_rows, "planning.lanczos_bytes"),
}


def __getattr__(name: str) -> Any:
    if name not in _REMOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value, instead = _REMOVED[name]
    warnings.warn(
        f"lanczos.{name} will be gone in the next version; in its place use {instead}",
        DeprecationWarning,
        stacklevel=2,
    )
    return value

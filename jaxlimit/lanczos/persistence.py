"""A recurrence beyond its first plan, and beyond the process that began it."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlimit import _basis
from jaxlimit._checks import check_count
from jaxlimit.lanczos.state import LanczosState, check_basis, num_rows

FORMAT_VERSION = 1


def with_room(
    state: LanczosState, num_steps: int, *, reorthogonalize: str = "full"
) -> LanczosState:
    """Give a recurrence room for `num_steps` steps, so that it can go on beyond its first plan.

    Args:
        state: from `start`, `extend` or `load`, with its own room or less used up.
        num_steps: the new greatest depth, clamped to D; no room is taken away.
        reorthogonalize: as it was for `start`.

    Returns:
        The same recurrence; `extend` takes it to the same bits as if it had begun with this room.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.lanczos import start
    >>> state = start(jnp.ones(3), num_steps=1, reorthogonalize="none")
    >>> with_room(state, 2, reorthogonalize="none").diagonal.shape
    (2,)
    """
    room = state.diagonal.shape[0]
    added = max(min(check_count("num_steps", num_steps), state.current.size) - room, 0)
    basis = state.basis
    if basis is not None:
        rows = [num_rows(depth, reorthogonalize) for depth in (room, room + added)]
        # Rows for locked vectors, which come last, hold none before a whole warm-up.
        more = added if reorthogonalize == "none" else rows[1] - rows[0]
        store = "pinned_host" if _basis.is_on_host(basis) else "device"
        check_basis(basis.shape[0] + more, state.current.size, basis.dtype, store)
        basis = _basis.pad(basis, more)
    return state._replace(
        diagonal=jnp.pad(state.diagonal, (0, added)),
        off_diagonal=jnp.pad(state.off_diagonal, (0, added)),
        basis=basis,
    )


def save(path: Any, state: LanczosState) -> None:
    """Write a recurrence as a versioned npz, to go on with another day.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.
    """
    fields: dict[str, Any] = {
        name: np.asarray(value) for name, value in state._asdict().items() if value is not None
    }
    fields["on_host"] = np.asarray(state.basis is not None and _basis.is_on_host(state.basis))
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, version=FORMAT_VERSION, **fields)
    os.replace(temporary, path)


def load(path: Any) -> LanczosState:
    """Read a recurrence that `save` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no recurrence, or of another version.
    """
    with np.load(path) as file:
        version = file.get("version", "none")
        if int(file.get("version", -1)) != FORMAT_VERSION or "failed_step" not in file:
            raise ValueError(
                f"{path} must be a Lanczos recurrence of format {FORMAT_VERSION}, got {version}"
            )
        fields: dict[str, Any] = {"basis": None} | {
            name: file[name] if name == "basis" else jnp.asarray(file[name])
            for name in file.files
            if name in LanczosState._fields
        }
        if fields["basis"] is not None:
            fields["basis"] = _basis.place(fields["basis"], on_host=bool(file["on_host"]))
    return LanczosState(**fields)

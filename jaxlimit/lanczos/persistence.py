"""A recurrence beyond its first plan, and beyond the process that began it."""

from typing import Any

import jax.numpy as jnp

from jaxlimit._core import files
from jaxlimit._core.checks import check_count, is_concrete
from jaxlimit.lanczos import _basis
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
    # On a mesh `current` is longer than D.
    dim = int(state.dim) if is_concrete(state.dim) else state.current.size
    added = max(min(check_count("num_steps", num_steps), dim) - room, 0)
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

    Args:
        path: of the file, under just this name.
        state: from `start` or `extend`.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.

    >>> import pathlib, tempfile, jax.numpy as jnp
    >>> from jaxlimit.lanczos import extend, start
    >>> state = extend(lambda v: 2 * v, start(jnp.ones(3), num_steps=2), num_steps=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "state.npz"
    ...     save(path, state)
    ...     load(path).step
    Array(1, dtype=int32)
    """
    fields: dict[str, Any] = {
        name: value for name, value in state._asdict().items() if value is not None
    }
    on_host = state.basis is not None and _basis.is_on_host(state.basis)
    files.save(path, FORMAT_VERSION, on_host=on_host, **fields)


def load(path: Any) -> LanczosState:
    """Read a recurrence that `save` wrote.

    Args:
        path: of the file.

    Returns:
        The state, its basis where it was kept: on the device or in the host's memory.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no recurrence, of another version, or cut short.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "state.npz"
    ...     _ = path.write_bytes(b"PK")
    ...     load(path)
    Traceback (most recent call last):
    ValueError: ...state.npz must be a Lanczos recurrence of format 1, got a file that ...
    """
    needed = {"on_host", *LanczosState._fields} - {"basis"}
    found = files.load(path, "a Lanczos recurrence", FORMAT_VERSION, needed)
    basis, on_host = found.get("basis"), bool(found["on_host"])
    fields = {name: jnp.asarray(found[name]) for name in needed - {"on_host"}}
    return LanczosState(
        **fields, basis=None if basis is None else _basis.place(basis, on_host=on_host)
    )

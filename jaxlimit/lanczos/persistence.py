"""Give a recurrence more room, and carry it from one process to another."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlimit._core import files
from jaxlimit._core.checks import check_count, check_type, is_concrete
from jaxlimit.lanczos import _basis
from jaxlimit.lanczos.recurrence import check_mode
from jaxlimit.lanczos.state import ARRAYS, LanczosState
from jaxlimit.lanczos.storage import REORTHOGONALIZE, check_basis, num_rows

FORMAT_VERSION = 2  # 1 did not say which recurrence it was


def with_room(
    state: LanczosState, num_steps: int, *, reorthogonalize: str | None = None
) -> LanczosState:
    """Give a recurrence room for more steps than it was started with.

    Args:
        state: from `start`, `extend` or `load`.
        num_steps: the new greatest depth, clamped to D; a smaller one than before changes nothing.
        reorthogonalize: None, or the mode of the state.

    Returns:
        The same recurrence; `extend` gives the same bits as if it had started with this room.

    Raises:
        ValueError: if `num_steps` < 1, or `reorthogonalize` is not that of the state.
        MemoryError: if the basis is larger than the device's memory.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.lanczos import start
    >>> state = start(jnp.ones(3), num_steps=1, reorthogonalize="none")
    >>> with_room(state, 2).diagonal.shape
    (2,)
    """
    check_mode(state, reorthogonalize)
    room, mode = state.diagonal.shape[0], state.reorthogonalize
    # On a mesh `current` is longer than D.
    dim = int(state.dim) if is_concrete(state.dim) else state.current.size
    added = max(min(check_count("num_steps", num_steps), dim) - room, 0)
    basis = state.basis
    if basis is not None:
        rows = [num_rows(depth, mode) for depth in (room, room + added)]
        # Rows for locked vectors, which come last, hold none before a whole warm-up.
        more = added if mode == "none" else rows[1] - rows[0]
        check_basis(basis.shape[0] + more, state.current.size, state.current.dtype, state.store)
        basis = _basis.pad(basis, more)
    return replace(
        state,
        diagonal=jnp.pad(state.diagonal, (0, added)),
        off_diagonal=jnp.pad(state.off_diagonal, (0, added)),
        basis=basis,
    )


def save(path: Any, state: LanczosState) -> None:
    """Write a recurrence as a versioned npz, to be continued later.

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
    check_type("state", state, LanczosState)
    arrays = {name: getattr(state, name) for name in ARRAYS}
    fields: dict[str, Any] = {name: value for name, value in arrays.items() if value is not None}
    settings = {"reorthogonalize": state.reorthogonalize, "store": state.store}
    files.save(path, FORMAT_VERSION, **settings, **fields)


def load(path: Any) -> LanczosState:
    """Read a recurrence that `save` wrote.

    Args:
        path: of the file.

    Returns:
        The state, its basis where it was kept: on the device or in the host's memory. A file of
        format 1 does not say how it was reorthogonalised. Then its basis decides: with as many rows
        as steps it counts as "full".

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no recurrence, of another version, cut short, or inconsistent.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "state.npz"
    ...     _ = path.write_bytes(b"PK")
    ...     load(path)
    Traceback (most recent call last):
    ValueError: ...state.npz must be a Lanczos recurrence of format 2, got a file that ...
    """
    arrays = set(ARRAYS) - {"basis"}
    what = "a Lanczos recurrence"
    try:
        found = files.load(path, what, 1, arrays | {"on_host"})
        settings = _of_first_format(found)
    except ValueError:
        found = files.load(path, what, FORMAT_VERSION, arrays | {"reorthogonalize", "store"})
        settings = {name: str(found[name]) for name in ("reorthogonalize", "store")}
    _check(path, found, **settings)
    fields: dict[str, Any] = {name: jnp.asarray(found[name]) for name in arrays} | settings
    basis = found.get("basis")
    if basis is not None:
        basis = _basis.place(basis, on_host=settings["store"] == "pinned_host")
    return LanczosState(**fields, basis=basis)


def _of_first_format(found: dict[str, Any]) -> dict[str, str]:
    """Infer the settings of a recurrence whose file lacks them from the basis that it kept."""
    basis, room = found.get("basis"), found["diagonal"].size
    if basis is None:
        return {"reorthogonalize": "none", "store": "device"}
    narrow = "bfloat16" if basis.dtype == np.uint16 else "device"
    return {
        "reorthogonalize": "full" if len(basis) == room else "selective",
        "store": "pinned_host" if bool(found["on_host"]) else narrow,
    }


def _check(path: Any, found: dict[str, Any], reorthogonalize: str, store: str) -> None:
    """Raise `ValueError` unless what was read fits together."""
    size, room = found["current"].size, found["diagonal"].size
    basis, mode = found.get("basis"), reorthogonalize
    rows = num_rows(room, mode) if mode in REORTHOGONALIZE else 0
    if mode == "none" and basis is not None:
        rows = room
    counts = {name: int(found[name]) for name in ("step", "num_valid", "failed_step", "dim")}
    numbers = (found[name] for name in ("previous", "current", "diagonal", "off_diagonal"))
    wrong = {
        "reorthogonalize": mode not in REORTHOGONALIZE,
        "store": store not in _basis.STORES,
        "previous": found["previous"].shape != (size,),
        "off_diagonal": found["off_diagonal"].shape != (room,) or (found["off_diagonal"] < 0).any(),
        "basis": (None if basis is None else basis.shape) != ((rows, size) if rows else None),
        "dim": not 1 <= counts["dim"] <= size,
        "step": not 0 <= counts["num_valid"] <= counts["step"] <= room,
        "failed_step": not -1 <= counts["failed_step"] < room,
        "recurrence": not all(np.isfinite(values).all() for values in numbers),
    }
    for name in [name for name, holds in wrong.items() if holds][:1]:
        raise ValueError(f"{path} must be a Lanczos recurrence, got one whose {name} is damaged")

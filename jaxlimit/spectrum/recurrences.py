"""The recurrences behind a measure: started from probes, kept on disk, joined into a measure."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._core import sharding
from jaxlimit._core.checkpoints import Checkpoints
from jaxlimit._core.checks import check_choice, check_count, check_key
from jaxlimit._core.operator import Operator, check_dtype, prepare
from jaxlimit._core.scale import norm
from jaxlimit.lanczos import LanczosState, storage
from jaxlimit.lanczos.state import ARRAYS
from jaxlimit.spectrum.measure import SpectralMeasure, measure_from


def probe(key: PRNGKeyArray, dim: int, dtype: Any = jnp.float32) -> Float[Array, "dim"]:
    """Draw a vector uniformly from the unit sphere.

    Args:
        key: random key.
        dim: D.
        dtype: real floating type of the vector.

    Returns:
        The vector [D].

    Raises:
        TypeError: if `key` is no typed key, `dim` is no static int, or `dtype` not real floating.
        ValueError: if `dim` < 1.

    >>> import jax, jax.numpy as jnp
    >>> jnp.linalg.norm(probe(jax.random.key(0), 100)).round(4)
    Array(1., dtype=float32)
    """
    check_key("key", key)
    vector = jax.random.normal(key, (check_count("dim", dim),), check_dtype(dtype))
    return vector / norm(vector).astype(dtype)


class Run(NamedTuple):
    """The checked settings of a run of random probes.

    Attributes:
        operator: H.
        num_steps: steps a probe, at most D.
        reorthogonalize: one of `lanczos.REORTHOGONALIZE`.
    """

    operator: Operator
    num_steps: int
    reorthogonalize: str


def plan_run(
    matvec: Any,
    dim: int | None,
    dtype: Any,
    mesh: Mesh | None,
    *,
    num_steps: int,
    num_probes: int,
    reorthogonalize: str,
    store: str = "device",
    at_once: int | None = None,
) -> Run:
    """Check the arguments of `spectral_measure`, and that the bases of `at_once` probes fit."""
    check_count("num_probes", num_probes)
    operator = prepare(matvec, dim, dtype, mesh)
    num_steps = min(check_count("num_steps", num_steps), operator.dim)
    mode = storage.choose(reorthogonalize, num_steps)
    check_choice("store", store, lanczos.STORES)
    rows = (num_probes if at_once is None else at_once) * storage.num_rows(num_steps, mode)
    shard = sharding.shard_size(operator.dim, mesh)
    storage.check_basis(rows, shard, operator.dtype or jnp.dtype(jnp.float32), store)
    return Run(operator, num_steps, mode)


def carry(matvec: Any, state: LanczosState, goal: int, chunk: int) -> LanczosState:
    """Advance a recurrence to the depth `goal` or a failed product, `chunk` steps a program."""
    while (left := goal - int(state.step)) > 0 and int(state.failed_step) < 0:
        state = lanczos.extend(matvec, state, num_steps=min(chunk, left))
    return state


def measure_of(
    states: list[LanczosState], depth: int, dim: int, mesh: Mesh | None = None
) -> SpectralMeasure:
    """Turn recurrences into a measure of their first `depth` steps."""
    long = dict.fromkeys(("previous", "current", "basis"))
    parts = sharding.local([replace(state, **long) for state in states], mesh)
    s = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    num_valid = jnp.minimum(s.num_valid, depth)
    last = jnp.maximum(num_valid - 1, 0)[:, None]
    return measure_from(
        lanczos.Tridiagonalization(
            diagonal=s.diagonal[:, :depth],
            off_diagonal=s.off_diagonal[:, : depth - 1],
            basis=None,
            residual_norm=jnp.take_along_axis(s.off_diagonal, last, axis=1)[:, 0],
            num_valid=num_valid,
            failed_step=s.failed_step,
        ),
        dim=dim,
    )


# Older checkpoints lack it, and other versions of JAX give other digests.
OF_OPERATOR = "operator"


def identity(key: PRNGKeyArray, states: list[LanczosState], operator: Operator) -> dict:
    """Collect what identifies a run."""
    state = states[0]
    return {
        "dim": int(state.dim),
        "padded_dim": state.current.size,
        "dtype": str(state.current.dtype),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_steps": state.diagonal.size,
        "num_probes": len(states),
        "reorthogonalize": state.reorthogonalize,
        "basis": None if state.basis is None else str(state.basis.dtype),
        OF_OPERATOR: operator.content(),
    }


def arrays(states: list[LanczosState]) -> dict[str, dict]:
    """Return the states as the dictionaries that a checkpoint holds."""
    return {
        str(i): {name: getattr(state, name) for name in ARRAYS if getattr(state, name) is not None}
        for i, state in enumerate(states)
    }


def resume(checkpoints: Checkpoints, states: list[LanczosState], matvec: Any) -> list[LanczosState]:
    """Return the states of the newest checkpoint, `states` if there is none.

    Raises:
        ValueError: if it is that of another run, or of another operator; says what differs.
    """
    found = checkpoints.restore(lambda _: arrays(states))
    if found is None:
        return states
    resumed = [replace(state, **found[str(i)]) for i, state in enumerate(states)]
    # One step needs no basis to be orthogonal to.
    first = lanczos.extend(
        matvec, replace(states[0], basis=None, reorthogonalize="none"), num_steps=1
    )
    now, then = float(first.off_diagonal[0]), float(resumed[0].off_diagonal[0])
    if not abs(now - then) <= 1e-3 * then:
        raise ValueError(
            f"checkpoint_dir {checkpoints.directory} holds the recurrence of another operator: "
            f"its first step gave {then:.6g}, that of this one gives {now:.6g}"
        )
    return resumed

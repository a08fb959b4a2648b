"""Random probes: from an operator to the measure that Lanczos sees of it."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit import _mesh, lanczos
from jaxlimit._checkpoints import Checkpoints
from jaxlimit._checks import check_count
from jaxlimit._matvec import prepare
from jaxlimit._mesh import takes_mesh
from jaxlimit.spectrum.measure import SpectralMeasure, measure_from


def probe(key: PRNGKeyArray, dim: int, dtype: Any = jnp.float32) -> Float[Array, "dim"]:
    """Draw a vector uniformly from the unit sphere."""
    vector = jax.random.normal(key, (dim,), dtype)
    return vector / jnp.linalg.norm(vector)


@takes_mesh
def spectral_measure(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    vectorize: bool = False,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> SpectralMeasure:
    """Estimate the spectral distribution of a symmetric operator by stochastic Lanczos quadrature.

    Costs num_probes · num_steps products; memory of 48 vectors, or of num_steps reorthogonalised
    fully, or of three if not at all.

    Args:
        matvec: H, a symmetric `Array[D] -> Array[D]`.
        key: random key of the probes.
        dim: D.
        num_steps: Lanczos steps a probe, at most D.
        num_probes: independent probes.
        reorthogonalize: "selective", "full" or "none", see `lanczos.tridiagonalize`; without it
            the bracket of `trace_bracket` closes at twice the depth or more.
        vectorize: run all probes side by side by `vmap` instead of one after the other.
        dtype: floating type of the probes.
        mesh: devices that each keep a part of every vector, as for `lanczos.tridiagonalize`; the
            probes then run one after the other.

    Returns:
        A `SpectralMeasure` with one row a probe.

    Raises:
        TypeError: if a count is no static int.
        ValueError: if a count is below 1, or `matvec` does not map [D] to [D].
        FloatingPointError: if a product was not finite; names the probe and the step.

    >>> import jax, jax.numpy as jnp
    >>> measure = spectral_measure(
    ...     lambda v: jnp.arange(8.0) * v, jax.random.key(0), dim=8, num_steps=8,
    ...     reorthogonalize="full")
    >>> jnp.round(measure.nodes[0])
    Array([0., 1., 2., 3., 4., 5., 6., 7.], dtype=float32)

    Golub, Meurant (2010), chapter 7; Ubaru, Chen, Saad (2017).
    """
    check_count("num_probes", num_probes)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    if mesh is not None:
        settings = {"num_probes": num_probes, "reorthogonalize": reorthogonalize, "dtype": dtype}
        return run_probes(
            matvec, key, dim=dim, num_steps=num_steps, chunk=num_steps, mesh=mesh, **settings
        )
    keys = jax.random.split(key, num_probes)
    settings = (dim, num_steps, reorthogonalize, dtype)
    return measure_from(_run_probes(matvec, keys, vectorize, *settings), dim=dim)


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _run_probes(matvec, keys, vectorize, dim, num_steps, reorthogonalize, dtype):
    def one(key):
        result = lanczos.tridiagonalize(
            matvec, probe(key, dim, dtype), num_steps=num_steps, reorthogonalize=reorthogonalize
        )
        return result._replace(basis=None)

    return jax.vmap(one)(keys) if vectorize else jax.lax.map(one, keys)


@takes_mesh
def run_probes(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    chunk: int = 32,
    stop: Callable[[SpectralMeasure], bool] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    stage: str = "spectrum",
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    checkpoint_dir: Any = None,
    checkpoint_every: int = 128,
) -> SpectralMeasure:
    """Run `spectral_measure` in chunks, so that it can be watched, and stopped when good enough.

    Costs the same products; memory of 48 vectors a probe, or as `spectral_measure` has it.

    Args:
        matvec: as for `spectral_measure`.
        key: as for `spectral_measure`; the same key gives the same measure.
        dim: D.
        num_steps: steps a probe, at most.
        num_probes: independent probes, carried on in turn.
        reorthogonalize: as for `spectral_measure`.
        chunk: steps between two looks.
        stop: called with the measure so far, once the depth has doubled since the last look and
            at least 4 chunks are done; True ends the run.
        on_progress: called as `on_progress(stage, steps_done, steps)` after every chunk.
        stage: a name for `on_progress`.
        dtype: floating type of the probes.
        mesh: as for `spectral_measure`.
        checkpoint_dir: where this run, and no other, keeps its newest checkpoint: a run that is
            asked for again goes on from it, and ends with the same bits on the same machine.
        checkpoint_every: steps a probe between checkpoints, in whole chunks; the last makes one.

    Returns:
        A `SpectralMeasure` of the depth reached.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`, or if the checkpoint is that of another run; says what
            differs.
        FloatingPointError: as `spectral_measure`.
        OSError: if a checkpoint cannot be written; the one before it stays whole.
    """
    check_count("checkpoint_every", checkpoint_every)
    check_count("num_probes", num_probes)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    states = [
        lanczos.start(
            probe(k, dim, dtype),
            num_steps=num_steps,
            reorthogonalize=reorthogonalize,
            mesh=mesh,
        )
        for k in jax.random.split(key, num_probes)
    ]
    checkpoints = Checkpoints(
        checkpoint_dir,
        checkpoint_every,
        lambda: _identity(matvec, key, states, reorthogonalize),
        unit="step",
    )
    with contextlib.closing(checkpoints):
        states = _resume(checkpoints, states, matvec)
        done, looked = checkpoints.saved, 2 * chunk
        while 2 * looked < done:
            looked *= 2
        while done < num_steps:
            if stop is not None and done >= 2 * looked:
                looked = done
                if stop(_measure_of_states(states, done, dim, mesh)):
                    break
            take = min(chunk, num_steps - done)
            for i, state in enumerate(states):
                states[i] = lanczos.extend(
                    matvec, state, num_steps=take, reorthogonalize=reorthogonalize
                )
                if on_progress is not None:
                    jax.block_until_ready(states[i].current)
                    on_progress(stage, done * num_probes + (i + 1) * take, num_steps * num_probes)
            done += take
            checkpoints.save(done, _arrays(states), last=done == num_steps)
    return _measure_of_states(states, done, dim, mesh)


def _identity(matvec: Any, key: PRNGKeyArray, states: list, reorthogonalize: str) -> dict:
    state = states[0]
    return {
        "dim": int(state.dim),
        "padded_dim": state.current.size,
        "dtype": str(state.current.dtype),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_steps": state.diagonal.size,
        "num_probes": len(states),
        "reorthogonalize": reorthogonalize,
    }


def _arrays(states: list) -> dict[str, dict]:
    """Return the states as the dictionaries that a checkpoint holds."""
    return {
        str(i): {name: value for name, value in state._asdict().items() if value is not None}
        for i, state in enumerate(states)
    }


def _resume(checkpoints: Checkpoints, states: list, matvec: Any) -> list:
    found = checkpoints.restore(lambda _: _arrays(states))
    if found is None:
        return states
    resumed = [state._replace(**found[str(i)]) for i, state in enumerate(states)]
    first, known = (
        lanczos.extend(matvec, states[0], num_steps=1, reorthogonalize="none"),
        resumed[0],
    )
    now, then = float(first.off_diagonal[0]), float(known.off_diagonal[0])
    if not abs(now - then) <= 1e-3 * then:
        raise ValueError(
            f"checkpoint_dir {checkpoints.directory} holds the recurrence of another operator: "
            f"its first step gave {then:.6g}, that of this one gives {now:.6g}"
        )
    return resumed


def _measure_of_states(states: list, depth: int, dim: int, mesh: Mesh | None) -> SpectralMeasure:
    parts = [lanczos.finish(state)._replace(basis=None) for state in states]
    parts = _mesh.gather(parts, mesh)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    return measure_from(
        stacked._replace(
            diagonal=stacked.diagonal[:, :depth], off_diagonal=stacked.off_diagonal[:, : depth - 1]
        ),
        dim=dim,
    )

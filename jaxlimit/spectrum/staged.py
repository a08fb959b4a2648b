"""Runs that are looked at as they go: stopped when good enough, kept on disk, carried on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._core.checkpoints import Checkpoints, check_directory
from jaxlimit._core.checks import check_count, check_key, check_range, check_type
from jaxlimit._core.estimate import NORMAL_QUANTILE, Estimate
from jaxlimit._core.memory import catching_refusals
from jaxlimit._core.operator import takes_operator
from jaxlimit.lanczos import LanczosState
from jaxlimit.spectrum.functions import trace_bracket
from jaxlimit.spectrum.measure import SpectralMeasure, check_steps
from jaxlimit.spectrum.recurrences import (
    arrays,
    carry,
    identity,
    measure_of,
    plan_run,
    probe,
    resume,
)

CHUNK = 32
FIRST_DEPTH = 64


@takes_operator
def run_probes(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int | None = None,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "auto",
    store: str = "device",
    states: tuple[LanczosState, ...] = (),
    chunk: int = CHUNK,
    stop: Callable[[SpectralMeasure], bool] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    stage: str = "spectrum",
    dtype: Any = None,
    mesh: Mesh | None = None,
    checkpoint_dir: Any = None,
    checkpoint_every: int = 128,
) -> SpectralMeasure:
    """Run `spectral_measure` in chunks, so that it can be watched, stopped and carried on.

    Costs the same products; memory as `spectral_measure`, for all probes together.

    Args:
        matvec: see `spectral_measure`.
        key: see `spectral_measure`; the same key gives the same measure.
        dim: D; an `Operator` knows it.
        num_steps: steps a probe, at most.
        num_probes: independent probes, carried on in turn.
        reorthogonalize: see `spectral_measure`.
        store: see `spectral_measure`.
        states: recurrences to go on from, one a probe, those of a `DeviceMemoryError`; they keep
            their own store.
        chunk: steps between two looks.
        stop: called with the measure so far, once the depth has doubled since the last look and
            at least 4 chunks are done; True ends the run.
        on_progress: called as `on_progress(stage, steps_done, steps)` after every chunk.
        stage: a name for `on_progress`.
        dtype: floating type of the probes; float32 where `matvec` does not know.
        mesh: see `spectral_measure`.
        checkpoint_dir: where this run, and no other, keeps its newest checkpoint: a run that is
            asked for again goes on from it, and ends with the same bits on the same machine.
        checkpoint_every: steps a probe between checkpoints, in whole chunks; the last makes one.

    Returns:
        A `SpectralMeasure` of the depth reached.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`, or if the checkpoint is that of another run; says what
            differs.
        FloatingPointError: as `spectral_measure`, within a chunk of the failure; the checkpoint is
            then one from before it, so the run can go on once the operator is mended.
        OSError: if a checkpoint cannot be written; the one before it stays whole.
        MemoryError: as `spectral_measure`; a `DeviceMemoryError` if the device runs out of memory
            on the way, which carries the recurrences as they were before.

    >>> import jax, jax.numpy as jnp
    >>> measure = run_probes(
    ...     lambda v: jnp.arange(64.0) * v, jax.random.key(0), dim=64, num_steps=64, chunk=4,
    ...     stop=lambda measure: measure.nodes.max() > 62.9)
    >>> measure.nodes.shape[1] in (16, 32, 64)
    True
    """
    check_key("key", key)
    check_count("chunk", chunk)
    check_count("checkpoint_every", checkpoint_every)
    check_directory(checkpoint_dir)
    check_callback("stop", stop)
    check_callback("on_progress", on_progress)
    asked = {"num_steps": num_steps, "num_probes": num_probes, "reorthogonalize": reorthogonalize}
    operator, num_steps, mode = plan_run(matvec, dim, dtype, mesh, store=store, **asked)
    dim, dtype = operator.dim, operator.dtype
    for state in states:
        check_type("states", state, LanczosState)
    kept: dict[str, Any] = {"reorthogonalize": mode, "store": store, "mesh": mesh}
    recurrences = list(states) or [
        lanczos.start(probe(k, dim, dtype), num_steps=num_steps, **kept)
        for k in jax.random.split(key, num_probes)
    ]
    with Checkpoints(
        checkpoint_dir,
        checkpoint_every,
        lambda: identity(key, recurrences),
        unit="step",
    ) as checkpoints:
        if not states:
            recurrences = resume(checkpoints, recurrences, operator)
        done, looked = min(int(state.step) for state in recurrences), 2 * chunk
        while 2 * looked < done:
            looked *= 2
        while done < num_steps:
            if stop is not None and done >= 2 * looked:
                looked = done
                if stop(measure_of(recurrences, done, dim, mesh)):
                    break
            goal = min(done + chunk, num_steps)
            for i, state in enumerate(recurrences):
                if int(state.step) >= goal:
                    continue
                with catching_refusals(f"at step {done} of probe {i}", recurrences):
                    following = carry(operator, state, goal, chunk)
                    recurrences[i] = jax.block_until_ready(following)
                check_steps(recurrences[i].failed_step, i)
                if on_progress is not None:
                    steps = done * num_probes + (i + 1) * (goal - done)
                    on_progress(stage, steps, num_steps * num_probes)
            done = goal
            checkpoints.save(done, arrays(recurrences), last=done == num_steps)
    return measure_of(recurrences, done, dim, mesh)


def check_callback(name: str, function: Any) -> None:
    """Raise `TypeError` unless `function` is one, or None."""
    if function is not None and not callable(function):
        raise TypeError(f"{name} must be a function or None, got {function!r}")


class TraceRun(NamedTuple):
    """A trace as far as it was taken.

    Attributes:
        estimate: the trace with its interval.
        measure: what it was read off, good for any other function too.
        converged: whether the interval is within the tolerance.
    """

    estimate: Estimate
    measure: SpectralMeasure
    converged: bool


@takes_operator
def trace_within(
    matvec: Any,
    key: PRNGKeyArray,
    f: Callable[[Array], Array],
    *,
    dim: int | None = None,
    tolerance: float,
    num_steps: int = 1024,
    num_probes: int = 8,
    reorthogonalize: str = "auto",
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> TraceRun:
    """Run until the interval of `trace_bracket` is as narrow as asked, or say how far it got.

    Starts with one probe of 64 steps. Each stage doubles what makes the interval wide: the depth,
    where the bracket is wider than the random error, else the probes. Costs the products that it
    takes, num_probes · num_steps at most; memory as `run_probes`.

    Args:
        matvec: H, symmetric: an `Operator` or `Array[D] -> Array[D]`.
        key: random key of the probes.
        f: see `trace_bracket`.
        dim: D; an `Operator` knows it.
        tolerance: greatest width of the interval, as a share of the value.
        num_steps: steps a probe, at most.
        num_probes: probes, at most.
        reorthogonalize: see `spectral_measure`.
        dtype: floating type of the probes; float32 where `matvec` does not know.
        mesh: see `spectral_measure`.

    Returns:
        A `TraceRun`.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`, and if `tolerance` is negative.
        FloatingPointError: as `spectral_measure`.
        MemoryError: as `spectral_measure`, for the greatest number of probes.

    >>> import jax, jax.numpy as jnp
    >>> eigenvalues = jnp.concatenate([jnp.zeros(900), jnp.linspace(-1, 5, 100)])
    >>> f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.1)
    >>> run = trace_within(
    ...     lambda v: eigenvalues * v, jax.random.key(0), f, dim=1000, tolerance=0.3)
    >>> run.converged
    True
    """
    check_key("key", key)
    check_range("tolerance", tolerance, 0)
    if not callable(f):
        raise TypeError(f"f must be a function of eigenvalues, got {type(f).__name__}")
    asked = {"num_steps": num_steps, "num_probes": num_probes, "reorthogonalize": reorthogonalize}
    operator, num_steps, mode = plan_run(matvec, dim, dtype, mesh, **asked)
    dim, dtype = operator.dim, operator.dtype
    kept: dict[str, Any] = {"reorthogonalize": mode, "mesh": mesh}
    keys, states = jax.random.split(key, num_probes), []
    depth, count = min(FIRST_DEPTH, num_steps), 1
    while True:
        states += [
            lanczos.start(probe(k, dim, dtype), num_steps=num_steps, **kept)
            for k in keys[len(states) : count]
        ]
        states = [carry(operator, state, depth, CHUNK) for state in states]
        measure = measure_of(states, depth, dim, mesh)
        estimate = trace_bracket(measure, f)
        width = float(estimate.upper - estimate.lower)
        converged = width <= tolerance * abs(float(estimate.value))
        if converged or (depth == num_steps and count == num_probes):
            return TraceRun(estimate, measure, converged)
        random = 2 * NORMAL_QUANTILE * float(estimate.standard_error)
        if count == num_probes or (depth < num_steps and width > 2 * random):
            depth = min(2 * depth, num_steps)
        else:
            count = min(2 * count, num_probes)

"""Runs that are looked at as they go: stopped when good enough, kept on disk, carried on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._checks import check_count, check_range
from jaxlimit._estimate import Estimate
from jaxlimit._matvec import prepare
from jaxlimit._memory import catching_refusals
from jaxlimit.lanczos import LanczosState
from jaxlimit.spectrum.functions import trace_bracket
from jaxlimit.spectrum.measure import SpectralMeasure, measure_from
from jaxlimit.spectrum.probes import probe

CHUNK = 32
FIRST_DEPTH = 64


def run_probes(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    store: str = "device",
    states: tuple[LanczosState, ...] = (),
    chunk: int = CHUNK,
    stop: Callable[[SpectralMeasure], bool] | None = None,
    checkpoint: Any = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    stage: str = "spectrum",
    dtype: Any = jnp.float32,
) -> SpectralMeasure:
    """Run `spectral_measure` in chunks, so that it can be watched, stopped and carried on.

    Costs the same products; memory of 48 vectors a probe, or as `spectral_measure` has it.

    Args:
        matvec: as for `spectral_measure`.
        key: as for `spectral_measure`; the same key gives the same measure.
        dim: D.
        num_steps: steps a probe, at most.
        num_probes: independent probes, carried on in turn.
        reorthogonalize: as for `spectral_measure`.
        store: as for `spectral_measure`.
        states: recurrences to go on from, one a probe, those of a `DeviceMemoryError`; they keep
            their own store.
        chunk: steps between two looks.
        stop: called with the measure so far, once the depth has doubled since the last look and
            at least 4 chunks are done; True ends the run.
        checkpoint: a folder, where the recurrences are written after every chunk. Those found
            there are carried on, also to a depth or a number of probes beyond the first plan; they
            must be of the same operator, key and settings.
        on_progress: called as `on_progress(stage, steps_done, steps)` after every chunk.
        stage: a name for `on_progress`.
        dtype: floating type of the probes.

    Returns:
        A `SpectralMeasure` of the depth reached.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`, and if `checkpoint` holds recurrences of another size.
        FloatingPointError: as `spectral_measure`.
        MemoryError: as `spectral_measure`; a `DeviceMemoryError` if the device runs out of memory
            on the way, which carries the recurrences as they were before.
    """
    check_count("num_probes", num_probes)
    check_count("chunk", chunk)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    rows = num_probes * lanczos.num_rows(num_steps, reorthogonalize)
    lanczos.check_basis(rows, dim, dtype, store)
    files = [Path(checkpoint) / f"probe-{i}.npz" if checkpoint else None for i in range(num_probes)]
    recurrences = list(states) or [
        _begin(k, file, dim, num_steps, reorthogonalize, dtype, store)
        for k, file in zip(jax.random.split(key, num_probes), files, strict=True)
    ]
    done = min(num_steps, *(int(state.step) for state in recurrences))
    looked = max(2 * chunk, done // 2)
    while done < num_steps:
        goal = min(done + chunk, num_steps)
        for i, state in enumerate(recurrences):
            with catching_refusals(f"at step {done} of probe {i}", recurrences):
                following = _carry(matvec, state, goal, chunk, reorthogonalize)
                recurrences[i] = jax.block_until_ready(following)
            if files[i] is not None:
                lanczos.save(files[i], recurrences[i])
            if on_progress is not None:
                steps = done * num_probes + (i + 1) * (goal - done)
                on_progress(stage, steps, num_steps * num_probes)
        done = goal
        if stop is not None and (done >= 2 * looked or done == num_steps):
            looked = done
            if stop(_measure_of_states(recurrences, done, dim)):
                break
    return _measure_of_states(recurrences, done, dim)


def _begin(key, file, dim, num_steps, reorthogonalize, dtype, store="device") -> LanczosState:
    """Read a recurrence from its file, if that is there, or start it."""
    if file is None or not file.exists():
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return lanczos.start(
            probe(key, dim, dtype),
            num_steps=num_steps,
            reorthogonalize=reorthogonalize,
            store=store,
        )
    state = lanczos.load(file)
    if state.current.shape != (dim,) or state.current.dtype != dtype:
        raise ValueError(
            f"checkpoint must hold recurrences on [{dim}] in {dtype}, "
            f"got {file} on {list(state.current.shape)} in {state.current.dtype}"
        )
    return lanczos.with_room(state, num_steps, reorthogonalize=reorthogonalize)


def _carry(matvec, state: LanczosState, goal: int, chunk: int, reorthogonalize: str):
    """Carry a recurrence on to the depth `goal`, in programs of `chunk` steps."""
    while (left := goal - int(state.step)) > 0:
        state = lanczos.extend(
            matvec, state, num_steps=min(chunk, left), reorthogonalize=reorthogonalize
        )
    return state


def _measure_of_states(states: list[LanczosState], depth: int, dim: int) -> SpectralMeasure:
    """Turn recurrences into a measure of their first `depth` steps."""
    s = jax.tree.map(lambda *x: jnp.stack(x), *(x._replace(basis=None) for x in states))
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


def trace_within(
    matvec: Any,
    key: PRNGKeyArray,
    f: Callable[[Array], Array],
    *,
    dim: int,
    tolerance: float,
    num_steps: int = 1024,
    num_probes: int = 8,
    reorthogonalize: str = "selective",
    dtype: Any = jnp.float32,
) -> TraceRun:
    """Run until the interval of `trace_bracket` is as narrow as asked, or say how far it got.

    Starts with one probe of 64 steps. Each stage doubles what makes the interval wide: the depth,
    where the bracket is wider than the random error, else the probes. Costs the products that it
    takes, num_probes · num_steps at most; memory of 48 vectors a probe.

    Args:
        matvec: H, a symmetric `Array[D] -> Array[D]`.
        key: random key of the probes.
        f: as for `trace_bracket`.
        dim: D.
        tolerance: greatest width of the interval, as a share of the value.
        num_steps: steps a probe, at most.
        num_probes: probes, at most.
        reorthogonalize: as for `spectral_measure`.
        dtype: floating type of the probes.

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
    check_range("tolerance", tolerance, 0)
    check_count("num_probes", num_probes)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    rows = num_probes * lanczos.num_rows(num_steps, reorthogonalize)
    lanczos.check_basis(rows, dim, dtype)
    keys, states = jax.random.split(key, num_probes), []
    depth, count = min(FIRST_DEPTH, num_steps), 1
    while True:
        states += [
            _begin(k, None, dim, num_steps, reorthogonalize, dtype)
            for k in keys[len(states) : count]
        ]
        states = [_carry(matvec, state, depth, CHUNK, reorthogonalize) for state in states]
        measure = _measure_of_states(states, depth, dim)
        estimate = trace_bracket(measure, f)
        width = float(estimate.upper - estimate.lower)
        converged = width <= tolerance * abs(float(estimate.value))
        if converged or (depth == num_steps and count == num_probes):
            return TraceRun(estimate, measure, converged)
        random = 2 * 1.96 * float(estimate.standard_error)
        if count == num_probes or (depth < num_steps and width > 2 * random):
            depth = min(2 * depth, num_steps)
        else:
            count = min(2 * count, num_probes)

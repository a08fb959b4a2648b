"""Lanczos runs that are watched: stopped when good enough, kept on disk, continued later."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._core.checkpoints import Checkpoints, check_directory
from jaxlimit._core.checks import check_key, check_known, check_range, check_type, is_concrete
from jaxlimit._core.estimate import NORMAL_QUANTILE, Estimate
from jaxlimit._core.memory import catching_refusals
from jaxlimit._core.moved import gathers_keywords
from jaxlimit._core.operator import Operator, prepare, takes_operator
from jaxlimit.lanczos import LanczosState
from jaxlimit.spectrum.functions import trace_bracket
from jaxlimit.spectrum.measure import SpectralMeasure, check_steps
from jaxlimit.spectrum.monitor import CHUNK, Monitor
from jaxlimit.spectrum.recurrences import (
    OF_OPERATOR,
    arrays,
    carry,
    identity,
    measure_of,
    plan_run,
    probe,
    resume,
)

Params = ParamSpec("Params")
Result = TypeVar("Result")

FIRST_DEPTH = 64


def _dtype_by_operator(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Take the keyword `dtype` of an earlier version, with a warning."""

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        given: Any = kwargs
        if given.get("dtype") is None:
            given.pop("dtype", None)
            return function(*args, **kwargs)
        warnings.warn(
            "run_probes(matvec, dim=..., dtype=...) is now run_probes(Operator(matvec, dim, dtype))"
            "; the old form goes in the next version",
            DeprecationWarning,
            stacklevel=3,
        )
        matvec: Any = prepare(args[0], given.get("dim"), given.pop("dtype"))
        return cast(Callable, function)(matvec, *args[1:], **kwargs)

    return wrapper


@gathers_keywords(monitor=Monitor)
@_dtype_by_operator
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
    monitor: Monitor | None = None,
    mesh: Mesh | None = None,
) -> SpectralMeasure:
    """Run `spectral_measure` in chunks that can be watched, stopped and continued.

    Costs the same products; memory as `spectral_measure`, for all probes together.

    Args:
        matvec: see `spectral_measure`.
        key: see `spectral_measure`; the same key gives the same measure.
        dim: D; an `Operator` knows it.
        num_steps: steps a probe, at most.
        num_probes: independent probes, advanced in turn.
        reorthogonalize: see `spectral_measure`.
        store: see `spectral_measure`.
        states: recurrences to continue, one a probe, from a `DeviceMemoryError`; they keep their
            own store.
        monitor: chunks, callbacks and checkpoints.
        mesh: see `spectral_measure`.

    Returns:
        A `SpectralMeasure` of the depth reached.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`, or if the checkpoint is that of another run; says what
            differs.
        FloatingPointError: as `spectral_measure`, within a chunk of the failure. The checkpoint is
            from before the failure, so the run can continue with a repaired operator.
        OSError: if a checkpoint cannot be written; the one before it stays whole.
        MemoryError: as `spectral_measure`; a `DeviceMemoryError` with the recurrences as they were
            if the device runs out of memory during the run.

    >>> import jax, jax.numpy as jnp
    >>> measure = run_probes(
    ...     lambda v: jnp.arange(64.0) * v, jax.random.key(0), dim=64, num_steps=64,
    ...     monitor=Monitor(chunk=4, stop=lambda measure: measure.nodes.max() > 62.9))
    >>> measure.nodes.shape[1] in (16, 32, 64)
    True
    """
    check_key("key", key)
    monitor = monitor or Monitor()
    check_type("monitor", monitor, Monitor)
    check_directory(monitor.checkpoint_dir)
    asked = {"num_steps": num_steps, "num_probes": num_probes, "reorthogonalize": reorthogonalize}
    operator, num_steps, mode = plan_run(matvec, dim, None, mesh, store=store, **asked)
    for state in states:
        check_type("states", state, LanczosState)
    kept: dict[str, Any] = {"reorthogonalize": mode, "store": store, "mesh": mesh}
    recurrences = list(states) or [
        lanczos.start(probe(k, operator.dim, operator.dtype), num_steps=num_steps, **kept)
        for k in jax.random.split(key, num_probes)
    ]
    if not is_concrete([state.step for state in recurrences]):  # under jit, not under vmap
        check_known("run_probes", key=key, states=recurrences)
    with Checkpoints(
        monitor.checkpoint_dir,
        monitor.checkpoint_every,
        lambda: identity(key, recurrences, operator),
        unit="step",
        optional=(OF_OPERATOR,),
    ) as checkpoints:
        if not states:
            recurrences = resume(checkpoints, recurrences, operator)
        done = _watched(operator, recurrences, num_steps, monitor, checkpoints)
    return measure_of(recurrences, done, operator.dim, mesh)


def _watched(
    operator: Operator,
    recurrences: list[LanczosState],
    num_steps: int,
    monitor: Monitor,
    checkpoints: Checkpoints,
) -> int:
    """Advance recurrences in place, chunk by chunk; return the depth where the run ended."""
    done, looked = min(int(state.step) for state in recurrences), 2 * monitor.chunk
    while 2 * looked < done:
        looked *= 2
    while done < num_steps:
        if monitor.stop is not None and done >= 2 * looked:
            looked = done
            if monitor.stop(measure_of(recurrences, done, operator.dim, operator.mesh)):
                break
        goal = min(done + monitor.chunk, num_steps)
        for i, state in enumerate(recurrences):
            if int(state.step) >= goal:
                continue
            with catching_refusals(f"at step {done} of probe {i}", recurrences):
                following = carry(operator, state, goal, monitor.chunk)
                recurrences[i] = jax.block_until_ready(following)
            check_steps(recurrences[i].failed_step, i)
            steps = done * len(recurrences) + (i + 1) * (goal - done)
            monitor.report(steps, num_steps * len(recurrences))
        done = goal
        checkpoints.save(done, arrays(recurrences), last=done == num_steps)
    return done


class TraceRun(NamedTuple):
    """A trace, and how far its run went.

    Attributes:
        estimate: the trace with its interval.
        measure: the measure that it comes from, which serves other functions too.
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
    """Run until the interval of `trace_bracket` is narrow enough, or the limits are reached.

    Starts with one probe of 64 steps. Each stage doubles what makes the interval wide: the depth if
    the bracket is wider than the random error, otherwise the probes. Costs at most
    num_probes · num_steps products; memory as `run_probes`.

    Args:
        matvec: H, symmetric: an `Operator` or `Array[D] -> Array[D]`.
        key: random key of the probes.
        f: see `trace_bracket`.
        dim: D; an `Operator` knows it.
        tolerance: greatest width of the interval, as a share of the value.
        num_steps: steps a probe, at most.
        num_probes: probes, at most.
        reorthogonalize: see `spectral_measure`.
        dtype: floating type of the probes; by default that of `matvec`, or float32.
        mesh: see `spectral_measure`.

    Returns:
        A `TraceRun`.

    Raises:
        TypeError: as `spectral_measure`, and if `f` is no function.
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
    check_known("trace_within", key=key)
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

"""Random probes: from an operator to the measure that Lanczos sees of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._checks import check_count
from jaxlimit._matvec import prepare
from jaxlimit._oom import catching_refusals
from jaxlimit.spectrum.measure import SpectralMeasure, measure_from


def probe(key: PRNGKeyArray, dim: int, dtype: Any = jnp.float32) -> Float[Array, "dim"]:
    """Draw a vector uniformly from the unit sphere."""
    vector = jax.random.normal(key, (dim,), dtype)
    return vector / jnp.linalg.norm(vector)


def spectral_measure(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    store: str = "device",
    vectorize: bool = False,
    dtype: Any = jnp.float32,
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
        store: where the basis is kept, "device", "bfloat16" or "pinned_host", likewise.
        vectorize: run all probes side by side by `vmap` instead of one after the other.
        dtype: floating type of the probes.

    Returns:
        A `SpectralMeasure` with one row a probe.

    Raises:
        TypeError: if a count is no static int.
        ValueError: if a count is below 1, `matvec` does not map [D] to [D], or `vectorize` is asked
            of a basis in "pinned_host".
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
    keys = jax.random.split(key, num_probes)
    if vectorize and store == "pinned_host":
        raise ValueError("vectorize must be False where store is 'pinned_host'")
    settings = (dim, num_steps, reorthogonalize, store, dtype)
    return measure_from(_run_probes(matvec, keys, vectorize, *settings), dim=dim)


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def _run_probes(matvec, keys, vectorize, dim, num_steps, reorthogonalize, store, dtype):
    def one(key):
        result = lanczos.tridiagonalize(
            matvec,
            probe(key, dim, dtype),
            num_steps=num_steps,
            reorthogonalize=reorthogonalize,
            store=store,
        )
        return result._replace(basis=None)

    return jax.vmap(one)(keys) if vectorize else jax.lax.map(one, keys)


def run_probes(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "selective",
    store: str = "device",
    states: tuple[lanczos.LanczosState, ...] = (),
    chunk: int = 32,
    stop: Callable[[SpectralMeasure], bool] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    stage: str = "spectrum",
    dtype: Any = jnp.float32,
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
        store: as for `spectral_measure`.
        states: recurrences to go on from, one a probe, those of a `DeviceMemoryError`; they keep
            their own store.
        chunk: steps between two looks.
        stop: called with the measure so far, once the depth has doubled since the last look and
            at least 4 chunks are done; True ends the run.
        on_progress: called as `on_progress(stage, steps_done, steps)` after every chunk.
        stage: a name for `on_progress`.
        dtype: floating type of the probes.

    Returns:
        A `SpectralMeasure` of the depth reached.

    Raises:
        TypeError: as `spectral_measure`.
        ValueError: as `spectral_measure`.
        FloatingPointError: as `spectral_measure`.
        DeviceMemoryError: if the device runs out of memory; carries the states before that.
    """
    check_count("num_probes", num_probes)
    matvec, dim, dtype = prepare(matvec, dim, dtype)
    num_steps = min(check_count("num_steps", num_steps), dim)
    recurrences = list(states) or [
        lanczos.start(
            probe(k, dim, dtype), num_steps=num_steps, reorthogonalize=reorthogonalize, store=store
        )
        for k in jax.random.split(key, num_probes)
    ]
    done, looked = min(int(state.step) for state in recurrences), 2 * chunk
    while done < num_steps:
        take = min(chunk, num_steps - done)
        for i, state in enumerate(recurrences):
            left = done + take - int(state.step)
            if left <= 0:
                continue
            with catching_refusals(f"at step {done} of probe {i}", recurrences):
                following = lanczos.extend(
                    matvec, state, num_steps=left, reorthogonalize=reorthogonalize
                )
                recurrences[i] = jax.block_until_ready(following)
            if on_progress is not None:
                on_progress(stage, done * num_probes + (i + 1) * take, num_steps * num_probes)
        done += take
        if stop is not None and (done >= 2 * looked or done == num_steps):
            looked = done
            if stop(_measure_of_states(recurrences, done, dim)):
                break
    return _measure_of_states(recurrences, done, dim)


def _measure_of_states(states: list, depth: int, dim: int) -> SpectralMeasure:
    parts = [lanczos.finish(state)._replace(basis=None) for state in states]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    return measure_from(
        stacked._replace(
            diagonal=stacked.diagonal[:, :depth], off_diagonal=stacked.off_diagonal[:, : depth - 1]
        ),
        dim=dim,
    )

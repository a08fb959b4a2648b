"""From an operator to its spectral measure, by Lanczos from random probes."""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._core.checks import check_key
from jaxlimit._core.operator import takes_operator
from jaxlimit.spectrum.measure import SpectralMeasure, measure_from
from jaxlimit.spectrum.monitor import Monitor
from jaxlimit.spectrum.recurrences import plan_run, probe
from jaxlimit.spectrum.staged import run_probes


@takes_operator
def spectral_measure(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int | None = None,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "auto",
    store: str = "device",
    vectorize: bool = False,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> SpectralMeasure:
    """Estimate the spectral distribution of a symmetric operator by stochastic Lanczos quadrature.

    Costs num_probes · num_steps products; memory of num_steps vectors reorthogonalised fully, of
    72 selectively, of three if not at all.

    Args:
        matvec: H, symmetric: an `Operator` or `Array[D] -> Array[D]`; an operator that loops over
            data on the host (`curvature.hessian_matvec_over`) is called eagerly, probe by probe.
        key: random key of the probes.
        dim: D; an `Operator` knows it.
        num_steps: Lanczos steps a probe, at most D.
        num_probes: independent probes.
        reorthogonalize: "full", "selective" or "none", see `lanczos.tridiagonalize`; "auto" is
            "full" up to 256 steps, "selective" deeper. Weaker modes need more depth before the
            bracket of `trace_bracket` closes: "none" takes twice as much or more.
        store: where the basis is kept, "device", "bfloat16" or "pinned_host"; see
            `lanczos.tridiagonalize`.
        vectorize: run all probes side by side by `vmap` instead of one after the other.
        dtype: floating type of the probes; by default that of `matvec`, or float32.
        mesh: devices that each keep a part of every vector; see `lanczos.tridiagonalize`; the
            probes then run one after the other.

    Returns:
        A `SpectralMeasure` with one row a probe; NaN where a product was not finite and nothing
        can be raised under `jit`.

    Raises:
        TypeError: if a count is no static int, or `matvec` is on vectors of another type.
        ValueError: if a count is below 1, `matvec` does not map [D] to [D], or `vectorize` is asked
            of a basis in "pinned_host" or of a product on the host.
        FloatingPointError: if a product was not finite; names the probe and the step.
        MemoryError: if the basis is larger than the device's memory; says what takes less.

    >>> import jax, jax.numpy as jnp
    >>> measure = spectral_measure(
    ...     lambda v: jnp.arange(8.0) * v, jax.random.key(0), dim=8, num_steps=8)
    >>> jnp.round(measure.nodes[0])
    Array([0., 1., 2., 3., 4., 5., 6., 7.], dtype=float32)

    Golub, Meurant (2010), chapter 7; Ubaru, Chen, Saad (2017).
    """
    check_key("key", key)
    asked = {"num_steps": num_steps, "num_probes": num_probes, "reorthogonalize": reorthogonalize}
    at_once = num_probes if vectorize else 1
    operator, num_steps, mode = plan_run(
        matvec, dim, dtype, mesh, store=store, at_once=at_once, **asked
    )
    dim, dtype = operator.dim, operator.dtype
    if vectorize and not operator.traceable:
        raise ValueError("vectorize must be False where matvec loops over data on the host")
    if mesh is not None or not operator.traceable:
        whole = Monitor(chunk=num_steps)
        return run_probes(operator, key, store=store, monitor=whole, mesh=mesh, **asked)
    if vectorize and store == "pinned_host":
        raise ValueError("vectorize must be False where store is 'pinned_host'")
    keys = jax.random.split(key, num_probes)
    settings = (dim, num_steps, mode, store, dtype)
    return measure_from(_run_probes(operator, keys, vectorize, *settings), dim=dim)


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

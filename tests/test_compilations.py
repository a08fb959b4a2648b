"""Asked the same again, nothing is compiled: what is made anew in a call leaks a program each time.

Functions of the user are made anew in every call here, as they are in a loop.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlimit
from jaxlimit import curvature, geometry, lanczos, limits, pruning, spectrum, studies, traces

KEY = jax.random.key(0)
DIM = 24
EIGENVALUES = jnp.linspace(0.0, 2.0, DIM)
MEASURE = spectrum.exact_measure(EIGENVALUES)
BATCHES = jax.random.normal(KEY, (2, 8, 6))
VECTOR = jax.random.normal(KEY, (DIM,))
WEIGHTS = VECTOR[:6]
KEPT = jnp.arange(6) < 4
LOSS = curvature.split_loss(lambda w, x: jnp.tanh(x @ w), lambda y, x: jnp.mean((y - 1) ** 2))
TASK = (LOSS, WEIGHTS, BATCHES)
PSD = curvature.gauss_newton_matvec(*TASK)
BLOCKS = {"a": np.arange(DIM) < 9, "b": np.arange(DIM) >= 9}


def product():
    return lambda v: EIGENVALUES * v


def of(function=lambda x: x / (x + 0.1)):
    return lambda x: function(x)


ONCE = {
    "spectral_measure": lambda: spectrum.spectral_measure(product(), KEY, dim=DIM, num_steps=6),
    "run_probes": lambda: spectrum.run_probes(product(), KEY, dim=DIM, num_steps=6),
    "block_measures": lambda: spectrum.block_measures(product(), KEY, BLOCKS, num_steps=4),
    "trace_within": lambda: spectrum.trace_within(product(), KEY, of(), dim=DIM, tolerance=0.5),
    "trace_function": lambda: spectrum.trace_function(MEASURE, of()),
    "trace_bracket": lambda: spectrum.trace_bracket(MEASURE, of()),
    "density": lambda: spectrum.density(MEASURE, jnp.linspace(0, 2, 9), width=0.5),
    "hutchinson": lambda: traces.hutchinson(product(), KEY, dim=DIM, num_matvecs=4),
    "hutch_plus_plus": lambda: traces.hutch_plus_plus(product(), KEY, dim=DIM, num_matvecs=12),
    "xtrace": lambda: traces.xtrace(product(), KEY, dim=DIM, num_matvecs=8),
    "traces.diagonal": lambda: traces.diagonal(product(), KEY, dim=DIM, num_matvecs=4),
    "extremal_eigenpairs": lambda: lanczos.extremal_eigenpairs(
        product(), KEY, dim=DIM, num_pairs=1
    ),
    "tridiagonalize": lambda: lanczos.tridiagonalize(product(), VECTOR, num_steps=4),
    "hessian_matvec": lambda: curvature.hessian_matvec(*TASK)(WEIGHTS),
    "gauss_newton_matvec": lambda: curvature.gauss_newton_matvec(*TASK)(WEIGHTS),
    "mean_gradient": lambda: curvature.mean_gradient(*TASK),
    "curvature.diagonal": lambda: curvature.diagonal(*TASK),
    "factor_rows": lambda: list(curvature.factor_rows(*TASK, mask=np.ones(6, bool))),
    "loss_tolerance": lambda: limits.loss_tolerance(*TASK),
    "pruning_limit": lambda: limits.pruning_limit(MEASURE, VECTOR, 0.01),
    "random_subspace_threshold": lambda: limits.random_subspace_threshold(MEASURE, VECTOR, 0.01),
    "key_factors": lambda: limits.key_factors(MEASURE, VECTOR, 0.01),
    "lower_bound": lambda: limits.lower_bound(MEASURE, 0.5, 0.01),
    "gap": lambda: limits.gap(MEASURE, 0.5, 0.01, dim=2 * DIM),
    "trace_bound": lambda: limits.trace_bound(1.0, 0.5, 0.01, dim=DIM),
    "curvature_share": lambda: limits.curvature_share(EIGENVALUES, 0.1),
    "quadratic_limit": lambda: limits.quadratic_limit(jnp.eye(DIM), VECTOR, 0.1),
    "certificate": lambda: limits.certificate(PSD, WEIGHTS, WEIGHTS, 0.1, num_products=6),
    "shares": lambda: limits.shares(PSD, WEIGHTS, WEIGHTS, KEPT, 0.1),
    "refit": lambda: limits.refit(PSD, WEIGHTS, WEIGHTS, KEPT),
    "refitted": lambda: limits.refitted(PSD, WEIGHTS, WEIGHTS, jnp.array([4, 2])),
    "by_layer": lambda: limits.by_layer(
        {"a": MEASURE, "b": MEASURE}, {"a": VECTOR, "b": 2 * VECTOR}, epsilon=0.1
    ),
    "coupling": lambda: limits.coupling(
        spectrum.exact_measure(jnp.ones(2 * DIM)), {"a": MEASURE, "b": MEASURE}, 0.1
    ),
    "magnitude_mask": lambda: pruning.magnitude_mask(WEIGHTS, 0.5),
    "flat_magnitude_mask": lambda: pruning.flat_magnitude_mask(WEIGHTS, 3),
    "removed_norm": lambda: pruning.removed_norm(WEIGHTS, 0.5),
    "support_fraction": lambda: pruning.support_fraction(WEIGHTS),
    "magnitude_sweep": lambda: pruning.magnitude_sweep(*TASK, [0.5, 1.0]),
    "taylor_forecast": lambda: pruning.taylor_forecast(WEIGHTS, PSD, WEIGHTS, [0.5]),
    "dead_weights": lambda: pruning.dead_weights(*TASK, key=KEY),
    "held_out_losses": lambda: pruning.held_out_losses(LOSS, WEIGHTS, [KEPT], BATCHES),
    "smallest_mask": lambda: pruning.smallest_mask(*TASK, epsilon=0.1, key=KEY),
    "estimate_limit": lambda: jaxlimit.estimate_limit(*TASK, key=KEY, num_steps=3, num_gap_steps=2),
    "layer_limits": lambda: studies.layer_limits(*TASK, epsilon=0.1, key=KEY, num_steps=3),
    "gaussian_width": lambda: geometry.gaussian_width(
        lambda g: jnp.abs(g).max(), KEY, dim=8, num_samples=16
    ),
    "statistical_dimension": lambda: geometry.statistical_dimension(
        lambda g: jnp.maximum(g, 0), KEY, dim=8, num_samples=16
    ),
}


SLOW = {"smallest_mask", "estimate_limit", "layer_limits", "by_layer", "dead_weights"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ONCE]
)
def test_nothing_is_compiled_again(name):
    for _ in range(2):
        ONCE[name]()
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        ONCE[name]()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 0

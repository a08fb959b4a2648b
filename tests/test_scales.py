"""Numbers over scales of the loss: H, g and ε times s leave every count and ratio where it is.

Bounds, Lanczos, traces, `by_layer`, `quadratic_limit` and `loss_tolerance` have such tests in their
own files; here are the rest: certificates, refitting, saliencies, diagonals, guarantees, search.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, limits, pruning, spectrum

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DIM = 24
ROWS = RNG.normal(size=(40, DIM))
H, WEIGHTS, GRADIENT = ROWS.T @ ROWS / 40, RNG.normal(size=DIM), 0.05 * RNG.normal(size=DIM)
W = jnp.asarray(WEIGHTS, jnp.float32)
KEPT = np.abs(WEIGHTS) > 0.5
EPSILON = 0.3
BLOCKS = {"a": np.arange(DIM) < 10, "b": np.arange(DIM) >= 10}
INPUTS = jnp.asarray(RNG.normal(size=(4, 16, 6)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(4, 16)), jnp.float32)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=3), jnp.float32),
}
LOST = np.clip(np.abs(RNG.normal(size=3000)), 0, 4)


def scaled(array, s):
    return jnp.asarray(array * s, jnp.float32)


def product(s):
    matrix = scaled(H, s)
    return lambda v: matrix @ v


def quadratic(s):
    return product(s), scaled(GRADIENT, s), W


def measures(s):
    return {
        name: spectrum.exact_measure(scaled(np.linalg.eigvalsh(H[np.ix_(mask, mask)]), s))
        for name, mask in BLOCKS.items()
    }


def whole(s):
    return spectrum.exact_measure(scaled(np.linalg.eigvalsh(H), s))


def task(s):
    def half_square(outputs, batch):
        return jnp.float32(s) * jnp.mean((outputs - batch[1]) ** 2)

    def apply(params, batch):
        return jnp.tanh(batch[0] @ params["a"]) @ params["b"]

    return curvature.split_loss(apply, half_square), PARAMS, (INPUTS, TARGETS)


def certified(s, **settings):
    found = limits.certificate(*quadratic(s), EPSILON * s, **settings)
    return found.num_kept, found.num_products


def refit(s):
    found = limits.refit(*quadratic(s), KEPT)
    return (
        found.rise / s,
        found.one_shot / s,
        found.residual,
        found.curvature / s,
        found.num_products,
    )


def refitted_limit(s):
    found = limits.refitted_limit(*quadratic(s), EPSILON * s)
    return found.num_kept, found.rise / s


def guaranteed(s):
    pruned = s * np.stack([LOST + 0.1, LOST + 0.2])
    settings = {"epsilon": 0.5 * s, "bounds": (0.0, 5 * s)}
    found = pruning.guaranteed_ratio(s * LOST, pruned, [0.5, 0.2], **settings)
    return found.ratio, *found.p_values, *(found.mean_rises / s)


def greedy(s):
    matrix = scaled(H * np.outer(WEIGHTS, WEIGHTS), s)
    return pruning.greedy_order(scaled(-WEIGHTS * GRADIENT, s), matrix).order


def search(s):
    found = pruning.smallest_mask(*task(s), epsilon=EPSILON * s, key=KEY)
    kept = [candidate.num_kept for candidate in found.candidates]
    return found.num_kept, found.loss / s, found.certificate.num_kept, *kept, *found.shares


NUMBERS = {
    "certificate": certified,
    "certificate with a diagonal": lambda s: certified(s, diagonal=scaled(np.diag(H), s)),
    "shares": lambda s: limits.shares(*quadratic(s), KEPT, EPSILON * s, rise=0.1 * s),
    "refit": refit,
    "refitted": lambda s: limits.refitted(*quadratic(s), jnp.array([20, 10, 3])).rise / s,
    "refitted_limit": refitted_limit,
    "coupling": lambda s: jax.tree.leaves(limits.coupling(whole(s), measures(s), EPSILON * s)),
    "taylor_forecast": lambda s: (
        pruning.taylor_forecast(scaled(GRADIENT, s), product(s), W, [0.2, 0.5]) / s
    ),
    "saliency": lambda s: pruning.saliency(W, scaled(GRADIENT, s), scaled(np.diag(H), s)) / s,
    "l1_residual": lambda s: pruning.l1_residual(scaled(GRADIENT, s), W, 0.05 * s)[:3],
    "guaranteed_ratio": guaranteed,
    "greedy_order": greedy,
    "block_measures": lambda s: [
        measure.nodes.max() / s
        for measure in spectrum.block_measures(product(s), KEY, BLOCKS, num_steps=6).values()
    ],
    "diagonal": lambda s: curvature.diagonal(*task(s)) / s,
    "probed diagonal": lambda s: curvature.diagonal(*task(s), num_probes=2, key=KEY) / s,
    "factor_rows": lambda s: (
        np.ravel(list(curvature.factor_rows(*task(s), mask=np.arange(21) < 4))) / s**0.5
    ),
    "hessian_matvec": lambda s: curvature.hessian_matvec(*task(s))(jnp.ones(21)) / s,
    "mean_gradient": lambda s: curvature.mean_gradient(*task(s)) / s,
    "magnitude_sweep": lambda s: pruning.magnitude_sweep(*task(s), [0.2, 0.6, 1.0]).losses / s,
    "smallest_mask": search,
}
SLOW = {"smallest_mask"}


@pytest.mark.parametrize("exponent", [-100, 66, 100])  # powers of two scale exactly
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NUMBERS]
)
def test_numbers_are_free_of_scale(name, exponent):
    expected = np.array([float(x) for x in NUMBERS[name](1.0)])
    found = np.array([float(x) for x in NUMBERS[name](2.0**exponent)])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())

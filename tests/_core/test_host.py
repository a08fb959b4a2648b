"""Batches that stay on the host: the numbers of those in memory, one at a time on the device."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mesh_problem import cross_entropy, logits, loss, problem, ragged

from jaxlimit import curvature, limits, planning, pruning
from jaxlimit._core.batches import cut_batches, group_batches, mean_over
from jaxlimit._core.host import HostBatches
from jaxlimit.pruning.masked import _derivatives, masked_loss

PARAMS, EXAMPLES = problem()
SPLIT = curvature.split_loss(logits, cross_entropy)
VECTOR = jax.random.normal(jax.random.key(1), (103,))
RECOMPUTED = {"mode": "forward-over-reverse"}


def weighted(params, batch):
    outputs = logits(params, batch)
    return outputs[:, 0] ** 2, jnp.abs(batch[0][:, 0])


def on_host(batches):
    return HostBatches(jax.tree.map(np.asarray, batch) for batch in batches)


FUNCTIONS = {
    "gradient": lambda b: curvature.mean_gradient(loss, PARAMS, b),
    "weighted gradient": lambda b: curvature.mean_gradient(weighted, PARAMS, b),
    "Hessian": lambda b: curvature.hessian_matvec(loss, PARAMS, b, **RECOMPUTED)(VECTOR),
    "Gauss-Newton": lambda b: curvature.gauss_newton_matvec(SPLIT, PARAMS, b)(VECTOR),
    "in reverse": lambda b: curvature.hessian_matvec(loss, PARAMS, b, mode="reverse-over-reverse")(
        VECTOR
    ),
    "several at once": lambda b: jax.vmap(curvature.hessian_matvec(loss, PARAMS, b))(
        jnp.stack([VECTOR, 2 * VECTOR])
    ),
    "exact diagonal": lambda b: curvature.diagonal(SPLIT, PARAMS, b),
    "diagonal": lambda b: curvature.diagonal(SPLIT, PARAMS, b, num_probes=2, key=jax.random.key(0)),
    "rows": lambda b: sum(
        B.T @ B for B in curvature.factor_rows(SPLIT, PARAMS, b, mask=np.ones(103, bool))
    ),
    "tolerance": lambda b: limits.loss_tolerance(loss, PARAMS, b),
    "weighted tolerance": lambda b: limits.loss_tolerance(weighted, PARAMS, b),
    "sweep": lambda b: pruning.magnitude_sweep(loss, PARAMS, b, [0.1, 0.5]).losses,
    "losses": lambda b: pruning.held_out_losses(
        loss, PARAMS, [jax.tree.map(lambda x: x > 0, PARAMS)], b
    ),
}


QUICK = {"gradient", "Hessian", "tolerance"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FUNCTIONS],
)
def test_numbers_are_those_of_batches_in_memory(name):
    batches = ragged(EXAMPLES, 15, 30, 45)  # the last is short
    found, wanted = FUNCTIONS[name](on_host(batches)), FUNCTIONS[name](batches)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def temporary(num_batches):
    """Return the bytes that programs over batches of 100 kB take beside their arguments."""
    held = HostBatches(np.ones((100, 256), np.float32) for _ in range(num_batches))
    w = jnp.full(256, 0.01)
    of_batch = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)  # noqa: E731
    at = masked_loss(of_batch, w, held, (), lambda *_: True, None)
    programs = (
        jax.jit(lambda w: mean_over(group_batches(held), lambda x: of_batch(w, x))).lower(w),
        _derivatives.lower(at, jnp.ones(256, bool), w),
    )
    return [program.compile().memory_analysis().temp_size_in_bytes for program in programs]


def test_a_program_has_one_batch_at_a_time():
    few, many = temporary(3), temporary(40)
    assert min(many) > 90_000  # a batch
    # Of forty batches it has one, whether it evaluates or goes back through them.
    assert all(later - early < 100_000 for early, later in zip(few, many, strict=True))


def test_programs_serve_other_data_and_keep_none():
    gradient = lambda held: curvature.mean_gradient(lambda w, x: jnp.mean(x @ w), jnp.ones(3), held)  # noqa: E731
    first = HostBatches([np.ones((2, 3), np.float32)] * 2)
    np.testing.assert_array_equal(gradient(first), 1)
    second = HostBatches([np.full((2, 3), 5, np.float32)] * 2)
    np.testing.assert_array_equal(gradient(second), 5)
    groups = group_batches(second)
    del second
    gc.collect()
    with pytest.raises(Exception, match="freed before their last use"):
        jax.block_until_ready(mean_over(groups, lambda x: x.mean()))


def test_an_operator_keeps_its_batches():
    product = curvature.hessian_matvec(
        lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones(2), HostBatches([np.eye(2)] * 3)
    )
    gc.collect()
    np.testing.assert_allclose(product(jnp.ones(2)), 1)


def test_what_would_hold_all_examples_is_refused_or_left():
    held = on_host(ragged(EXAMPLES, 20, 40))
    with pytest.raises(ValueError, match="batches that stay on the host: leave mode 'auto'"):
        curvature.hessian_matvec(loss, PARAMS, held, mode="linearized")
    assert not curvature.hessian_matvec(loss, PARAMS, held).linearized
    workload, ways = planning.prepare(loss, PARAMS, held)
    assert ways["modes"] == ("forward-over-reverse",)
    whole = planning.prepare(loss, PARAMS, list(held))[0]
    assert workload.held < whole.held
    assert workload.num_examples == whole.num_examples == 53
    pieces = cut_batches(held, 2)
    assert isinstance(pieces, HostBatches)
    assert [len(piece[1]) for piece in pieces] == [10, 10, 10, 10, 7, 6]

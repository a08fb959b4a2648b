"""Every public function that takes a loss takes example weights: the oracle repeats examples.

An example of weight 3 counts as three of weight 1, and one of weight 0 as none, so the loss Σwl/Σw
of the weighted data is the plain mean over the repeated data, with all its derivatives.
"""

import importlib
import inspect
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlimit
from jaxlimit import curvature, limits, planning, pruning, studies, training
from jaxlimit.studies import StudySettings

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WEIGHTS = np.array([1, 3, 0, 2, 1, 1, 2, 0, 3, 1, 2, 2])
INPUTS = RNG.normal(size=(12, 3)).astype(np.float32)
TARGETS = RNG.normal(size=12).astype(np.float32)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "b": jnp.array([1.0, -2.0])}
DIM = 8
MASK = jax.tree.map(lambda x: jnp.abs(x) > 0.5, PARAMS)
EPSILON = 0.3


def apply(params, batch):
    return jnp.tanh(batch[0] @ params["a"]) @ params["b"]


def squares(outputs, batch):
    return 0.5 * (outputs - batch[1]) ** 2


def weighted(outputs, batch):
    return squares(outputs, batch), batch[2]


def mean(outputs, batch):
    return squares(outputs, batch).mean()


def cut(arrays, num_batches):
    return tuple(jnp.asarray(x.reshape(num_batches, -1, *x.shape[1:])) for x in arrays)


REPEATED = np.repeat(np.arange(12), WEIGHTS)
CASES = {  # the loss of outputs, and the data
    "weighted": (weighted, cut((INPUTS, TARGETS, WEIGHTS.astype(np.float32)), 3)),
    "scaled": (weighted, cut((INPUTS, TARGETS, WEIGHTS.astype(np.float32) / 3), 4)),
    "repeated": (mean, cut((INPUTS[REPEATED], TARGETS[REPEATED]), 2)),
}


def matrix_of(matvec):
    return jnp.stack([matvec(row) for row in jnp.eye(DIM)])


def plain(of_outputs):
    """Return a loss that is not split."""
    return lambda params, batch: of_outputs(apply(params, batch), batch)


def split(of_outputs):
    return curvature.split_loss(apply, of_outputs)


def read_over(of_outputs, batches):
    def read():
        return (jax.tree.map(lambda x, i=i: x[i], batches) for i in range(len(batches[0])))

    return matrix_of(curvature.hessian_matvec_over(plain(of_outputs), PARAMS, read))


def rows(loss, batches, **settings):
    pieces = curvature.factor_rows(loss, PARAMS, batches, mask=np.ones(DIM, bool), **settings)
    return sum(piece.T @ piece for piece in pieces)


def fisher(of_outputs, batches):
    each = squares if of_outputs is mean else of_outputs
    return matrix_of(curvature.fisher_matvec(apply, PARAMS, batches, example_losses=each))


def estimate(of_outputs, batches):
    found = jaxlimit.estimate_limit(
        plain(of_outputs), PARAMS, batches, key=KEY, epsilon=EPSILON, num_steps=8, num_gap_steps=8
    )
    return jnp.stack([found.prediction.radius, found.largest, found.smallest, found.factors.trace])


def search(of_outputs, batches):
    found = pruning.smallest_mask(
        split(of_outputs), PARAMS, batches, epsilon=EPSILON, key=KEY, methods=("relaxed", "greedy")
    )
    table = [[c.num_kept, c.loss] for c in found.candidates]
    return np.array([*table, [found.certificate.num_kept, found.dense_loss], found.shares[:2]])


def layers(of_outputs, batches):
    task = (plain(of_outputs), PARAMS, batches)
    found = studies.layer_limits(*task, epsilon=EPSILON, key=KEY, num_steps=4)
    return np.array([m.nodes.max() for m in found.measures.values()])


def studied(of_outputs, batches):
    settings = StudySettings(epsilon=EPSILON, num_ratios=8, quiet=True)
    task = (plain(of_outputs), PARAMS, batches)
    return jaxlimit.study(*task, key=KEY, budget=0.0, settings=settings).measured.losses


def held_out(of_outputs, batches):
    """Walk over two masks on held-out data, whose losses lie in [0, 1]; the weights sum to 18."""
    found = pruning.held_out_losses(
        plain(of_outputs), PARAMS, [MASK, jax.tree.map(jnp.zeros_like, MASK)], batches
    )
    dense, pruned = found[:2]
    weights = found[2] if len(found) == 3 else jnp.ones(dense.size)
    return (weights * jnp.stack([dense, *pruned])).sum(1) / weights.sum()


def refitted(of_outputs, batches):
    mask = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 2 == 0, PARAMS)
    found = pruning.refit(split(of_outputs), PARAMS, batches, mask=mask, num_rounds=2)
    return np.array(found.losses)


def proximal(of_outputs, batches):
    found = training.proximal_steps(
        plain(of_outputs), PARAMS, batches, l1=0.01, rate=0.1, num_steps=3
    )
    return found.loss


def order_of(of_outputs, batches):
    order = jnp.arange(DIM)[::-1]
    found = pruning.smallest_of_order(
        plain(of_outputs), PARAMS, batches, order=order, epsilon=EPSILON
    )
    return np.array([found.num_kept, found.loss])


def dead(of_outputs, batches):
    # At such a tolerance what is dead hangs on the loss.
    found = pruning.dead_weights(plain(of_outputs), PARAMS, batches, key=KEY, tolerance=0.03)
    return jnp.concatenate([1.0 * leaf.ravel() for leaf in jax.tree.leaves(found)])


def gradient(of_outputs, batches):
    return curvature.mean_gradient(plain(of_outputs), PARAMS, batches)


def pruned_to(of_outputs, batches):
    found = jaxlimit.prune_to(
        split(of_outputs), PARAMS, batches, epsilon=EPSILON, key=KEY, methods=("saliency",)
    )
    return np.array([found.search.num_kept, found.search.loss])


TAKES_LOSS = {
    "curvature.diagonal": lambda f, b: curvature.diagonal(split(f), PARAMS, b),
    "curvature.factor_rows": lambda f, b: rows(split(f), b),
    "curvature.fisher_matvec": fisher,
    "curvature.gauss_newton_matvec": lambda f, b: matrix_of(
        curvature.gauss_newton_matvec(split(f), PARAMS, b)
    ),
    "curvature.hessian_matvec": lambda f, b: matrix_of(
        curvature.hessian_matvec(plain(f), PARAMS, b)
    ),
    "curvature.hessian_matvec_over": read_over,
    "curvature.mean_gradient": gradient,
    "estimate_limit": estimate,
    "prune_to": pruned_to,
    "pruning.dead_weights": dead,
    "pruning.held_out_losses": held_out,
    "pruning.magnitude_sweep": lambda f, b: (
        pruning.magnitude_sweep(plain(f), PARAMS, b, [0.1, 0.5, 1.0]).losses
    ),
    "pruning.refit": refitted,
    "pruning.smallest_mask": search,
    "pruning.smallest_of_order": order_of,
    "studies.layer_limits": layers,
    "study": studied,
    "training.proximal_steps": proximal,
}
# Of these the numbers are not those of repeated examples.
OTHERS = {
    "curvature.hvp",  # of any function, whose arguments are no batch
    "curvature.linearization_bytes",
    "limits.loss_tolerance",  # see tests/limits/test_tolerance.py
    "planning.measure",
    "planning.prepare",
    "studies.check_deterministic",
}


def public_functions():
    rooms = [jaxlimit] + [
        importlib.import_module(f"jaxlimit.{room.name}")
        for room in pkgutil.iter_modules(jaxlimit.__path__)
        if not room.name.startswith("_") and room.name not in ("lab", "cli")
    ]
    for room in rooms:
        for name in getattr(room, "__all__", vars(room)):
            function = getattr(room, name)
            if inspect.isfunction(function) and not name.startswith("_"):
                path = f"{room.__name__}.{name}".removeprefix("jaxlimit.")
                yield path, function


def parameters_of(function):
    return set(inspect.signature(function).parameters)


def test_the_list_is_whole():
    found = {
        path
        for path, function in public_functions()
        if {"loss", "apply"} & parameters_of(function) and "batches" in parameters_of(function)
    }
    # Those of the top of the package are found in their rooms too; one takes `loss` as its first.
    found -= {"studies.estimate_limit", "studies.prune_to", "studies.study"}
    found -= {"limits.loss_tolerance_estimate"}  # an old name
    found |= {"curvature.gauss_newton_matvec", "curvature.hessian_matvec_over", "curvature.hvp"}
    assert found == TAKES_LOSS.keys() | OTHERS


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, "weighted") for name in TAKES_LOSS]
    # The scale of the weights does not count, nor how the examples are cut into batches.
    + [(name, "scaled") for name in TAKES_LOSS if name.startswith("curvature")]
    + [("pruning.magnitude_sweep", "scaled"), ("pruning.held_out_losses", "scaled")],
)
def test_weights_are_repetitions(name, case):
    of = TAKES_LOSS[name]
    found, expected = np.asarray(of(*CASES[case])), np.asarray(of(*CASES["repeated"]))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [*TAKES_LOSS, *sorted(OTHERS - {"curvature.hvp"})])
def test_negative_weights_are_refused(name):
    of_outputs, batches = CASES["weighted"]
    below = (*batches[:2], -batches[2])
    others = {
        "curvature.linearization_bytes": curvature.linearization_bytes,
        "limits.loss_tolerance": limits.loss_tolerance,
        "planning.measure": planning.measure,
        "planning.prepare": planning.prepare,
        "studies.check_deterministic": studies.check_deterministic,
    }
    of = TAKES_LOSS.get(name) or (lambda f, b: others[name](plain(f), PARAMS, b))
    with pytest.raises(ValueError, match="weights that loss returns must be at least 0"):
        of(of_outputs, below)


@pytest.mark.parametrize("form", ["losses", "losses and weights"])
@pytest.mark.parametrize("of", [curvature.diagonal, partial(rows)])
def test_the_fisher_matrix_takes_each_form(of, form):
    """Against the gradients of the examples, one by one."""
    batches = CASES["weighted"][1]
    gradients = [
        curvature.mean_gradient(plain(mean), PARAMS, jax.tree.map(lambda x: x[None], one))
        for one in [(INPUTS[i : i + 1], TARGETS[i : i + 1]) for i in range(12)]
    ]
    weights = WEIGHTS if form == "losses and weights" else np.ones(12)
    outer = [np.outer(g, g) for g in map(np.asarray, gradients)]
    expected = np.average(outer, axis=0, weights=weights)
    loss = plain(weighted if form == "losses and weights" else squares)
    if of is curvature.diagonal:
        found, expected = of(loss, PARAMS, batches, matrix="fisher"), np.diag(expected)
    else:
        found = of(loss, batches, matrix="fisher")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


SUMS = {
    "limits.loss_tolerance": limits.loss_tolerance,
    "pruning.magnitude_sweep": lambda *args: pruning.magnitude_sweep(*args, [0.5]),
    "pruning.smallest_mask": partial(pruning.smallest_mask, epsilon=EPSILON, key=KEY),
    "pruning.smallest_of_order": partial(
        pruning.smallest_of_order, order=jnp.arange(DIM), epsilon=EPSILON
    ),
    "pruning.dead_weights": partial(pruning.dead_weights, key=KEY),
    "studies.layer_limits": partial(studies.layer_limits, epsilon=EPSILON, key=KEY),
    "estimate_limit": partial(jaxlimit.estimate_limit, key=KEY),
    "prune_to": partial(jaxlimit.prune_to, epsilon=EPSILON, key=KEY),
    "study": partial(jaxlimit.study, key=KEY, settings=StudySettings(quiet=True)),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_refused(name):
    def total(params, batch):
        return squares(apply(params, batch), batch).sum()

    with pytest.raises(ValueError, match=r"must be the mean .* got their sum"):
        SUMS[name](total, PARAMS, CASES["repeated"][1])


def test_a_sweep_of_statistics_of_the_batch_says_so():
    def centred(params, batch):
        outputs = apply(params, batch)
        return jnp.mean((outputs - outputs.mean() - batch[1]) ** 2)

    with pytest.warns(UserWarning, match="no mean over independent examples"):
        pruning.magnitude_sweep(centred, PARAMS, CASES["repeated"][1], [0.5])

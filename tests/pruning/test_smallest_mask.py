"""The search against all 2ᴰ masks, by the true loss."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from annealed import annealed

from jaxlimit import curvature, pruning
from jaxlimit._core.weights import is_weight
from jaxlimit.pruning import masked

KEY = jax.random.key(0)
D = 10
NUM_SEEDS = 25

# Weights kept beyond the optimum over all masks, of ten: by the search, by magnitude. Means of 25
# random quadratics of a kind.
DISTANCES = {
    "plain": (0.04, 0.88),
    "zero rows": (0, 1.44),
    "rank one": (0, 0.6),
    "equal weights": (0.04, 3.28),
    "ties": (0, 0.88),
    "zero": (0, 0.16),
    "huge": (0, 0),
    "not at a minimum": (0.04, 1.32),
}


def squares(outputs, batch):
    return 0.5 * jnp.mean((outputs - batch[1]) ** 2)


LINEAR = curvature.split_loss(lambda w, batch: batch[0] @ w, squares)
ALL = np.array(list(itertools.product([False, True], repeat=D)))


def quadratic(kind, seed):
    """Weights, examples and ε of a linear network with square loss, which is its own quadratic."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(24, D)) * rng.uniform(0.1, 2, D)
    w, noise = rng.normal(size=D), 0.1 * rng.normal(size=24)
    epsilon = rng.uniform(0.1, 2)
    if kind == "zero rows":
        x[:, ::3] = 0
    if kind == "rank one":
        x = rng.normal(size=(24, 1)) * rng.normal(size=D)
    if kind == "equal weights":
        w = np.ones(D)
    if kind == "ties":
        x, w = np.repeat(x[:, :5], 2, 1), np.repeat(w[:5], 2)
    if kind == "zero":
        epsilon = 0.0
    if kind == "huge":
        epsilon = 1e6
    if kind == "not at a minimum":
        noise = rng.normal(size=D) @ x.T
    return w, (x[None], (x @ w + noise)[None]), epsilon


def smallest(w, batches, epsilon):
    """The optimum over all masks, in float64."""
    x, y = (np.float64(leaf[0]) for leaf in batches)
    losses = 0.5 * np.mean((x @ (ALL * np.float64(w)).T - y[:, None]) ** 2, 0)
    allowed = losses[-1] + epsilon
    # A mask at the edge may pass in one precision and not in the other.
    clear = losses <= allowed * (1 - 1e-5) if epsilon else losses <= allowed
    near = losses <= allowed * (1 + 1e-5)
    return ALL[near].sum(1).min(), ALL[clear].sum(1).min()


KINDS = ("plain", "zero rows", "rank one", "equal weights", "ties", "zero", "huge",
         "not at a minimum")  # fmt: skip


def search(w, batches, epsilon, dtype, methods=pruning.METHODS):
    w, batches = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (w, batches))
    return pruning.smallest_mask(LINEAR, w, batches, epsilon=epsilon, key=KEY, methods=methods)


def check(found, w, batches, epsilon):
    x, y = (leaf[0] for leaf in batches)
    value = lambda mask: 0.5 * np.mean((x @ np.where(mask, w, 0) - y) ** 2)  # noqa: E731
    least, most = smallest(w, batches, epsilon)
    assert found.num_kept >= least
    mask = np.asarray(found.mask)
    assert mask.sum() == found.num_kept == found.ratio * D
    np.testing.assert_allclose(found.loss, value(mask), rtol=1e-4, atol=1e-6)
    assert value(mask) <= value(np.ones(D, bool)) * (1 + 1e-5) + epsilon + 1e-7
    kept = {candidate.method: candidate.num_kept for candidate in found.candidates}
    assert found.num_kept == min(kept.values()) <= kept["magnitude"]
    # The loss is its own quadratic, so that the certificate binds every mask.
    assert found.certificate is None or found.certificate.num_kept <= most
    if found.shares is not None:
        np.testing.assert_allclose(
            sum(found.shares) * epsilon, found.loss - found.dense_loss, rtol=1e-3, atol=1e-6
        )
        assert abs(found.shares.remainder) * epsilon <= 1e-4 * (1 + found.loss)
    # Magnitude by definition: every count tried.
    order = np.argsort(np.argsort(-np.abs(np.float64(w)), kind="stable"))
    counts = [k for k in range(D) if value(order < k) <= found.dense_loss * (1 - 1e-6) + epsilon]
    assert least <= kept["magnitude"] <= min(counts, default=D)
    return found.num_kept - most, kept["magnitude"] - most


def distances(kind, seeds, dtype=jnp.float32):
    """Check each problem, the first few with their certificates, which take most of the time."""
    others = tuple(method for method in pruning.METHODS if method != "relaxed")
    found = []
    for seed in seeds:
        problem = quadratic(kind, seed)
        methods = pruning.METHODS if seed < 5 else others
        found.append(check(search(*problem, dtype, methods), *problem))
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
def test_quadratics_over_all_masks(kind):
    found, magnitude = distances(kind, range(NUM_SEEDS)).mean(0)
    assert 0 <= found <= DISTANCES[kind][0] + 0.005
    np.testing.assert_allclose(magnitude, DISTANCES[kind][1], atol=0.05)


@pytest.mark.parametrize("kind", ["plain", "rank one"])
def test_in_float64(kind):
    with jax.enable_x64(True):
        assert distances(kind, range(5), jnp.float64).min() >= 0


def cubes(outputs, batch):
    return jnp.mean(jnp.logaddexp(0.0, -outputs[:, 0] * batch[1]))


def tanh_net(params, batch):
    return jnp.tanh(batch[0] @ params["in"] + params["bias"]) @ params["out"]


def relu_net(params, batch):
    return jax.nn.relu(batch[0] @ params["in"] + params["bias"]) @ params["out"]


@pytest.mark.parametrize("net", [tanh_net, relu_net])
@pytest.mark.parametrize(
    ("seed", "l1", "epsilon"), [(0, 0.003, 0.02), (1, 0.01, 0.1), (2, 0, 0.05)]
)
def test_trained_networks_over_all_masks(net, seed, l1, epsilon):
    """Three inputs, three hidden units: 15 weights and 2^15 masks, by the true loss."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (1, 64, 3))
    batches = x, jnp.sign(x[..., 0] * x[..., 1] + 0.5 * x[..., 2])
    flat = jax.tree.map(lambda leaf: leaf[0], batches)
    params = {
        "in": jax.random.normal(keys[1], (3, 3)),
        "bias": jnp.zeros(3),
        "out": jax.random.normal(keys[2], (3, 1)),
    }
    loss = curvature.split_loss(net, cubes)
    params = annealed(loss, params, flat, rate=0.3, l1=l1, num_steps=400)
    weights, unflatten = jax.flatten_util.ravel_pytree(params)
    masks = jnp.array(list(itertools.product([False, True], repeat=15)))
    losses = jax.lax.map(lambda m: loss(unflatten(weights * m), flat), masks, batch_size=4096)
    allowed = float(losses[-1]) + epsilon
    least = int(masks[np.asarray(losses) <= allowed * (1 + 1e-5)].sum(1).min())
    found = pruning.smallest_mask(loss, params, batches, epsilon=epsilon, key=KEY)
    value = loss(pruning.apply_mask(params, found.mask), flat)
    assert value <= allowed * (1 + 1e-5)
    magnitude = next(c.num_kept for c in found.candidates if c.method == "magnitude")
    assert least <= found.num_kept <= min(magnitude, least + 2)


def test_a_loss_that_is_not_split_has_no_certificate_and_still_a_mask():
    w, batches, epsilon = quadratic("plain", 0)
    whole = lambda w, batch: squares(batch[0] @ w, batch)  # noqa: E731
    w, batches = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (w, batches))
    found = pruning.smallest_mask(whole, w, batches, epsilon=epsilon, key=KEY)
    assert found.certificate is None
    assert any("make it by curvature.split_loss" in note for note in found.notes)
    assert found.loss <= found.dense_loss + epsilon


def test_where_and_operands_and_ragged_batches():
    """Frozen leaves stay, and a loss with operands over ragged batches is the same problem."""
    w, (x, y), epsilon = quadratic("plain", 3)
    w, x, y = (jnp.asarray(leaf, jnp.float32) for leaf in (w, x[0], y[0]))
    ragged = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    loss = curvature.split_loss(
        lambda p, batch, scale: scale * (batch[0] @ p["kernel"]) + p["norm"], squares
    )
    params = {"kernel": w / 2, "norm": jnp.zeros(())}
    found = pruning.smallest_mask(loss, params, ragged, 2.0, epsilon=epsilon, key=KEY)
    one = search(w, (x[None], y[None]), epsilon, jnp.float32)
    assert found.num_kept == one.num_kept
    assert found.mask["norm"]
    assert found.mask["kernel"].sum() == found.num_kept


def test_only_magnitude_and_what_the_budget_does_not_hold():
    w, batches, epsilon = quadratic("plain", 1)
    settings = {"epsilon": epsilon, "key": KEY}
    w, batches = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (w, batches))
    found = pruning.smallest_mask(LINEAR, w, batches, methods=("magnitude",), **settings)
    assert [c.method for c in found.candidates] == ["magnitude"]
    found = pruning.smallest_mask(LINEAR, w, batches, budget=pruning.Budget(memory=0), **settings)
    assert any("greedy" in note for note in found.notes)
    # Five weights at a time: greedy on the most salient ones, the others removed before.
    some = pruning.smallest_mask(
        LINEAR, w, batches, budget=pruning.Budget(memory=5 * 5 * 4), **settings
    )
    assert "greedy" in [c.method for c in some.candidates]
    assert some.loss <= some.dense_loss + epsilon


def test_by_the_factor_where_the_matrix_does_not_fit():
    """Four examples, ten weights: 40 numbers of the factor, 100 of the matrix."""
    w, (x, y), epsilon = quadratic("plain", 4)
    w, x, y = (jnp.asarray(leaf, jnp.float32) for leaf in (w, x[:, :4], y[:, :4]))
    settings = {"epsilon": epsilon, "key": KEY, "methods": ("saliency", "relaxed", "greedy")}
    dense = pruning.smallest_mask(LINEAR, w, (x, y), **settings)
    budget = pruning.Budget(memory=4 * 60)
    factored = pruning.smallest_mask(LINEAR, w, (x, y), budget=budget, **settings)
    kept = [[c.num_kept for c in found.candidates] for found in (dense, factored)]
    assert kept[0] == kept[1]
    assert len(kept[1]) == 4
    assert abs(factored.certificate.num_kept - dense.certificate.num_kept) <= 1


def test_zeros_alone_keep_nothing():
    _, batches, epsilon = quadratic("plain", 1)
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), batches)
    found = pruning.smallest_mask(LINEAR, jnp.zeros(D), batches, epsilon=epsilon, key=KEY)
    assert found.num_kept == 0
    assert not found.mask.any()


def test_repr_is_short():
    w, batches, epsilon = quadratic("plain", 1)
    lines = repr(search(w, batches, epsilon, jnp.float32)).splitlines()
    assert 3 < len(lines) < 12
    assert lines[0].startswith("MaskSearch: ")


def test_many_batches_are_located_on_fewer():
    """A guess from every eighth batch, wherever it lies, ends at the same count."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(40, 8, D)), rng.normal(size=D)
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (x, x @ w))
    whole = tuple(leaf.reshape(1, 320, *leaf.shape[2:]) for leaf in batches)
    w = jnp.asarray(w, jnp.float32)
    one, two = (search(w, data, 0.7, jnp.float32) for data in (whole, batches))
    assert one.num_kept == two.num_kept
    problem = masked.masked_loss(LINEAR, w, batches, (), is_weight, None)
    order = pruning.order_by(jnp.abs(w))
    accept = lambda losses: losses <= 0.7  # noqa: E731
    counts = {masked.smallest_along(problem, order, accept, guess=g).num_kept for g in range(D + 1)}
    assert counts == {masked.smallest_along(problem, order, accept).num_kept}


def test_losses_of_examples_with_weights():
    """Padding rows of weight 0 change nothing, whatever they hold."""
    w, batches, epsilon = quadratic("plain", 2)
    w, (x, y) = jnp.asarray(w, jnp.float32), jax.tree.map(jnp.asarray, batches)
    weighted = lambda w, batch: (0.5 * (batch[0] @ w - batch[1]) ** 2, batch[2])  # noqa: E731
    padded = jnp.pad(x, ((0, 0), (0, 8), (0, 0)), constant_values=9.0), jnp.pad(y, ((0, 0), (0, 8)))
    padded = (*padded, jnp.pad(jnp.ones_like(y), ((0, 0), (0, 8))))
    settings = {"epsilon": epsilon, "key": KEY, "methods": ("live magnitude",)}
    found = pruning.smallest_mask(weighted, w, padded, **settings)
    expected = pruning.smallest_mask(LINEAR, w, (x, y), **settings)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


def test_a_sum_is_refused():
    w, batches, _ = quadratic("plain", 0)
    total = curvature.split_loss(
        lambda w, batch: batch[0] @ w, lambda outputs, batch: ((outputs - batch[1]) ** 2).sum()
    )
    with pytest.raises(ValueError, match="sum"):
        pruning.smallest_mask(total, jnp.asarray(w, jnp.float32), batches, epsilon=1.0, key=KEY)


def test_bad_input():
    w, batches, _ = quadratic("plain", 0)
    with pytest.raises(ValueError, match="epsilon must lie"):
        search(w, batches, -1.0, jnp.float32)
    with pytest.raises(ValueError, match="epsilon must lie"):
        search(w, batches, float("nan"), jnp.float32)
    with pytest.raises(ValueError, match="methods must be one of"):
        pruning.smallest_mask(LINEAR, w, batches, epsilon=1.0, key=KEY, methods=("magic",))
    with pytest.raises(TypeError, match="budget must be a Budget"):
        pruning.smallest_mask(LINEAR, w, batches, epsilon=1.0, key=KEY, budget=3)
    nan = curvature.split_loss(lambda w, batch: batch[0] @ w * jnp.nan, squares)
    with pytest.raises(FloatingPointError, match="finite"):
        pruning.smallest_mask(nan, jnp.ones(D), batches, epsilon=1.0, key=KEY)

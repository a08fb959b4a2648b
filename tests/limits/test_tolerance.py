"""ε of losses that are no plain means over examples, and at every scale and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlimit
from jaxlimit import Estimate, limits, pruning

RNG = np.random.default_rng(0)
X = RNG.standard_normal((480, 3)).astype(np.float32)
Y = (X @ [1.0, -1.0, 0.5] + RNG.standard_normal(480)).astype(np.float32)
W = jnp.array([0.5, -0.5, 1.0])
LOSSES = (X.astype(float) @ [0.5, -0.5, 1.0] - Y) ** 2


def squares(w, batch):
    return (batch[0] @ w - batch[1]) ** 2


def mean(w, batch):
    return jnp.mean(squares(w, batch))


def batches_of(size, *more):
    return tuple(leaf.reshape(-1, size, *leaf.shape[1:]) for leaf in (X, Y, *more))


def measure(loss, batches, **settings):
    with pytest.warns(UserWarning, match="loss") as warned:
        found = limits.loss_tolerance(loss, W, batches, **settings)
    return found, str(warned[0].message)


@pytest.mark.parametrize("s", [1e-15, 1e-10, 1.0, 1e5, 1e9, 1e15])
def test_the_tolerance_follows_the_unit_of_the_loss(s):
    found = limits.loss_tolerance(lambda w, b: mean(w, b) * s * s, W, batches_of(16))
    plain = limits.loss_tolerance(mean, W, batches_of(16))
    np.testing.assert_allclose(np.array([*found]), np.array([*plain]) * s * s, rtol=1e-4)
    assert plain.value == pytest.approx(LOSSES.std() / 128**0.5, rel=1e-4)


def test_a_large_offset_takes_nothing_off_the_spread():
    found = limits.loss_tolerance(lambda w, b: mean(w, b) + 1e5, W, batches_of(16))
    assert found.value == pytest.approx(LOSSES.std() / 128**0.5, rel=2e-3)


def test_narrow_losses_are_added_in_float32():
    # In bfloat16 a mean of thousands stands still.
    narrow = lambda w, b: mean(w, b).astype(jnp.bfloat16)  # noqa: E731
    found = limits.loss_tolerance(narrow, W, batches_of(16))
    assert found.value == pytest.approx(LOSSES.std() / 128**0.5, rel=1e-2)


def test_a_tolerance_serves_as_a_number():
    epsilon = limits.loss_tolerance(mean, W, batches_of(16))
    value = float(epsilon)
    assert (f"{epsilon:.3f}", float(2 * epsilon)) == (f"{value:.3f}", 2 * value)
    assert float(jnp.float32(1) + epsilon) == pytest.approx(1 + value)
    assert float(np.float32(1) + epsilon) == pytest.approx(1 + value)
    assert np.asarray(epsilon).shape == jnp.asarray(epsilon).shape == ()
    assert limits.ridge(2.0, epsilon) == limits.ridge(2.0, value)
    assert limits.loss_tolerance_estimate is limits.loss_tolerance


def test_estimates_scale_and_shift_as_a_whole():
    estimate = Estimate(2.0, 0.5, 1.0, 4.0)
    assert tuple(estimate * -2) == (-4.0, 1.0, -8.0, -2.0)
    assert tuple(estimate / 2) == (1.0, 0.25, 0.5, 2.0)
    assert tuple(estimate - 1) == (1.0, 0.5, 0.0, 3.0)
    assert tuple(1 + estimate) == (3.0, 0.5, 2.0, 5.0)


# --- losses that are no means ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 60])
def test_a_sum_is_refused(size):
    with pytest.raises(ValueError, match=r"must be the mean .* got their sum"):
        limits.loss_tolerance(lambda w, b: squares(w, b).sum(), W, batches_of(size))


def test_a_sum_over_ragged_batches_is_refused():
    ragged = [(X[:7], Y[:7]), (X[7:20], Y[7:20])]
    with pytest.raises(ValueError, match="got their sum"):
        limits.loss_tolerance(lambda w, b: squares(w, b).sum(), W, ragged)


def test_a_batch_of_one_is_mean_and_sum_alike():
    found = limits.loss_tolerance(lambda w, b: squares(w, b).sum(), W, batches_of(1))
    assert found.value == pytest.approx(LOSSES.std() / 128**0.5, rel=1e-4)


def contrastive(w, batch):
    scores = jnp.outer(batch[0] @ w, batch[1]) / 4
    return jnp.mean(jax.nn.logsumexp(scores, 1) - jnp.diag(scores))


def normalized(w, batch):
    out = batch[0] @ w
    return jnp.mean(((out - out.mean()) / (out.std() + 1e-3) - batch[1]) ** 2)


@pytest.mark.parametrize("loss", [contrastive, normalized])
def test_losses_that_exist_by_batch_are_measured_from_batches(loss):
    found, said = measure(loss, batches_of(24), batch_size=48)
    by_batch = [float(loss(W, (X[i : i + 24], Y[i : i + 24]))) for i in range(0, 480, 24)]
    assert found.value == pytest.approx(np.std(by_batch, ddof=1) / 2**0.5, rel=1e-3)
    assert "no mean over independent examples" in said
    assert "20 batches of 24 examples" in said
    assert found.standard_error >= 0.99 * found.value / 38**0.5


def test_batches_of_unequal_size_count_by_their_examples():
    sizes = [40, 8] * 6
    ragged = [
        (X[end - n : end], Y[end - n : end]) for n, end in zip(sizes, np.cumsum(sizes), strict=True)
    ]
    found, _ = measure(contrastive, ragged, batch_size=48)
    by_batch = np.array([float(contrastive(W, batch)) for batch in ragged])
    deviations = by_batch - np.average(by_batch, weights=sizes)
    variance = np.sum(sizes * deviations**2) / (len(sizes) - 1)
    assert found.value == pytest.approx((variance / 48) ** 0.5, rel=1e-4)


def test_batches_of_a_mean_measure_the_tolerance_of_its_examples():
    """A loss with a host callback has no batch of one under `vmap`, and is a mean all the same."""

    def on_host(w, batch):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(
            lambda w, x, y: np.float32(np.mean((np.asarray(x) @ np.asarray(w) - y) ** 2)),
            shape,
            w,
            *batch,
        )

    found, said = measure(on_host, batches_of(8))
    assert "single examples cannot be had" in said
    assert found.lower < LOSSES.std() / 128**0.5 < found.upper
    assert found.value == pytest.approx(LOSSES.std() / 128**0.5, rel=0.3)


def test_a_mixture_by_ragged_products_is_measured_from_batches():
    experts = jnp.stack([W, -W])[..., None]

    def mixture(w, batch):
        order = jnp.argsort(batch[1] > 0)
        sizes = jnp.bincount(batch[1] > 0, length=2).astype(jnp.int32)
        out = jax.lax.ragged_dot(batch[0][order], experts * w[None, :, None], sizes)
        return jnp.mean((out[:, 0] - batch[1][order]) ** 2)

    with_callback = limits.tolerance.measure_tolerance(mixture, W, batches_of(16))
    assert with_callback.epsilon.value > 0


def weighted(w, batch):
    positive = batch[1] > 1.5
    weights = jnp.where(positive, 20.0, 1.0)
    return jnp.sum(weights * squares(w, batch)) / jnp.sum(weights)


def test_a_weighted_mean_is_measured_near_its_bootstrap():
    found, said = measure(weighted, batches_of(32), batch_size=32)
    draws = [RNG.integers(0, 480, 32) for _ in range(400)]
    spread = np.std([float(weighted(W, (X[i], Y[i]))) for i in draws])
    assert "no mean over independent examples" in said
    assert found.lower < spread < found.upper
    plain = LOSSES.std() / 32**0.5
    assert abs(plain / spread - 1) > 0.15  # what the examples alone would have said


def pair(w, batch):
    return squares(w, batch), jnp.where(batch[1] > 1.5, 20.0, 1.0)


def test_a_pair_of_losses_and_weights_is_measured_as_its_bootstrap():
    found = limits.loss_tolerance(pair, W, batches_of(32), batch_size=64)
    draws = [RNG.integers(0, 480, 64) for _ in range(2000)]
    weights = np.where(Y > 1.5, 20.0, 1.0)
    spread = np.std([np.sum((weights * LOSSES)[i]) / np.sum(weights[i]) for i in draws])
    # By the delta method, which a ratio of 64 bears out to a few percent.
    assert found.value == pytest.approx(spread, rel=0.1)
    exact = np.average(LOSSES, weights=weights)
    deviations = weights * (LOSSES - exact) / weights.mean()
    expected = np.sqrt(np.mean(deviations**2) / 64)
    assert found.value == pytest.approx(expected, rel=1e-4)
    fourth = np.mean(deviations**4)
    error = np.sqrt((fourth - np.mean(deviations**2) ** 2) / 480 / 64) / (
        2 * np.sqrt(np.mean(deviations**2))
    )
    assert found.standard_error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("rows", [24, 40, 96])
def test_rows_of_weight_zero_change_nothing(rows):
    """Batches of 16 real examples, filled up with others that do not count."""
    plain = limits.loss_tolerance(lambda w, b: squares(w, b), W, batches_of(16))
    mask = np.zeros((30, rows), np.float32)
    mask[:, :16] = 1
    x, y = (RNG.standard_normal((30, rows, *leaf.shape[1:])).astype(np.float32) for leaf in (X, Y))
    x[:, :16], y[:, :16] = X.reshape(30, 16, 3), Y.reshape(30, 16)
    found = limits.loss_tolerance(lambda w, b: (squares(w, b[:2]), b[2]), W, (x, y, mask))
    np.testing.assert_allclose(np.array([*found]), np.array([*plain]), rtol=1e-4)


def test_tokens_of_ragged_sequences_count_each():
    lengths = RNG.integers(1, 9, 60)
    mask = (np.arange(8) < lengths[:, None]).astype(np.float32)
    x, y = X.reshape(60, 8, 3), Y.reshape(60, 8)

    def tokens(w, batch):
        return (batch[0] @ w - batch[1]) ** 2, batch[2]

    cut = tuple(leaf.reshape(6, 10, *leaf.shape[1:]) for leaf in (x, y, mask))
    found = limits.loss_tolerance(tokens, W, cut)
    losses = LOSSES.reshape(60, 8)
    exact = np.sum(losses * mask) / mask.sum()
    deviations = np.sum(mask * (losses - exact), 1) / mask.sum(1).mean()
    assert found.value == pytest.approx(np.sqrt(np.mean(deviations**2) / 128), rel=1e-4)


def test_losses_of_examples_that_depend_on_their_batch_are_seen():
    def each(w, batch):
        out = batch[0] @ w
        return (out - out.mean() - batch[1]) ** 2

    _, said = measure(each, batches_of(16))
    assert "no mean over independent examples" in said


def test_returned_losses_are_taken_at_their_word_without_a_batch_of_one():
    fixed = lambda w, b: squares(w, (b[0].reshape(24, 3), b[1].reshape(24)))  # noqa: E731
    found = limits.loss_tolerance(fixed, W, batches_of(24))
    assert found.value == pytest.approx(LOSSES.std() / 128**0.5, rel=1e-4)


def test_rows_of_padding_are_seen():
    mask = np.ones(480, np.float32)
    mask.reshape(20, 24)[:, 16:] = 0

    def padded(w, batch):
        return jnp.sum(batch[2] * squares(w, batch[:2])) / jnp.sum(batch[2])

    _, said = measure(padded, batches_of(24, mask))
    assert "rows of padding" in said
    safe = lambda w, b: jnp.sum(b[2] * squares(w, b[:2])) / jnp.maximum(b[2].sum(), 1)  # noqa: E731
    _, said = measure(safe, batches_of(24, mask))
    assert "no mean over independent examples" in said


def test_weights_go_through_a_sweep_and_a_limit():
    ratios, weights = [0.34, 1.0], np.where(Y > 1.5, 20.0, 1.0)
    sweep = pruning.magnitude_sweep(pair, W, batches_of(32), ratios)
    for row, kept in enumerate(([0.0, 0.0, 1.0], [0.5, -0.5, 1.0])):
        losses = (X.astype(float) @ kept - Y) ** 2
        assert sweep.losses[row] == pytest.approx(np.average(losses, weights=weights), rel=1e-4)
    settings = {"key": jax.random.key(0), "num_steps": 3}
    found = [jaxlimit.estimate_limit(pair, W, batches_of(size), **settings) for size in (16, 48)]
    hessian = 2 * (X.T.astype(float) * weights) @ X / weights.sum()
    for estimate in found:
        assert not any("no mean" in reason for reason in estimate.reasons)
        assert estimate.largest == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)
        assert estimate.epsilon == pytest.approx(float(found[0].epsilon), rel=1e-5)
        assert estimate.prediction.ratio == found[0].prediction.ratio


def test_one_batch_of_a_loss_by_batch_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 batches .*or give epsilon"):
        limits.loss_tolerance(contrastive, W, batches_of(480))


def test_losses_for_one_size_of_batch_alone_are_measured_from_batches():
    fixed = lambda w, b: mean(w, (b[0].reshape(24, 3), b[1].reshape(24)))  # noqa: E731
    found, said = measure(fixed, batches_of(24))
    assert "only batches of one size" in said
    assert found.lower < LOSSES.std() / 128**0.5 < found.upper


@pytest.mark.parametrize(
    ("draw", "truth", "least"),
    [
        (lambda size: RNG.exponential(size=size), 1.0, 0.91),
        (lambda size: RNG.uniform(size=size), 12**-0.5, 0.93),
        (lambda size: RNG.standard_normal(size) ** 2, 2**0.5, 0.90),
    ],
)
def test_the_interval_covers_what_its_docstring_says(draw, truth, least):
    spread = jax.jit(jax.vmap(lambda x: limits.tolerance._spread(x, None, 1)))
    found = spread(jnp.asarray(draw((2000, 1000)), jnp.float32))
    covered = np.mean((found.lower <= truth) & (truth <= found.upper))
    assert least < covered < 0.97  # known to half a percent


@pytest.mark.parametrize("num_batches", [2, 4, 20])
def test_the_interval_from_few_batches_covers(num_batches):
    sizes = np.full(num_batches, 4)
    draws = np.random.default_rng(1).standard_normal((20_000, num_batches))
    losses = jnp.asarray(draws / 2, jnp.float32)

    def one(row):
        known = limits._examples.ExampleLosses(row, sizes, None, None)
        return limits.tolerance._spread_of_batches(known, 1, "")

    found = jax.vmap(one)(losses)
    covered = np.mean((found.lower <= 1) & (found.upper >= 1))
    assert covered > 0.94
    assert np.mean(found.value**2) == pytest.approx(1, rel=0.05)

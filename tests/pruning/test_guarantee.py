import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlimit import pruning

RNG = np.random.default_rng(0)


def by_the_book(mean, level, n):
    """Hoeffding-Bentkus from the papers' formulas, one number at a time, by `scipy.stats`."""
    a = min(mean, level)
    entropy = stats.entropy([a, 1 - a], [level, 1 - level])
    bentkus = np.e * stats.binom.cdf(np.ceil(n * mean), n, level)
    return min(np.exp(-n * entropy), bentkus, 1.0)


@pytest.mark.parametrize("n", [1, 20, 1000, 20_000])
@pytest.mark.parametrize("level", [0.01, 0.3, 0.505, 0.9])
def test_p_values_against_scipy_stats(n, level):
    means = np.concatenate([[0.0, level, 1.0], level * RNG.random(6), RNG.random(4)])
    expected = [by_the_book(mean, level, n) for mean in means]
    np.testing.assert_allclose(pruning.hoeffding_bentkus(means, level, n), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [5, 40])
def test_p_values_are_valid_for_coins(n):
    """P(p ≤ δ) ≤ δ at the edge of the hypothesis, exactly, over all outcomes of n coins."""
    for level in (0.1, 0.4, 0.7):
        counts = np.arange(n + 1)
        p_values = pruning.hoeffding_bentkus(counts / n, level, n)
        chances = stats.binom.pmf(counts, n, level)
        for delta in (0.01, 0.05, 0.2):
            assert chances[p_values <= delta].sum() <= delta


@pytest.mark.parametrize("kind", ["correctness", "bounded"])
def test_the_promised_error_rate_holds_over_2000_data_sets(kind):
    """The hardest case: from some ratio on the true rise is just above ε."""
    n, epsilon, delta, ratios = 400, 0.1, 0.1, [0.8, 0.4, 0.2, 0.1, 0.05]
    true = np.array([0.0, 0.02, 0.1001, 0.1001, 0.3])
    wrong, passed = 0, []
    for _ in range(2000):
        broken = RNG.random(n) < true[:, None]
        if kind == "correctness":
            dense = np.ones(n, bool)
            found = pruning.guaranteed_ratio(dense, ~broken, ratios, epsilon=epsilon, delta=delta)
        else:
            dense = np.full(n, 2.0)
            found = pruning.guaranteed_ratio(
                dense, dense + 2 * broken, ratios, epsilon=2 * epsilon, delta=delta, bounds=(2, 4)
            )
        wrong += found.num_passed > 2
        passed.append(found.num_passed)
    assert wrong / 2000 <= delta
    assert np.mean(np.array(passed) >= 1) > 0.5  # and it is not for want of an answer


def test_stops_at_the_first_that_is_not_rejected():
    """A later ratio that would pass is out of reach."""
    dense = np.ones(3000, bool)
    pruned = np.arange(3000) >= np.array([[0], [900], [0]])
    found = pruning.guaranteed_ratio(dense, pruned, [0.5, 0.3, 0.1], epsilon=0.1)
    assert (found.ratio, found.num_passed) == (0.5, 1)
    assert found.p_values[2] < 0.05
    np.testing.assert_allclose(found.mean_rises, [0, 0.3, 0])
    none = pruning.guaranteed_ratio(dense, pruned[1:2], [0.3], epsilon=0.1)
    assert (none.ratio, none.num_passed) == (1.0, 0)


def test_scale_and_pairs():
    """Losses times s and ε times s are the same test; only differences matter."""
    dense = RNG.random(2000)
    pruned = np.clip(dense + 0.05 * RNG.random((2, 2000)), 0, 1.09)
    one = pruning.guaranteed_ratio(dense, pruned, [0.2, 0.1], epsilon=0.2, bounds=(0, 1.1))
    two = pruning.guaranteed_ratio(
        50 * dense + 3, 50 * pruned + 3, [0.2, 0.1], epsilon=10, bounds=(3, 58)
    )
    np.testing.assert_allclose(one.p_values, two.p_values, rtol=1e-9)
    assert one.num_passed == 2


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_weighted_examples_by_the_book(share):
    """x = α + w (rise - ε) / width lies in [0, 1], and has a mean above α where ε is passed."""
    rng, n, width, epsilon = np.random.default_rng(1), 3000, 2 * 2.2, 0.6
    weights = rng.random(n) * (rng.random(n) >= share)
    dense = rng.random(n)
    pruned = np.stack([dense + rng.random(n) * rise for rise in (0.4, 0.9, 1.1)])
    found = pruning.guaranteed_ratio(
        dense, pruned, [0.3, 0.2, 0.1], epsilon=epsilon, bounds=(0, 2.2), weights=weights
    )
    w, rises = weights[weights > 0], (pruned - dense)[:, weights > 0]
    level = epsilon / width + 0.5
    means = [np.mean(level + w * (rise - epsilon) / width) for rise in rises]
    expected = [by_the_book(mean, level, len(w)) for mean in means]
    assert expected[0] < 0.05 < expected[-1] < 1
    np.testing.assert_allclose(found.p_values, expected, rtol=1e-9)
    np.testing.assert_allclose(found.mean_rises, [np.average(rise, weights=w) for rise in rises])


def test_a_ratio_passes_up_to_delta_and_no_further():
    dense = np.ones(3000, bool)
    pruned = np.arange(3000)[None] >= 200
    p = pruning.guaranteed_ratio(dense, pruned, [0.3], epsilon=0.1).p_values[0]
    assert 1e-9 < p < 0.5
    for delta, passes in ((p, 1), (0.99 * p, 0)):
        found = pruning.guaranteed_ratio(dense, pruned, [0.3], epsilon=0.1, delta=delta)
        assert found.num_passed == passes


def test_enough_examples_are_those_with_which_nothing_changed_passes():
    level, delta = 0.55, 0.05  # ε = .1 of correctness
    passes = [by_the_book(0.5, level, n) <= delta for n in range(1, 800)]
    # The part by the binomial goes up and down with n a little.
    few, enough = passes.index(True), len(passes) - passes[::-1].index(False)
    for n, raises in ((few, True), (enough + 1, False)):
        dense = np.ones(n, bool)
        if raises:
            with pytest.raises(ValueError, match="too few"):
                pruning.guaranteed_ratio(dense, dense[None], [0.5], epsilon=0.1, delta=delta)
        else:
            found = pruning.guaranteed_ratio(dense, dense[None], [0.5], epsilon=0.1, delta=delta)
            assert found.num_passed == 1


def test_losses_of_held_out_examples():
    loss = lambda w, batch, s: jnp.mean(s * (batch[0] @ w - batch[1]) ** 2)  # noqa: E731
    x, y = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3))
    w, mask = RNG.normal(size=4), np.array([True, False, True, True])
    batches = [
        (jnp.asarray(x[0]), jnp.asarray(y[0])),
        (jnp.asarray(x[1, :2]), jnp.asarray(y[1, :2])),
    ]
    dense, pruned = pruning.held_out_losses(loss, jnp.asarray(w), [mask], batches, 2.0)
    x, y = x.reshape(6, 4)[:5], y.reshape(6)[:5]
    np.testing.assert_allclose(dense, 2 * (x @ w - y) ** 2, rtol=1e-4)
    np.testing.assert_allclose(pruned[0], 2 * (x @ (w * mask) - y) ** 2, rtol=1e-4)


def test_the_training_data_are_not_held_out():
    loss, x = lambda w, x: jnp.mean(x @ w), jnp.ones((1, 3, 2))
    with pytest.warns(UserWarning, match="unseen data"):
        pruning.held_out_losses(loss, jnp.ones(2), [jnp.ones(2, bool)], x, trained_on=[x])


def test_bad_input():
    dense, run = np.zeros(1000), pruning.guaranteed_ratio
    settings = {"epsilon": 0.2, "bounds": (0, 1)}
    with pytest.raises(ValueError, match="cross-entropy"):
        run(dense, dense[None], [0.5], epsilon=0.2)
    with pytest.raises(ValueError, match="bounds"):
        run(dense, dense[None], [0.5], epsilon=0.2, bounds=(0, np.inf))
    with pytest.raises(TypeError, match="bounds must be real numbers"):
        run(dense, dense[None], [0.5], epsilon=0.2, bounds="ab")
    with pytest.raises(ValueError, match="bounds must be a pair"):
        run(dense, dense[None], [0.5], epsilon=0.2, bounds=(0, 1, 2))
    with pytest.raises(ValueError, match="pruned_losses must lie within"):
        run(dense, dense[None] + 1.5, [0.5], **settings)
    with pytest.raises(ValueError, match="dense_losses must lie within"):
        run(dense * np.nan, dense[None], [0.5], **settings)
    with pytest.raises(ValueError, match="about 116 would do"):
        run(dense[:10], dense[None, :10], [0.5], epsilon=0.45, bounds=(0, 2))
    with pytest.raises(ValueError, match="falling from dense to sparse"):
        run(dense, np.stack([dense] * 2), [0.1, 0.5], **settings)
    with pytest.raises(ValueError, match="same examples"):
        run(dense, dense[None, :5], [0.5], **settings)
    with pytest.raises(ValueError, match="epsilon"):
        run(dense, dense[None], [0.5], epsilon=0.0, bounds=(0, 1))
    with pytest.raises(ValueError, match="delta"):
        run(dense, dense[None], [0.5], delta=1.0, **settings)
    with pytest.raises(ValueError, match="both correctness"):
        run(dense > 1, dense[None], [0.5], **settings)
    with pytest.raises(ValueError, match="at least one mask"):
        pruning.held_out_losses(lambda w, x: jnp.mean(x @ w), jnp.ones(2), [], jnp.ones((1, 3, 2)))

"""Pruning in rounds against their definitions: what is kept, where it goes back to, what moves."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxlimit import curvature, pruning, training
from jaxlimit.pruning import retraining

CONFIG = training.TrainingConfig(
    epochs=5, learning_rate=0.1, batch_size=16, schedule="cosine", momentum=0.0
)
DIM = 16 * 12 + 12 + 12 * 3 + 3


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(12)(images.reshape(len(images), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=64).astype(np.int32)
    images = rng.integers(0, 256, (64, 4, 4, 1)) // 2 + 60 * (labels[:, None, None, None] == 1)
    return images.astype(np.uint8), labels


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return np.concatenate(
        [
            np.ravel(leaf)
            for name, (_, leaf) in zip(names, leaves, strict=True)
            if curvature.is_weight(name, leaf)
        ]
    )


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_the_cubic_schedule_against_the_papers_formula():
    s_start, s_end, t = 0.1, 0.9, np.linspace(0, 1, 7)
    sparsity = s_end + (s_start - s_end) * (1 - t) ** 3
    kept = retraining.cubic_ratio(t, 1 - s_end, initial=1 - s_start)
    np.testing.assert_allclose(kept, 1 - sparsity, rtol=1e-12)
    assert (np.diff(kept) < 0).all()
    np.testing.assert_allclose(retraining.cubic_ratio([-1.0, 2.0], 0.3), [1.0, 0.3])
    with pytest.raises(ValueError, match="ratio must lie in"):
        retraining.cubic_ratio(0.5, 1.5)


def test_masks_shrink_within_what_is_left_whatever_is_zero():
    rng = np.random.default_rng(1)
    params = {"a": rng.normal(size=(5, 4)).astype(np.float32), "norm": np.ones(3, np.float32)}
    params["a"][:2] = 0
    mask = {"a": rng.random((5, 4)) < 0.7, "norm": np.zeros(3, bool)}
    before = mask["a"].ravel()
    for num_kept in range(21):
        shrunk = retraining.shrink_mask(params, mask, num_kept / 20)
        after = np.asarray(shrunk["a"]).ravel()
        assert after.sum() == min(num_kept, before.sum())
        assert not (after & ~before).any()
        left, gone = (np.abs(params["a"].ravel()[before & marks]) for marks in (after, ~after))
        assert min(left, default=np.inf) >= max(gone, default=0)
        assert shrunk["norm"].all()
    first = retraining.shrink_mask(params, None, 0.35)
    same(first, pruning.magnitude_mask(params, 0.35))
    with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got 1.5"):
        retraining.shrink_mask(params, None, 1.5)


def test_gradual_pruning_is_a_training_with_masks_that_shrink(data):
    """Followed by hand with `training.fit`; without momentum nothing is lost between the parts."""
    found = retraining.gradual(Net(), data, CONFIG, 0.1, num_rounds=2, prune_until=3)
    first = training.fit(Net(), data, CONFIG, between=(0, 2))
    half = pruning.magnitude_mask(first.params, 0.1 + 0.9 / 8)
    second = training.fit(Net(), data, CONFIG, start=first, mask=half, between=(2, 3))
    kept = np.abs(flat(second.params)).argsort()[::-1][: round(0.1 * DIM)]
    np.testing.assert_array_equal(np.flatnonzero(flat(found.mask)), np.sort(kept))
    last = training.fit(Net(), data, CONFIG, start=second, mask=found.mask, between=(3, 5))
    same((found.params, found.state), (last.params, last.state))
    assert found.history.epoch.tolist() == [1, 2, 3, 4, 5]
    assert np.count_nonzero(flat(found.params)) == round(0.1 * DIM)
    assert (np.count_nonzero(flat(half)), flat(half)[kept].all()) == (
        round((0.1 + 0.9 / 8) * DIM),
        True,
    )


def test_gradual_pruning_up_to_the_last_epoch_prunes_at_its_end(data):
    found = retraining.gradual(Net(), data, CONFIG, 0.0, num_rounds=5, prune_until=5)
    assert not flat(found.params).any()
    assert found.history.epoch.tolist() == [1, 2, 3, 4, 5]


def test_iterative_pruning_goes_back_to_the_early_weights(data):
    rounds = retraining.iterative(Net(), data, CONFIG, 0.25, num_rounds=2, rewind_epoch=1)
    early = training.fit(Net(), data, CONFIG, between=(0, 1))
    dense = training.fit(Net(), data, CONFIG)  # with no momentum its parts are the whole
    for found, ratio in zip(rounds, (0.5, 0.25), strict=True):
        mask = retraining.shrink_mask(dense.params, None, ratio)
        same(found.mask, mask)
        again = training.fit(Net(), data, CONFIG, start=early, mask=mask, between=(1, 5))
        same((found.params, found.state, found.history), (again.params, again.state, again.history))
        assert np.count_nonzero(flat(found.params)) == round(ratio * DIM)
        assert found.history.epoch.tolist() == [2, 3, 4, 5]
        dense = again
    assert not (flat(rounds[1].mask) & ~flat(rounds[0].mask)).any()


def test_going_back_to_the_initialisation_is_the_lottery_ticket(data):
    """With a rate of next to nothing the network that comes out is what it was initialised to."""
    still = dataclasses.replace(CONFIG, learning_rate=1e-30)
    params = Net().init(jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))["params"]
    [found] = retraining.iterative(Net(), data, still, 0.3, num_rounds=1, rewind_epoch=0)
    expected = pruning.apply_mask(params, pruning.magnitude_mask(params, 0.3))
    np.testing.assert_allclose(flat(found.params), flat(expected), rtol=0, atol=1e-25)


@pytest.mark.parametrize("name", ["gradual", "iterative"])
def test_rounds_go_on_where_they_were_interrupted(data, tmp_path, monkeypatch, name):
    config = dataclasses.replace(CONFIG, epochs=3, momentum=0.9)
    how = {"gradual": {"prune_until": 2}, "iterative": {"rewind_epoch": 1}}[name]
    call = lambda **more: getattr(retraining, name)(  # noqa: E731
        Net(), data, config, 0.2, num_rounds=2, **how, **more
    )
    whole = call()
    fit, calls = training.fit, []

    def die_in_the_third(*args, **kwargs):
        calls.append(kwargs["between"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", die_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            call(checkpoint_dir=tmp_path)
    same(call(checkpoint_dir=tmp_path), whole)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("gradual", {"prune_until": 1}, "prune_until must lie between num_rounds 2 and epochs 5"),
        ("gradual", {"prune_until": 6}, "prune_until must lie between"),
        ("gradual", {"prune_until": 5, "ratio": -0.1}, "ratio must lie in"),
        ("gradual", {"prune_until": 5, "num_rounds": 0}, "num_rounds must be at least 1"),
        ("iterative", {"rewind_epoch": 5}, "rewind_epoch must be below epochs 5, got 5"),
        ("iterative", {"rewind_epoch": -1}, "rewind_epoch must be at least 0"),
        ("iterative", {"rewind_epoch": 0, "ratio": 0.0}, r"ratio must lie in \(0"),
        ("iterative", {"rewind_epoch": 0, "seed": (0, 1)}, "config must be of one seed"),
    ],
)
def test_bad_rounds_are_refused_before_training(data, monkeypatch, name, settings, says):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it was trained"))
    seed = settings.pop("seed", 0)
    with pytest.raises(ValueError, match=says):
        getattr(retraining, name)(
            Net(),
            data,
            dataclasses.replace(CONFIG, seed=seed),
            **{"ratio": 0.2, "num_rounds": 2} | settings,
        )

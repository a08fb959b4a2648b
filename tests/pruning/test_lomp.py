"""Pruning a trained network in one shot, and fine-tuning it with the mask held."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxlimit import training
from jaxlimit.pruning import lomp

CONFIG = training.TrainingConfig(epochs=6, learning_rate=0.05, batch_size=16, l1=1e-3)


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(12)(images.reshape(len(images), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=96).astype(np.int32)
    images = rng.integers(0, 256, (96, 4, 4, 1)) // 2 + 60 * (labels[:, None, None, None] == 1)
    images[:, 0] += 60 * (labels[:, None, None] == 2)
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained(data):
    return training.fit(Net(), data, CONFIG)


def flat(params, *, dense=True):
    leaves = [params[name] for name in sorted(params) if name.startswith("Dense") == dense]
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(leaves)])


def test_without_fine_tuning_the_largest_weights_stay_as_they_are(data, trained):
    weights = flat(trained.params)
    kept = round(0.3 * weights.size)
    smallest = np.sort(np.abs(weights))[-kept]
    pruned = lomp.prune(Net(), data, trained, kept / weights.size)
    expected = np.where(np.abs(weights) >= smallest, weights, 0)
    np.testing.assert_array_equal(flat(pruned.params), expected)
    np.testing.assert_array_equal(
        flat(pruned.params, dense=False), flat(trained.params, dense=False)
    )
    assert pruned.history is None
    assert pruned.state is trained.state


def test_fine_tuning_holds_the_mask_and_lowers_the_loss(data, trained):
    finetune = training.TrainingConfig(epochs=10, learning_rate=0.02, batch_size=16)
    one_shot = lomp.prune(Net(), data, trained, 0.15)
    tuned = lomp.prune(Net(), data, trained, 0.15, finetune=finetune)
    np.testing.assert_array_equal(flat(tuned.mask), flat(one_shot.mask))
    assert (flat(tuned.params)[flat(one_shot.params) == 0] == 0).all()
    assert (flat(tuned.params) != flat(one_shot.params)).any()
    assert (flat(tuned.params, dense=False) != flat(trained.params, dense=False)).any()
    assert len(tuned.history.epoch) == 10
    before, after = (
        training.evaluate(Net(), p.params, p.state, data, normalization=trained.normalization).loss
        for p in (one_shot, tuned)
    )
    assert after < 0.8 * before


def test_everything_kept_is_the_trained_network(data, trained):
    jax.tree.map(
        np.testing.assert_array_equal, lomp.prune(Net(), data, trained, 1.0).params, trained.params
    )
    with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got 1\.5"):
        lomp.prune(Net(), data, trained, 1.5)


def test_several_seeds_are_refused_and_one_of_them_is_not(data, trained):
    both = training.fit(Net(), data, dataclasses.replace(CONFIG, seed=(0, 1)))
    with pytest.raises(ValueError, match="trained must be of one seed, got 2"):
        lomp.prune(Net(), data, both, 0.3)
    with pytest.raises(ValueError, match=r"finetune must be of one seed, got \(0, 1\)"):
        lomp.prune(Net(), data, trained, 0.3, finetune=dataclasses.replace(CONFIG, seed=(0, 1)))
    second = both._replace(
        params=jax.tree.map(lambda leaf: leaf[1], both.params),
        state=jax.tree.map(lambda leaf: leaf[1], both.state),
        history=both.history._replace(loss=both.history.loss[1]),
    )
    weights = flat(second.params)
    pruned = flat(lomp.prune(Net(), data, second, 0.3).params)
    kept = np.argsort(-np.abs(weights))[: round(0.3 * weights.size)]
    np.testing.assert_array_equal(np.flatnonzero(pruned), np.sort(kept))

"""What `fit` promises beside the step itself: what it refuses, keeps, notices and reports."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import models, training
from jaxlimit.training import (
    Monitor,
    Normalization,
    Start,
    TrainingConfig,
    identity,
    learning_rates,
)

SETTINGS = {"learning_rate": 0.1, "batch_size": 8, "momentum": 0.0}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 16).astype(np.int32)
    images = rng.integers(0, 200, (16, 2, 2, 1)) + 25 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


START = {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}


def linear(params, state, images, *, train, key):
    return images.reshape(len(images), -1) @ params["kernel"], state


def fit(data, module=linear, *, params=START, epochs=2, more=None, start=None, **settings):
    config = TrainingConfig(epochs=epochs, **SETTINGS | (more or {}))
    return training.fit(module, data, config, start=start or Start(params), **settings)


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(4)(images.reshape(len(images), -1))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


def test_arguments_are_checked_whether_they_are_used_or_not(data):
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        Monitor(checkpoint_every=0)
    with pytest.raises(ValueError, match="mesh must be given with shard_params"):
        fit(data, shard_params=True)


def test_the_given_normalization_is_taken(data):
    given = Normalization((10.0,), (300.0,))
    result = fit(data, start=Start(START, normalization=given))
    assert result.normalization == given
    floating = ((data[0].astype(np.float32) - 10) / 300, data[1])
    np.testing.assert_allclose(result.params["kernel"], fit(floating).params["kernel"], rtol=1e-5)
    measured = fit(data)
    assert measured.normalization == training.channel_statistics(data[0])
    assert np.abs(measured.params["kernel"] - result.params["kernel"]).max() > 1e-3


def test_every_checkpoint_is_of_its_own_mask_and_labels(data, tmp_path):
    mask = {"kernel": np.ones((4, 3), bool)}
    # Where the other mask is False, so that the weights alone do not tell them apart.
    start = {"kernel": START["kernel"].copy()}
    start["kernel"][2, 1] = 0
    at = Monitor(checkpoint_dir=tmp_path, checkpoint_every=10)
    fit(data, params=start, mask=mask, monitor=at)
    again = fit(data, params=start, mask=mask, monitor=at)
    assert again.resumed_from == 2  # the last epoch made one, whatever the interval
    other = {"kernel": mask["kernel"].copy()}
    other["kernel"][2, 1] = False
    with pytest.raises(ValueError, match=r"another run, which differs in checksum\.start"):
        fit(data, params=start, mask=other, monitor=at)
    labels = data[1].copy()
    labels[3] = (labels[3] + 1) % 3
    with pytest.raises(ValueError, match=r"another run, which differs in checksum\.data"):
        fit((data[0], labels), params=start, mask=mask, monitor=at)


def test_arrays_that_are_given_stay_the_callers(data):
    start = {"kernel": jnp.asarray(START["kernel"])}
    fit(data, params=start)
    np.testing.assert_array_equal(start["kernel"], START["kernel"])


def test_a_sharpness_aware_step_keeps_the_state_of_the_first_gradient(data):
    """BatchNorm follows the network, not the point uphill of it."""
    module = Net()
    step = {"batch_size": 16}
    plain = fit(data, module, params=None, epochs=1, more=step)
    aware = fit(data, module, params=None, epochs=1, more=step | {"sam_radius": 0.5})
    jax.tree.map(np.testing.assert_array_equal, aware.state, plain.state)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), aware.params, plain.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_batch_norm_sees_the_slices_of_a_batch_one_by_one(data):
    """Two slices move the running mean twice, by a tenth of the way each as Flax has it by 1 %."""
    module = Net()
    whole = fit(data, module, params=None, epochs=1, more={"batch_size": 16})
    sliced = fit(data, module, params=None, epochs=1, more={"batch_size": 16, "accumulate": 2})
    first, second = (r.state["batch_stats"]["BatchNorm_0"]["mean"] for r in (whole, sliced))
    # The slices' means average to the batch's; m·(1-m)·a + (1-m)·b against (1-m)·(a+b)/2.
    assert np.abs(second).sum() > 1.5 * np.abs(first).sum()


def test_a_state_that_is_not_finite_is_noticed_though_no_loss_shows_it(data):
    def module(params, state, images, *, train, key):
        logits, _ = linear(params, state, images, train=train, key=key)
        return logits, {"count": state["count"] * 1e30} if train else state

    start = Start(START, {"count": np.float32(1)})
    with pytest.raises(FloatingPointError, match="network's state stopped being finite in epoch 1"):
        fit(data, module, start=start)


def test_the_step_that_went_wrong_is_named(data):
    images = np.ones((16, 2, 2, 1), np.float32)
    images[5] = np.nan
    order_of = [
        next(
            step + 1
            for step in range(2)
            if 5
            in np.asarray(
                jax.random.permutation(
                    jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))[0], 16
                )
            )[8 * step : 8 * step + 8]
        )
        for seed in range(4)
    ]
    assert set(order_of) == {1, 2}
    for seed, step in enumerate(order_of):
        with pytest.raises(FloatingPointError, match=f"in epoch 1, step {step} of 2"):
            fit((images, data[1]), more={"seed": seed})


def test_each_epoch_has_its_own_order_and_reports_its_last_rate(data):
    config = TrainingConfig(epochs=3, schedule="cosine", **SETTINGS)
    result = training.fit(linear, data, config, start=Start(START))
    rates = learning_rates(config, 2)
    np.testing.assert_array_equal(result.history.learning_rate, rates[:, -1])
    assert (rates[:, -1] < rates[:, 0]).all()
    # With a rate of nearly nothing the first step of an epoch shows which images it met.
    still = {"learning_rate": 1e-20}
    seen = fit((data[0], np.zeros(16, np.int32)), epochs=6, more=still | {"batch_size": 11})
    assert len(set(np.asarray(seen.history.data_loss).round(6).tolist())) > 1


def test_only_the_first_process_writes_the_metrics(data, tmp_path, monkeypatch):
    fit(data, monitor=Monitor(metrics_path=tmp_path / "first.jsonl"))
    assert len((tmp_path / "first.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(jax, "process_index", lambda *_: 1)
    fit(data, monitor=Monitor(metrics_path=tmp_path / "second.jsonl"))
    assert not (tmp_path / "second.jsonl").exists()


def test_narrow_weights_take_a_reweighted_penalty_in_their_own_type(data):
    start = {"kernel": START["kernel"].astype(jnp.bfloat16)}
    result = fit(data, params=start, more={"l1": 0.01, "l1_delta": 0.1, "l1_method": "proximal"})
    assert result.params["kernel"].dtype == jnp.bfloat16
    weights = training.l1_weights(start, 0.1)["kernel"]
    assert weights.dtype == jnp.bfloat16
    expected = 1 / (np.abs(np.asarray(start["kernel"], np.float64)) + 0.1)
    np.testing.assert_allclose(np.asarray(weights, np.float64), expected, rtol=2**-8)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="nothing is measured elsewhere")
@pytest.mark.parametrize("fast", [False, True])
def test_a_run_in_bfloat16_goes_on_only_where_its_convolutions_round_as_before(fast, monkeypatch):
    monkeypatch.setattr(identity, "narrow_is_fast", lambda: fast)
    for dtype in (jnp.float32, jnp.bfloat16):
        net = models.create("resnet18", num_classes=2, dtype=dtype, stage_sizes=(1,), width=2)
        images = jnp.zeros((1, 8, 8, 3))
        variables = dict(jax.eval_shape(net.init, jax.random.key(0), images))
        params = variables.pop("params")
        example = params, variables, images
        config = TrainingConfig(epochs=1, **SETTINGS)
        told = identity.run_identity(net, config, params, example, {})
        assert told.get(identity.NARROW) == (fast if dtype == jnp.bfloat16 else None)

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from jaxlimit import training
from jaxlimit._core.digests import digests
from jaxlimit._core.memory import DeviceMemoryError
from jaxlimit.training import Monitor, Start, TrainingConfig, identity, loop


class Net(nn.Module):
    """A small net with everything that has state or randomness: BatchNorm and dropout."""

    num_classes: int = 3
    plain: bool = True
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, images, *, train=False):
        x = images.reshape(len(images), -1)
        x = nn.Dense(8, dtype=self.dtype)(x)
        if not self.plain:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.Dropout(0.25, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(nn.relu(x))


def linear(params, state, images, *, train, key):
    """Softmax regression as a bare function."""
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"], state


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 44).astype(np.int32)
    images = rng.integers(0, 200, (44, 4, 4, 1)) + 25 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def config(**settings):
    return TrainingConfig(**({"epochs": 4, "learning_rate": 0.1, "batch_size": 8} | settings))


def assert_same_bits(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def assert_close(tree, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, other)


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be a static int"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate"),
        ({"schedule": "cosin"}, ValueError, "'cosine'.*got 'cosin'"),
        ({"l1_method": "lasso"}, ValueError, "l1_method"),
        ({"l1": -1e-3}, ValueError, "l1"),
        ({"l2": math.inf}, ValueError, "l2"),
        ({"sam_radius": -0.1}, ValueError, "sam_radius"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"accumulate": 3}, ValueError, "accumulate must divide batch_size 8, got 3"),
        ({"augment": 1}, TypeError, "augment"),
        ({"warmup_epochs": 4}, ValueError, "warmup_epochs must be below epochs 4"),
        ({"schedule": "multi-step"}, ValueError, "milestones"),
        ({"milestones": (1,)}, ValueError, "milestones"),
        ({"schedule": "multi-step", "milestones": (3, 2)}, ValueError, "milestones"),
        (
            {"schedule": "multi-step", "milestones": (2, 4)},
            ValueError,
            "before the end at 4 epochs",
        ),
        ({"schedule": "multi-step", "milestones": 3}, TypeError, "milestones must be a tuple"),
        ({"decay": 0.0}, ValueError, "decay"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": ()}, ValueError, "seed"),
        ({"seed": (1, 1)}, ValueError, "seed"),
    ],
)
def test_config_names_the_field_at_fault(settings, error, says):
    with pytest.raises(error, match=says):
        config(**settings)


def test_numbers_of_numpy_become_python_numbers():
    counts = {"epochs": 4, "batch_size": 8, "accumulate": 2, "warmup_epochs": 1, "seed": 3}
    numbers = {"learning_rate": 0.5, "momentum": 0.25, "l1": 0, "l2": 1, "decay": 1}
    given = {name: np.int64(value) for name, value in counts.items()}
    given |= {name: np.float32(value) for name, value in numbers.items()} | {"l2": np.int32(1)}
    made = config(**given)
    assert made == config(**counts, **numbers)
    for name in (*counts, *numbers):
        assert type(getattr(made, name)) is (int if name in counts else float), name
    json.dumps(dataclasses.asdict(made))


def test_schedules_against_closed_forms():
    step = np.arange(40)
    cosine = training.learning_rates(config(schedule="cosine", learning_rate=0.5), 10)
    np.testing.assert_allclose(
        cosine.ravel(), 0.25 * (1 + np.cos(np.pi * step / 40)), rtol=1e-5, atol=1e-7
    )
    drops = config(schedule="multi-step", milestones=(2, 3), warmup_epochs=1)
    expected = 0.1 * np.where(
        step < 10, (step + 1) / 10, 0.1 ** ((step >= 20) + 1.0 * (step >= 30))
    )
    np.testing.assert_allclose(training.learning_rates(drops, 10).ravel(), expected, rtol=1e-5)
    warm = training.learning_rates(config(schedule="cosine", warmup_epochs=1), 10).ravel()
    np.testing.assert_allclose(
        warm[10:], 0.05 * (1 + np.cos(np.pi * np.arange(30) / 30)), rtol=1e-5, atol=1e-8
    )
    assert (np.diff(warm[:10]) > 0).all()
    assert (training.learning_rates(config(), 1) == np.float32(0.1)).all()
    assert training.learning_rates(config(warmup_epochs=1), 1).ravel()[0] == np.float32(0.1)


# --- images ---------------------------------------------------------------------------------


def test_channel_statistics_over_pieces_and_constant_channels():
    images = np.random.default_rng(1).integers(0, 256, (1500, 3, 2, 3), dtype=np.uint8)
    images[..., 2] = 7
    mean, std = training.channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2), dtype=float))
    np.testing.assert_allclose(std[:2], images.std((0, 1, 2), dtype=float)[:2])
    normalised = training.normalize(jnp.asarray(images), training.Normalization(mean, std))
    np.testing.assert_allclose(normalised[..., :2].std((0, 1, 2)), 1, rtol=1e-4)
    assert std[2] == 1
    assert (normalised[..., 2] == 0).all()


def test_augment_makes_shifts_and_flips_of_the_image_and_all_of_them():
    image = np.random.default_rng(2).integers(1, 256, (8, 8, 2), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    possible = {}
    for i in range(9):
        for j in range(9):
            crop = padded[i : i + 8, j : j + 8]
            possible |= {crop.tobytes(): (i, j, 0), crop[:, ::-1].tobytes(): (i, j, 1)}
    many = training.augment(jnp.tile(image, (2000, 1, 1, 1)), jax.random.key(0))
    met = [possible[np.asarray(one).tobytes()] for one in many]
    assert set(met) == set(possible.values())
    # Three standard deviations of a fair coin, and of a uniform shift in 0..8.
    assert abs(np.mean([flip for *_, flip in met]) - 0.5) < 3 * 0.5 / 2000**0.5
    assert abs(np.mean([i for i, *_ in met]) - 4) < 3 * (20 / 3) ** 0.5 / 2000**0.5


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, int), "images must be uint8 or floating"),
        (np.zeros((3, 4, 4, 1), np.int32), np.zeros(3, int), "images must be uint8 or floating"),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(2, int), "labels must be integers .3."),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3), "labels must be integers"),
        (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int), "at least one image"),
        (np.zeros((8, 4, 4, 1), np.uint8), np.full(8, 3), r"0\.\.2.*got 3\.\.3"),
        (np.zeros((7, 4, 4, 1), np.uint8), np.zeros(7, int), "batch_size must be at most.*7"),
    ],
)
def test_fit_says_what_is_wrong_with_a_data_set(images, labels, says):
    with pytest.raises(ValueError, match=says):
        training.fit(Net(), (images, labels), config())


# --- the step -------------------------------------------------------------------------------


def softmax_gradient(kernel, bias, images, labels):
    logits = images @ kernel + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    error = (shares - np.eye(shares.shape[1])[labels]) / len(labels)
    return loss, images.T @ error, error.sum(0)


def numpy_sgd(images, labels, num_steps, *, rate, momentum, l1, l2, proximal, sam_radius=0.0):
    """Follow the documented step on softmax regression in float64, whole set at once."""
    weights = [np.full((images.shape[1], 3), 0.01), np.zeros(3)]
    velocities = [np.zeros_like(w) for w in weights]
    losses = []
    for _ in range(num_steps):
        loss, *gradients = softmax_gradient(*weights, images, labels)
        losses.append(loss)
        if sam_radius:
            norm = sum((g**2).sum() for g in gradients) ** 0.5
            uphill = [w + sam_radius * g / norm for w, g in zip(weights, gradients, strict=True)]
            gradients = softmax_gradient(*uphill, images, labels)[1:]
        for w, v, g in zip(weights, velocities, gradients, strict=True):
            v[:] = momentum * v + g + l2 * w + (0 if proximal else l1 * np.sign(w))
            w -= rate * v
            if proximal:
                w[:] = np.sign(w) * np.maximum(np.abs(w) - rate * l1 / (1 - momentum), 0)
    penalty = sum(l1 * np.abs(w).sum() + l2 / 2 * (w**2).sum() for w in weights)
    return weights, losses, penalty


@pytest.mark.parametrize("sam_radius", [0.0, 0.3])
@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_steps_follow_the_documented_recurrence(data, method, sam_radius):
    images, labels = data
    settings = {"l1": 0.02, "l2": 0.01, "momentum": 0.8, "sam_radius": sam_radius}
    result = training.fit(
        linear,
        data,
        config(epochs=12, batch_size=44, l1_method=method, **settings),
        start=Start(
            {"kernel": np.full((16, 3), 0.01, np.float32), "bias": np.zeros(3, np.float32)}
        ),
    )
    mean, std = (np.array(value) for value in result.normalization)
    (kernel, bias), losses, penalty = numpy_sgd(
        ((images - mean) / std).reshape(44, 16),
        labels,
        12,
        rate=0.1,
        proximal=method == "proximal",
        **settings,
    )
    # Float32 against float64 over 12 steps; a sign at exactly 0 is the same in both.
    assert_close(result.params, {"kernel": kernel, "bias": bias}, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.history.data_loss, losses, rtol=1e-5)
    np.testing.assert_allclose(result.history.loss[-1] - losses[-1], penalty, rtol=1e-4)


def test_adam_follows_its_algorithm(data):
    """Softmax regression in float64, the whole set at once, by the paper's algorithm 1."""
    images, labels = data
    settings = {"l1": 0.02, "l2": 0.01, "momentum": 0.8, "optimizer": "adam"}
    start = {"kernel": np.full((16, 3), 0.01, np.float32), "bias": np.zeros(3, np.float32)}
    told = config(epochs=12, batch_size=44, **settings)
    result = training.fit(linear, data, told, start=Start(start))
    mean, std = (np.array(value) for value in result.normalization)
    inputs = ((images - mean) / std).reshape(44, 16)
    weights = [np.float64(start[name]) for name in ("kernel", "bias")]
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for t in range(1, 13):
        gradients = softmax_gradient(*weights, inputs, labels)[1:]
        for i, g in enumerate(gradients):
            g = g + 0.02 * np.sign(weights[i]) + 0.01 * weights[i]
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            weights[i] -= 0.1 * (m[i] / (1 - 0.8**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    kernel, bias = weights
    assert_close(result.params, {"kernel": kernel, "bias": bias}, rtol=2e-3, atol=2e-5)
    both = training.fit(linear, data, config(epochs=12, batch_size=44, seed=(3, 4), **settings),
                        start=Start(start))  # fmt: skip
    assert_close(jax.tree.map(lambda w: w[1], both.params), result.params, rtol=1e-3, atol=1e-5)


def test_sharpness_aware_steps_with_slices_seeds_and_a_mask(data):
    """Slices change nothing; a radius next to 0 trains as none does; the mask holds."""
    settings = {"epochs": 2, "sam_radius": 0.2}
    whole = training.fit(Net(), data, config(**settings))
    sliced = training.fit(Net(), data, config(**settings, accumulate=4))
    assert_close(sliced.params, whole.params, rtol=1e-4, atol=1e-6)
    both = training.fit(Net(), data, config(**settings, seed=(0, 1)))
    assert_close(jax.tree.map(lambda w: w[0], both.params), whole.params, rtol=1e-3, atol=1e-5)
    tiny = training.fit(Net(), data, config(epochs=2, sam_radius=1e-9))
    assert_close(tiny.params, training.fit(Net(), data, config(epochs=2)).params, rtol=1e-5)

    # Held at 0, a kernel neither moves nor climbs: what is left is a net of the bias alone.
    def biased(params, state, images, *, train, key):
        return jnp.broadcast_to(params["bias"], (len(images), 3)), state

    start = {"bias": jnp.zeros(3), "kernel": jnp.ones((16, 3))}
    mask = {"bias": np.ones(3, bool), "kernel": np.zeros((16, 3), bool)}
    held = training.fit(linear, data, config(**settings), mask=mask, start=Start(start))
    alone = training.fit(biased, data, config(**settings), start=Start({"bias": start["bias"]}))
    assert_close(held.params["bias"], alone.params["bias"], rtol=1e-5)


def test_proximal_training_ends_at_the_l1_minimum(data):
    """At the minimum |∇L| ≤ l1 off the support and ∇L = -l1·sign(w) on it, momentum or not."""
    start = {"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(3, np.float32)}
    settings = {"learning_rate": 0.05, "batch_size": 44, "l1": 0.05, "l1_method": "proximal"}
    result = training.fit(linear, data, config(epochs=600, **settings), start=Start(start))
    mean, std = (np.array(value) for value in result.normalization)
    flat = ((data[0] - mean) / std).reshape(44, 16)
    kernel = np.asarray(result.params["kernel"], float)
    _, gradient, _ = softmax_gradient(
        kernel, np.asarray(result.params["bias"], float), flat, data[1]
    )
    support = kernel != 0
    assert 0 < support.mean() < 1
    np.testing.assert_allclose(gradient[support], -0.05 * np.sign(kernel[support]), atol=1e-5)
    assert np.abs(gradient[~support]).max() <= 0.05
    distance = training.distance_from_minimum(
        linear, result.params, {}, data, l1=0.05, normalization=result.normalization
    )
    assert distance.norm < 1e-5


@pytest.mark.parametrize("name", ["BatchNorm_0", "norm", "bn_init"])
def test_penalties_spare_normalisation(name):
    params = {
        "Conv_0": {"kernel": jnp.array([0.5, -2.0])},
        name: {"scale": jnp.array([1.0]), "bias": jnp.array([0.3])},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    for proximal in (False, True):
        optimizer = training.sgd(0.1, 0.0, 1.0, 0.0, proximal=proximal)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        np.testing.assert_allclose(updates["Conv_0"]["kernel"], [-0.1, 0.1], rtol=1e-5)
        assert_same_bits(updates[name], zeros[name])


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_penalties_act_where_they_are_told_to(data, method):
    """A penalty on the bias alone, of weight 0 on the kernel, has closed forms of one step."""
    start = {"kernel": np.full((16, 3), 0.01, np.float32), "bias": np.ones(3, np.float32)}
    settings = {"epochs": 1, "batch_size": 44, "l1_method": method}

    def step(l1, **how):
        return training.fit(linear, data, config(l1=l1, **settings), start=Start(start), **how)

    free = step(0.0)
    of_bias = step(0.5, where=lambda name, leaf: name == "bias" and leaf.ndim == 1)
    # Two programs, of which the one without l1 on the kernel rounds in another order.
    assert_close(of_bias.params["kernel"], free.params["kernel"], rtol=1e-6, atol=1e-8)
    drawn = 0.1 * 0.5 * (10 if method == "proximal" else 1)  # η·l1, over 1-μ if proximal
    np.testing.assert_allclose(of_bias.params["bias"], free.params["bias"] - drawn, rtol=1e-5)
    added = of_bias.history.loss[-1] - of_bias.history.data_loss[-1]
    np.testing.assert_allclose(added, 0.5 * of_bias.params["bias"].sum(), rtol=1e-4)

    far = {"normalization": free.normalization, "l1": 0.5}
    at = (linear, start, {}, data)
    nothing, everything = (
        training.distance_from_minimum(*at, where=lambda name, leaf, on=on: on, **far)
        for on in (False, True)
    )
    assert_close(nothing.norm, nothing.gradient_norm, rtol=1e-6)
    assert_close(everything, training.distance_from_minimum(*at, **far), rtol=1e-6)


def test_checkpoint_of_other_penalties_is_refused(data, tmp_path):
    run = {"checkpoint_dir": tmp_path}
    training.fit(Net(), data, config(epochs=1, seed=(0, 1)), monitor=Monitor(**run))
    with pytest.raises(ValueError, match=r"penalised\.Dense_0/bias: checkpoint True, this run F"):
        training.fit(
            Net(),
            data,
            config(epochs=1, seed=(0, 1)),
            where=lambda _, leaf: leaf.ndim > 1,
            monitor=Monitor(**run),
        )


def test_batch_norm_statistics_follow_the_batches(data):
    """With the rate next to 0 the inputs of BatchNorm stay, so its averages have a closed form."""
    net = Net(plain=False)
    result = training.fit(net, data, config(epochs=3, batch_size=44, learning_rate=1e-12))
    images = np.asarray(training.normalize(jnp.asarray(data[0]), result.normalization), float)
    dense = result.params["Dense_0"]
    hidden = images.reshape(44, 16) @ np.asarray(dense["kernel"], float) + dense["bias"]
    statistics = result.state["batch_stats"]["BatchNorm_0"]
    kept = 0.9**3
    np.testing.assert_allclose(statistics["mean"], (1 - kept) * hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(statistics["var"], kept + (1 - kept) * hidden.var(0), rtol=1e-4)


def test_accumulated_slices_equal_the_whole_batch(data):
    whole = training.fit(Net(), data, config(epochs=2, l1=1e-3))
    sliced = training.fit(Net(), data, config(epochs=2, l1=1e-3, accumulate=4))
    assert_close(sliced.params, whole.params, rtol=1e-4, atol=1e-6)
    assert_close(sliced.history, whole.history, rtol=1e-5)


def test_epochs_are_permutations_that_leave_other_images_out():
    images = np.arange(11, dtype=np.float32).reshape(11, 1, 1, 1)
    orders = []

    def recorder(params, state, images, *, train, key):
        met = images[:, 0, 0, 0].astype(int)
        state = {"count": state["count"].at[met].add(1), "last": met}
        return params["bias"] + jnp.zeros((len(images), 2)), state

    state = {"count": np.zeros(11, int), "last": np.zeros(4, int)}
    params = {"bias": np.zeros(2, np.float32)}
    for epochs in (1, 2, 3):
        result = training.fit(
            recorder,
            (images, np.zeros(11, int)),
            config(epochs=epochs, batch_size=4),
            start=Start(params, state=state),
        )
        orders.append(np.asarray(result.state["count"]))
    each = np.diff([np.zeros(11), *orders], axis=0)
    assert ((each == 0) | (each == 1)).all()
    assert (each.sum(1) == 8).all()
    assert len({tuple(row) for row in each}) == 3


def test_nothing_recompiles_between_epochs_and_settings(data):
    before = loop._epoch._cache_size()
    net = Net(num_classes=4)
    training.fit(net, data, config(epochs=3, schedule="cosine"))
    assert loop._epoch._cache_size() == before + 1
    training.fit(Net(num_classes=4), data, config(learning_rate=0.2, l1=1e-3, l2=0.1, seed=5))
    assert loop._epoch._cache_size() == before + 1


def test_several_seeds_at_once_equal_one_at_a_time(data):
    together = training.fit(Net(plain=False), data, config(seed=(3, 7)))
    assert together.history.loss.shape == (2, 4)
    for position, seed in enumerate((3, 7)):
        alone = training.fit(Net(plain=False), data, config(seed=seed))
        one = jax.tree.map(lambda leaf: leaf[position], (together.params, together.state))  # noqa: B023
        assert_close(one, (alone.params, alone.state), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(together.history.loss[position], alone.history.loss, rtol=1e-4)


def test_mask_holds_weights_at_zero_and_leaves_the_given_params_alone(data):
    start = Net().init(jax.random.key(1), jnp.zeros((1, 4, 4, 1)))["params"]
    copy = jax.tree.map(np.array, start)
    mask = jax.tree.map(lambda w: np.arange(w.size).reshape(w.shape) % 3 == 0, start)
    settings = {"start": Start(start), "mask": mask}
    for method in ("subgradient", "proximal"):
        result = training.fit(Net(), data, config(l1=1e-3, l1_method=method), **settings)
        for got, keep in zip(*map(jax.tree.leaves, (result.params, mask)), strict=True):
            assert (np.asarray(got)[~keep] == 0).all()
        kept = mask["Dense_0"]["kernel"]
        moved = result.params["Dense_0"]["kernel"] - copy["Dense_0"]["kernel"]
        assert (np.asarray(moved)[kept] != 0).all()
    assert_same_bits(start, copy)
    with pytest.raises(ValueError, match="mask must have the structure"):
        training.fit(Net(), data, config(), mask={"Dense_0": True}, start=Start(start))


def test_linen_nnx_equinox_and_bare_functions_train_alike(data):
    eqx = pytest.importorskip("equinox")

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, images):
            return self.linear(images.reshape(len(images), -1))

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return nn.Dense(3)(images.reshape(len(images), -1))

    graph, weights = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param)

    def merged(params, state, images, *, train, key):
        return nnx.merge(graph, params)(images), state

    start = {name: jnp.asarray(weights["linear"][name][...]) for name in ("kernel", "bias")}
    settings = config(l1=1e-3)
    bare = training.fit(linear, data, settings, start=Start(start))
    linen = training.fit(Linen(), data, settings, start=Start({"Dense_0": start}))
    from_nnx = training.fit(merged, data, settings, start=Start(weights))
    assert_close(linen.params["Dense_0"], bare.params, rtol=1e-5, atol=1e-7)
    assert_close(
        jax.tree.leaves(from_nnx.params), jax.tree.leaves(bare.params), rtol=1e-5, atol=1e-7
    )
    arrays, static = eqx.partition(
        eqx.tree_at(
            lambda model: (model.weight, model.bias),
            eqx.nn.Linear(16, 3, key=jax.random.key(0)),
            (start["kernel"].T, start["bias"]),
        ),
        eqx.is_inexact_array,
    )

    def combined(params, state, images, *, train, key):
        model = eqx.combine(params, static)
        return jax.vmap(model)(images.reshape(len(images), -1)), state

    from_equinox = training.fit(combined, data, settings, start=Start(arrays))
    np.testing.assert_allclose(
        from_equinox.params.weight.T, bare.params["kernel"], rtol=1e-5, atol=1e-7
    )
    with pytest.raises(ValueError, match="params must be given"):
        training.fit(linear, data, settings)


def test_bfloat16_arithmetic_keeps_float32_weights(data):
    result = training.fit(Net(dtype=jnp.bfloat16), data, config())
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype("float32")}
    assert result.history.loss[-1] < result.history.loss[0]


def test_two_epochs_on_digits_improve_accuracy():
    digits = load_digits()
    images, labels = digits.images[..., None].astype(np.uint8), digits.target.astype(np.int32)
    train, test = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    net = Net(num_classes=10)
    result = training.fit(net, train, config(epochs=2, batch_size=32, learning_rate=0.05, l1=1e-5))
    fresh = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    before, after = (
        training.evaluate(net, params, {}, test, normalization=result.normalization).accuracy
        for params in (fresh, result.params)
    )
    assert after > max(0.6, before + 0.3)


# --- evaluation -----------------------------------------------------------------------------


def test_evaluate_counts_every_example_once(data):
    rng = np.random.default_rng(4)
    params = {"kernel": rng.normal(size=(16, 3)), "bias": rng.normal(size=3)}
    params = jax.tree.map(np.float32, params)
    normalization = training.channel_statistics(data[0])
    mean, std = (np.array(value) for value in normalization)
    flat = ((data[0] - mean) / std).reshape(44, 16)
    loss, *_ = softmax_gradient(params["kernel"], params["bias"], flat, data[1])
    accuracy = ((flat @ params["kernel"] + params["bias"]).argmax(1) == data[1]).mean()
    for batch_size in (10, 44, 1000):
        got = training.evaluate(
            linear, params, {}, data, normalization=normalization, batch_size=batch_size
        )
        assert got.losses.shape == got.correct.shape == (44,)
        np.testing.assert_allclose(got.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(got.accuracy, accuracy, rtol=1e-6)
    kernel, bias = params["kernel"], params["bias"]
    each = [softmax_gradient(kernel, bias, flat[[i]], data[1][[i]])[0] for i in (0, 43)]
    # Logits near 10 are rounded at 1e-6 in float32, and so is a loss next to 0.
    np.testing.assert_allclose(np.asarray(got.losses)[[0, 43]], each, rtol=1e-5, atol=5e-6)


def test_made_losses_are_equal_compile_once_and_evaluate(data):
    net = Net(plain=False)
    normalization = training.channel_statistics(data[0])
    variables = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    traced = []

    def call(loss, params, batch, state):
        traced.append(loss)
        return loss(params, batch, state)

    jitted = jax.jit(call, static_argnums=0)
    values = [
        jitted(training.make_loss(Net(plain=False), normalization), params, data, state)
        for _ in range(2)
    ]
    assert len(traced) == 1
    # Dropout off and running statistics on: the same value twice, and that of evaluate.
    expected = training.evaluate(net, params, state, data, normalization=normalization)
    np.testing.assert_allclose(values, expected.loss, rtol=1e-5)
    floating = training.normalize(jnp.asarray(data[0]), normalization), data[1]
    np.testing.assert_allclose(
        training.make_loss(net)(params, floating, state), expected.loss, rtol=1e-5
    )


def test_distance_from_minimum_against_the_formula(data):
    rng = np.random.default_rng(6)
    params = {"kernel": rng.normal(size=(16, 3)) * 0.1, "bias": rng.normal(size=3) * 0.1}
    params = jax.tree.map(np.float32, params)
    normalization = training.channel_statistics(data[0])
    mean, std = (np.array(value) for value in normalization)
    flat = ((data[0] - mean) / std).reshape(44, 16)
    w = np.concatenate([params["kernel"].ravel(), params["bias"]])
    _, *gradients = softmax_gradient(params["kernel"], params["bias"], flat, data[1])
    g = np.concatenate([gradients[0].ravel(), gradients[1]]) + 0.3 * w
    moved = w - g
    residual = w - np.sign(moved) * np.maximum(np.abs(moved) - 0.05, 0)
    got = training.distance_from_minimum(
        linear, params, {}, data, l1=0.05, l2=0.3, normalization=normalization, batch_size=10
    )
    expected = np.linalg.norm(residual)
    np.testing.assert_allclose(got.norm, expected, rtol=1e-5)
    np.testing.assert_allclose(got.relative, expected / np.linalg.norm(w), rtol=1e-5)
    np.testing.assert_allclose(got.gradient_norm, np.linalg.norm(g), rtol=1e-5)


def test_parameters_are_spread_over_a_mesh_only(data):
    with pytest.raises(ValueError, match=r"mesh must be given with shard_params, .* got None"):
        training.fit(Net(), data, config(), shard_params=True)


# --- checkpoints ----------------------------------------------------------------------------


class InterruptedRunError(Exception):
    pass


def interrupt_after(epoch):
    def on_epoch(metrics):
        if metrics.epoch == epoch:
            raise InterruptedRunError

    return on_epoch


@pytest.mark.parametrize("seed", [1, (1, 2)])
def test_resumed_equals_uninterrupted_to_the_bit(data, tmp_path, seed):
    net = Net(plain=False)
    settings = config(schedule="cosine", augment=True, l1=1e-3, accumulate=2, seed=seed)
    whole = training.fit(net, data, settings)
    files = {
        "checkpoint_dir": tmp_path / "run",
        "metrics_path": tmp_path / "deep" / "metrics.jsonl",
        "checkpoint_every": 2,
    }
    with pytest.raises(InterruptedRunError):
        training.fit(net, data, settings, monitor=Monitor(on_epoch=interrupt_after(3), **files))
    seen = []
    resumed = training.fit(net, data, settings, monitor=Monitor(on_resume=seen.append, **files))
    assert resumed.resumed_from == 2
    assert seen[0].epoch.tolist() == [1, 2]
    assert_same_bits(resumed[:4], whole[:4])
    lines = [json.loads(line) for line in files["metrics_path"].read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    np.testing.assert_array_equal(
        np.moveaxis([line["loss"] for line in lines], 0, -1).astype(np.float32), whole.history.loss
    )
    again = training.fit(net, data, settings, monitor=Monitor(on_epoch=pytest.fail, **files))
    assert again.resumed_from == 4
    assert_same_bits(again[:4], whole[:4])


def test_checkpoint_older_than_a_setting_is_taken_at_its_default(data, tmp_path, monkeypatch):
    whole = loop.run_identity

    def without_sam(*args, **arrays):
        identity = whole(*args, **arrays)
        identity["config"].pop("sam_radius")
        return identity

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_identity", without_sam)
        training.fit(Net(), data, config(epochs=1), monitor=Monitor(checkpoint_dir=tmp_path))
    again = training.fit(Net(), data, config(epochs=1), monitor=Monitor(checkpoint_dir=tmp_path))
    assert again.resumed_from == 1
    with pytest.raises(ValueError, match=r"config.sam_radius: checkpoint 0.0, this run 0.1"):
        training.fit(
            Net(),
            data,
            config(epochs=1, sam_radius=0.1),
            monitor=Monitor(checkpoint_dir=tmp_path),
        )


def test_random_keys_in_the_state_resume_too(data, tmp_path):
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(16, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, images):
            return self.linear(self.dropout(images.reshape(len(images), -1)))

    graph, weights, rest = nnx.split(Dropped(nnx.Rngs(0)), nnx.Param, ...)

    def net(params, state, images, *, train, key):
        model = nnx.merge(graph, params, state, copy=True)
        model.train() if train else model.eval()
        return model(images), nnx.split(model, nnx.Param, ...)[2]

    start = {"params": weights, "state": rest}
    whole = training.fit(net, data, config(), start=Start(**start))
    run = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    monitor = Monitor(on_epoch=interrupt_after(2), **run)
    with pytest.raises(InterruptedRunError):
        training.fit(net, data, config(), start=Start(**start), monitor=monitor)
    resumed = training.fit(net, data, config(), start=Start(**start), monitor=Monitor(**run))
    assert resumed.resumed_from == 1
    assert_same_bits(resumed.params, whole.params)
    keys = [jax.tree.leaves(jax.tree.map(jax.random.key_data, found.state.filter(nnx.RngKey)))
            for found in (resumed, whole)]  # fmt: skip
    assert keys[0]
    assert_same_bits(*keys)


def test_checkpoint_of_another_run_is_refused_with_the_difference(data, tmp_path):
    run = {"checkpoint_dir": tmp_path, "metrics_path": tmp_path / "metrics.jsonl"}
    training.fit(Net(), data, config(epochs=1), monitor=Monitor(**run))
    metrics = run["metrics_path"].read_text()
    others = [
        (Net(), data, config(epochs=1, l1=0.5), "config.l1: checkpoint 0.0, this run 0.5"),
        (Net(num_classes=5), data, config(epochs=1), r"Dense_1/bias: checkpoint 'float32\[3\]'"),
        (Net(), (data[0][::-1], data[1]), config(epochs=1), "checksum.data"),
    ]
    for module, dataset, settings, says in others:
        with pytest.raises(ValueError, match=f"checkpoint_dir.*another run.*{says}"):
            training.fit(module, dataset, settings, monitor=Monitor(**run))
    assert run["metrics_path"].read_text() == metrics


def activated(activation):
    def net(params, state, images, *, train, key):
        return linear(params, state, activation(images), train=train, key=key)

    return net


def test_checkpoint_of_another_function_of_one_name_is_refused(data, tmp_path, monkeypatch):
    start = {"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(3, np.float32)}
    run = {"start": Start(start), "monitor": Monitor(checkpoint_dir=tmp_path)}
    nothing = activated(lambda x: 0 * x)
    training.fit(activated(jnp.tanh), data, config(epochs=1), **run)
    assert training.fit(activated(jnp.tanh), data, config(epochs=1), **run).resumed_from == 1
    with pytest.raises(ValueError, match=r"differs in program of JAX .*: checkpoint \d+, this run"):
        training.fit(nothing, data, config(epochs=1), **run)
    # Of other versions, or of a checkpoint that has no such entry, nothing can be said.
    monkeypatch.setattr(identity, "PROGRAM", "program of JAX 0.0.0 and Flax 0.0.0")
    assert training.fit(nothing, data, config(epochs=1), **run).resumed_from == 1


def test_checkpoint_from_before_programs_is_taken(data, tmp_path, monkeypatch):
    whole = loop.run_identity

    def without_program(*args, **arrays):
        found = whole(*args, **arrays)
        del found[identity.PROGRAM]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_identity", without_program)
        training.fit(Net(), data, config(epochs=1), monitor=Monitor(checkpoint_dir=tmp_path))
    again = training.fit(Net(), data, config(epochs=1), monitor=Monitor(checkpoint_dir=tmp_path))
    assert again.resumed_from == 1


def test_the_identity_of_a_network_is_the_same_in_every_process():
    code = (
        "import jax, jax.numpy as jnp, numpy as np\n"
        "from jaxlimit import models\n"
        "from jaxlimit.training import TrainingConfig\n"
        "from jaxlimit.training.identity import run_identity\n"
        "net, images = models.create('resnet18', num_classes=3), jnp.zeros((1, 32, 32, 3))\n"
        "state = dict(jax.eval_shape(net.init, jax.random.key(0), images))\n"
        "params = state.pop('params')\n"
        "@jax.checkpoint\n"
        "def inner(params, state, images):\n"
        "    logits = net.apply({'params': params, **state}, images) + np.arange(3.0)\n"
        "    return jax.pure_callback(lambda x: x, logits, logits)\n"
        "def forward(params, state, images, *, train, key=None):\n"
        "    return inner(params, state, images), state\n"
        "config = TrainingConfig(epochs=1, learning_rate=0.1)\n"
        "print(run_identity(forward, config, params, (params, state, images), {}))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert "program of JAX" in runs[0].stdout
    assert runs[0].stdout == runs[1].stdout


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(data, tmp_path):
    def breaks(params, state, images, *, train, key):
        logits = images.reshape(len(images), -1) @ params["kernel"]
        broken = jnp.where(state["step"] >= 7, jnp.nan, 1.0)
        return logits * broken, {"step": state["step"] + train}

    start = Start({"kernel": np.zeros((16, 3), np.float32)}, {"step": np.zeros((), np.int32)})
    at = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    says = "loss stopped being finite in epoch 2, step 3 of 5.*checkpoint of epoch 1.*is whole"
    with pytest.raises(FloatingPointError, match=says):
        training.fit(breaks, data, config(), start=start, monitor=Monitor(**at))
    seen = []
    monitor = Monitor(on_resume=seen.append, **at)
    with pytest.raises(FloatingPointError, match="epoch 2, step 3"):
        training.fit(breaks, data, config(), start=start, monitor=monitor)
    assert seen[0].epoch.tolist() == [1]


def test_non_finite_loss_names_the_seeds(data):
    def breaks(params, state, images, *, train, key):
        logits, _ = linear(params, state, images, train=train, key=key)
        broken = train and jax.random.uniform(key) < 0.1
        return jnp.where(broken, jnp.nan, logits), state

    start = Start({"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(3, np.float32)})
    failed = []
    for seed in range(4):
        try:
            training.fit(breaks, data, config(epochs=1, seed=seed), start=start)
        except FloatingPointError:
            failed.append(str(seed))
    assert 0 < len(failed) < 4
    with pytest.raises(FloatingPointError, match=rf"loss of seed {', '.join(failed)} stopped"):
        training.fit(breaks, data, config(epochs=1, seed=(0, 1, 2, 3)), start=start)


def test_weights_that_overflow_in_the_last_step_are_noticed(data):
    images = np.full((44, 4, 4, 1), 1e30, np.float32)
    params = {"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(3, np.float32)}
    settings = config(epochs=1, batch_size=44, learning_rate=1e10)
    says = "a weight, its velocity or the network's state stopped.*epoch 1, no loss shows.*no check"
    with pytest.raises(FloatingPointError, match=says):
        training.fit(linear, (images, data[1]), settings, start=Start(params))


# The threads of a failed save report to an event loop that the failure has already closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_disk_full_while_saving_leaves_the_previous_checkpoint_whole(data, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(metrics):
        if metrics.epoch == 2:
            # No file may grow past a kilobyte: the operating system's own write fails.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))

    run = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    whole = training.fit(Net(), data, config())
    try:
        with pytest.raises(OSError, match=r"epoch 2; the checkpoint of epoch 1 .* is whole"):
            training.fit(Net(), data, config(), monitor=Monitor(on_epoch=fill_disk, **run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resumed = training.fit(Net(), data, config(), monitor=Monitor(**run))
    assert resumed.resumed_from == 1
    assert_same_bits(resumed.params, whole.params)


def test_disk_full_while_metrics_are_written_names_file_and_checkpoint(data, tmp_path):
    path = tmp_path / "metrics.jsonl"
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def fill_disk(metrics):
        if metrics.epoch == 2:
            path.unlink()
            path.symlink_to("/dev/full")

    run = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": 1, "metrics_path": path}
    says = rf"metrics to {path}; the checkpoint of epoch 2 in .* is whole: .*No space left"
    with pytest.raises(OSError, match=says):
        training.fit(Net(), data, config(), monitor=Monitor(on_epoch=fill_disk, **run))
    path.unlink()
    assert training.fit(Net(), data, config(), monitor=Monitor(**run)).resumed_from == 2
    assert len(path.read_text().splitlines()) == 4


class RefusedArray:
    """What a program that runs out of memory leaves: an array that raises when it is asked for."""

    def __array__(self, *args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")


@pytest.mark.parametrize("when", ["at dispatch", "while it runs"])
def test_device_out_of_memory_names_the_checkpoint_and_the_run_goes_on(
    data, tmp_path, monkeypatch, when
):
    run_epoch = loop._epoch

    def refuse(carry, epoch, rates, **fixed):
        if epoch < 3:
            return run_epoch(carry, epoch, rates, **fixed)
        if when == "at dispatch":
            np.asarray(RefusedArray())
        carry, losses, _, metrics = run_epoch(carry, epoch, rates, **fixed)
        return carry, losses, RefusedArray(), metrics

    whole = training.fit(Net(), data, config())
    run = {"checkpoint_dir": tmp_path, "checkpoint_every": 2}
    says = "in epoch 3 .*epoch 2 in .* is whole.*raise accumulate or lower batch_size"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch", refuse)
        with pytest.raises(DeviceMemoryError, match=says):
            training.fit(Net(), data, config(), monitor=Monitor(**run))
    resumed = training.fit(Net(), data, config(), monitor=Monitor(**run))
    assert resumed.resumed_from == 2
    assert_same_bits(resumed[:4], whole[:4])


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_checkpoint_is_named(data, tmp_path, damage):
    """Whatever file of it is damaged, the run goes on rightly or says which checkpoint it was."""
    folder, intact = tmp_path / "run", tmp_path / "intact"
    run = {"checkpoint_dir": folder, "checkpoint_every": 1}
    whole = training.fit(Net(), data, config(epochs=1), monitor=Monitor(**run))
    folder.rename(intact)
    says = rf"checkpoint of (epoch 1 in {folder} is damaged: .*move it away|another run)"
    named = set()
    for file in sorted(path for path in (intact / "1").rglob("*") if path.is_file()):
        shutil.copytree(intact, folder)
        file = folder / file.relative_to(intact)
        damage(file)
        try:
            again = training.fit(Net(), data, config(epochs=1), monitor=Monitor(**run))
        except ValueError as error:
            assert re.search(says, str(error)), error  # noqa: PT017 (it may go on as well)
            assert len(str(error)) < 600  # noqa: PT017
            named.add(str(file.relative_to(folder)))
        else:
            assert_same_bits(again.params, whole.params)
        shutil.rmtree(folder)
    assert {"1/run/_METADATA", "1/run/array_metadatas/process_0"} <= named
    assert any("/run/d/" in name for name in named), named


def test_a_checkpoint_from_before_digests_is_taken(data, tmp_path):
    run = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    whole = training.fit(Net(), data, config(epochs=1), monitor=Monitor(**run))
    shutil.rmtree(tmp_path / "1" / "digests")
    again = training.fit(Net(), data, config(epochs=1), monitor=Monitor(**run))
    assert again.resumed_from == 1
    assert_same_bits(again.params, whole.params)


def test_a_device_that_refuses_memory_does_not_make_a_checkpoint_damaged(
    data, tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")

    training.fit(Net(), data, config(epochs=1), monitor=Monitor(checkpoint_dir=tmp_path))
    monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        training.fit(Net(), data, config(epochs=1), monitor=Monitor(checkpoint_dir=tmp_path))


def test_digests_tell_any_word_and_its_place():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64, np.uint16, np.int8, bool):
        array = rng.integers(0, 2, (3, 4)).astype(dtype)
        same = digests({"a": array})
        assert digests({"a": np.asfortranarray(array)}) == same
        changed = [array.copy() for _ in range(array.size)]
        for i, other in enumerate(changed):
            flat = other.reshape(-1).view(np.uint8)
            flat[(i + 1) * array.itemsize - 1] ^= 1
        swapped = array.copy()
        first = np.argmax(array.ravel() != array.flat[0])
        swapped.flat[0], swapped.flat[first] = array.flat[first], array.flat[0]
        for other in (*changed, swapped):
            assert digests({"a": other}) != same, (dtype, other)
    ours = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    assert digests({"a": ours}) == digests({"a": np.asarray(ours)})
    assert digests({"a": jnp.zeros(0)}) == {"a": 0}

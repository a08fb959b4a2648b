"""Reweighted l1, sharpness-aware steps by optax, and training's own numbers over scale and type."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlimit import training
from jaxlimit.training import Monitor, Start, TrainingConfig
from jaxlimit.training.evaluation import _residual_norms
from jaxlimit.training.optimizer import climb, penalty, tree_norm

SCALES = [1e-30, 1e-20, 1e-6, 1.0, 1e6, 1e18, 1e30]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 24).astype(np.int32)
    images = rng.integers(0, 200, (24, 2, 2, 1)) + 25 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def idle(params, state, images, *, train, key):
    """A network whose loss does not depend on its weights, so that penalties act alone."""
    return jnp.zeros((len(images), 3)) + 0 * params["kernel"].sum(), state


def linear(params, state, images, *, train, key):
    return images.reshape(len(images), -1) @ params["kernel"], state


START = np.array([2.0, -0.5, 0.3, 0.0, -0.04, 1e-3], np.float32)


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_reweighted_l1_alone_against_its_closed_form(data, method, momentum):
    """Over an epoch a weight moves at the speed that its value at the epoch's start gives it."""
    rate, l1, delta, epochs, steps = 0.1, 0.02, 0.1, 5, 3
    got = training.fit(
        idle,
        data,
        TrainingConfig(
            epochs=epochs,
            batch_size=8,
            learning_rate=rate,
            momentum=momentum,
            l1=l1,
            l1_delta=delta,
            l1_method=method,
        ),
        start=Start({"kernel": START}),
    )
    w, velocity = START.astype(np.float64), np.zeros(6)
    for _ in range(epochs):
        strength = l1 / (np.abs(w) + delta)
        for _ in range(steps):
            if method == "proximal":
                w = np.sign(w) * np.maximum(np.abs(w) - rate * strength / (1 - momentum), 0)
            else:
                velocity = momentum * velocity + strength * np.sign(w)
                w = w - rate * velocity
        value = (strength * np.abs(w)).sum()
    np.testing.assert_allclose(got.params["kernel"], w, rtol=1e-5, atol=1e-6)
    penalties = got.history.loss - got.history.data_loss
    np.testing.assert_allclose(penalties[-1], value, rtol=1e-4)
    if method == "proximal":
        assert (np.asarray(got.params["kernel"]) == 0).tolist() == (w == 0).tolist()


def test_a_tiny_weight_is_pulled_harder_and_a_large_delta_makes_it_plain(data):
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}
    plain = training.fit(
        idle, data, TrainingConfig(**settings, l1=0.02), start=Start({"kernel": START})
    ).params["kernel"]
    large = TrainingConfig(**settings, l1=0.02 * 1e4, l1_delta=1e4)
    same = training.fit(idle, data, large, start=Start({"kernel": START})).params["kernel"]
    np.testing.assert_allclose(same, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", [3, (3, 4)])
def test_a_reweighted_run_resumes_to_the_same_bits(data, tmp_path, seed):
    config = TrainingConfig(
        epochs=4, batch_size=8, learning_rate=0.1, l1=0.01, l1_delta=0.05, seed=seed
    )
    start = {"kernel": np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)}
    whole = training.fit(linear, data, config, start=Start(start))

    def interrupt(metrics):
        if metrics.epoch == 2:
            raise KeyboardInterrupt

    at = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    monitor = Monitor(on_epoch=interrupt, **at)
    with pytest.raises(KeyboardInterrupt):
        training.fit(linear, data, config, start=Start(start), monitor=monitor)
    resumed = training.fit(linear, data, config, start=Start(start), monitor=Monitor(**at))
    assert resumed.resumed_from == 1
    np.testing.assert_array_equal(resumed.params["kernel"], whole.params["kernel"])
    np.testing.assert_array_equal(resumed.history.loss, whole.history.loss)


def test_the_transform_reweights_when_it_is_due_under_jit_and_from_a_saved_state():
    transform = training.reweighted_l1(0.5, 0.25, every=3)
    params = {"kernel": jnp.asarray(START), "BatchNorm_0": {"scale": jnp.ones(2)}}
    optimizer = optax.chain(transform, optax.sgd(0.1))
    states = [optimizer.init(params)]
    w, trail = START.astype(np.float64), []

    @jax.jit
    def step(params, state):
        update, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, update), state

    for i in range(7):
        if i % 3 == 0:
            weights = 0.5 / (np.abs(w) + 0.25)
        w = w - 0.1 * weights * np.sign(w)
        params, state = step(params, states[-1])
        states.append(state)
        trail.append(params)
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["BatchNorm_0"]["scale"], 1)
    copied = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), states[4])
    again = trail[3]
    for _ in range(3):
        again, copied = step(again, copied)
    np.testing.assert_array_equal(again["kernel"], params["kernel"])
    with pytest.raises(ValueError, match="params must be given"):
        transform.update(params, transform.init(params))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: training.l1_weights(jnp.ones(2), 0.0), r"delta must lie in \(0"),
        (lambda: training.reweighted_l1(1.0, -1.0, every=1), r"delta must lie in \(0"),
        (lambda: training.reweighted_l1(1.0, 1.0, every=0), "every must be at least 1"),
        (lambda: training.sam(optax.sgd(0.1), -1.0), r"radius must lie in \[0"),
        (lambda: TrainingConfig(epochs=1, learning_rate=1, l1_delta=-1), "l1_delta must be finite"),
    ],
)
def test_bad_penalties_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_distance_from_a_minimum_of_a_reweighted_penalty(data):
    """A minimum found by FISTA in NumPy with a strength on each weight is one by the residual."""
    normalization = training.channel_statistics(data[0])
    inputs = ((data[0] - np.array(normalization.mean)) / np.array(normalization.std)).reshape(24, 4)
    strengths = np.random.default_rng(2).uniform(0.01, 0.2, (4, 3))
    w = z = np.zeros((4, 3))
    t = 1.0
    for _ in range(3000):
        logits = inputs @ z
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        gradient = inputs.T @ (shares - np.eye(3)[data[1]]) / 24
        step = z - 0.5 * gradient
        new = np.sign(step) * np.maximum(np.abs(step) - 0.5 * strengths, 0)
        t_new = (1 + np.sqrt(1 + 4 * t**2)) / 2
        z, w, t = new + (t - 1) / t_new * (new - w), new, t_new
    assert 0 < (w == 0).sum() < 12
    measure = lambda l1: training.distance_from_minimum(  # noqa: E731
        linear,
        {"kernel": np.float32(w)},
        {},
        data,
        l1=l1,
        normalization=normalization,
    )
    assert measure({"kernel": np.float32(strengths)}).relative < 1e-5
    assert measure(0.1).relative > 1e-2


def test_sharpness_aware_steps_are_those_of_optax(data):
    """On the whole set at once, where the order of images is none."""
    normalization = training.channel_statistics(data[0])
    config = TrainingConfig(
        epochs=6, batch_size=24, learning_rate=0.3, momentum=0.7, l1=0.01, l2=0.02, sam_radius=0.4
    )
    start = {"kernel": np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)}
    ours = training.fit(linear, data, config, start=Start(start))
    loss = training.make_loss(linear, normalization)
    gradient = jax.jit(jax.grad(lambda params, i: loss(params, data)))
    optimizer = training.sam(training.sgd(0.3, 0.7, 0.01, 0.02, proximal=False), 0.4)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for _ in range(6):
        update, state = optimizer.update(gradient(params, 0), state, params, grad_fn=gradient)
        params = optax.apply_updates(params, update)
    np.testing.assert_allclose(ours.params["kernel"], params["kernel"], rtol=2e-5, atol=1e-6)
    plain = training.fit(linear, data, TrainingConfig(
        epochs=6, batch_size=24, learning_rate=0.3, momentum=0.7, l1=0.01, l2=0.02
    ), start=Start(start))  # fmt: skip
    assert np.abs(plain.params["kernel"] - params["kernel"]).max() > 1e-3
    # Where nothing rises `fit` stays, and optax says NaN, as the docstring has it.
    assert climb(jnp.ones(2), jnp.zeros(2), 0.4).tolist() == [1, 1]
    uphill, _ = optax.contrib.normalize().update(jnp.zeros(2), optax.EmptyState())
    assert np.isnan(uphill).all()


@pytest.mark.parametrize("s", SCALES)
def test_numbers_of_training_are_free_of_scale(s):
    rng = np.random.default_rng(3)
    w, g = (rng.normal(size=50) for _ in range(2))
    l1 = 0.3
    moved = w - g
    residual = w - np.sign(moved) * np.maximum(np.abs(moved) - l1, 0)

    def tree(x):
        x = jnp.asarray(s * x, jnp.float32)
        return {"a": x[:20], "b": x[20:]}

    got = _residual_norms(tree(w), tree(g), s * l1, 0.0, where=lambda name, leaf: True)
    np.testing.assert_allclose(got.norm / np.float32(s), np.linalg.norm(residual), rtol=1e-5)
    np.testing.assert_allclose(
        got.relative, np.linalg.norm(residual) / np.linalg.norm(w), rtol=1e-5
    )
    np.testing.assert_allclose(got.gradient_norm / np.float32(s), np.linalg.norm(g), rtol=1e-5)
    np.testing.assert_allclose(tree_norm(tree(w)) / np.float32(s), np.linalg.norm(w), rtol=1e-5)
    # A direction has no scale.
    uphill = climb(jax.tree.map(jnp.zeros_like, tree(w)), tree(g), 0.5)
    found = np.concatenate(jax.tree.leaves(uphill))
    np.testing.assert_allclose(found, 0.5 * g / np.linalg.norm(g), rtol=1e-5, atol=1e-8)
    everywhere = lambda name, leaf: True  # noqa: E731
    found = penalty(tree(w), 1.0, 0.0, where=everywhere) / np.float32(s)
    np.testing.assert_allclose(found, np.abs(w).sum(), rtol=1e-5)
    if 1e-38 < s * 1e-6 < 1e30:  # the strength that goes with it
        l2 = 1 / s
        found = penalty(tree(w), 0.0, l2, where=everywhere) / np.float32(s)
        np.testing.assert_allclose(found, (w**2).sum() / 2, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_over_narrow_weights_are_taken_in_float32(dtype):
    w = jnp.full(100_000, 0.0078125, dtype)
    everywhere = lambda name, leaf: True  # noqa: E731
    got = penalty({"w": w}, 2.0, 4.0, where=everywhere)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 2 * 781.25 + 2 * 100_000 * 2.0**-14, rtol=1e-6)
    np.testing.assert_allclose(tree_norm({"w": w}), 0.0078125 * 100_000**0.5, rtol=1e-6)
    np.testing.assert_allclose(
        _residual_norms({"w": w}, {"w": w}, 0.0, 0.0, where=everywhere).relative, 1, rtol=1e-6
    )


def test_slices_of_a_batch_add_in_float32(data):
    """The mean gradient of 24 slices in bfloat16 weights is as near to the truth as of one."""
    start = {"kernel": np.random.default_rng(4).normal(size=(4, 3)).astype(jnp.bfloat16)}

    def wide(params, state, images, *, train, key):
        return linear(jax.tree.map(lambda w: w.astype(jnp.float32), params), state, images,
                      train=train, key=key)  # fmt: skip

    def update(accumulate):
        config = TrainingConfig(
            epochs=1, batch_size=24, learning_rate=1, momentum=0.0, accumulate=accumulate
        )
        after = training.fit(wide, data, config, start=Start(start)).params["kernel"]
        assert after.dtype == jnp.bfloat16
        return np.asarray(after, np.float64) - start["kernel"].astype(np.float64)

    truth = training.fit(
        linear,
        data,
        TrainingConfig(epochs=1, batch_size=24, learning_rate=1, momentum=0.0),
        start=Start(jax.tree.map(lambda w: w.astype(np.float32), start)),
    ).params["kernel"] - start["kernel"].astype(np.float64)
    one, many = (np.abs(update(n) - truth).max() for n in (1, 24))
    assert many <= 1.01 * one


def test_parts_of_a_training_are_those_of_the_whole(data):
    """Without momentum nothing is lost between two parts; each image is met in the same order."""
    settings = {"schedule": "cosine", "momentum": 0.0, "l1": 1e-3, "learning_rate": 0.2}
    config = TrainingConfig(epochs=5, batch_size=8, **settings)
    start = {"kernel": np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)}
    whole = training.fit(linear, data, config, start=Start(start))
    params, histories = start, []
    for between in ((0, 2), (2, 2), (2, 5)):
        part = training.fit(linear, data, config, between=between, start=Start(params))
        params = part.params
        histories.append(part.history)
    np.testing.assert_array_equal(params["kernel"], whole.params["kernel"])
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *histories)
    jax.tree.map(np.testing.assert_array_equal, joined, whole.history)
    assert len(histories[1].epoch) == 0


def test_a_part_resumes_and_is_no_other_part(data, tmp_path):
    config = TrainingConfig(epochs=6, batch_size=8, learning_rate=0.2)
    start = Start({"kernel": np.ones((4, 3), np.float32)})
    at = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    part = {"start": start, "between": (2, 5)}
    whole = training.fit(linear, data, config, **part)
    seen = []

    def interrupt(metrics):
        seen.append(int(metrics.epoch))
        if metrics.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(linear, data, config, **part, monitor=Monitor(on_epoch=interrupt, **at))
    assert seen == [3, 4]
    resumed = training.fit(linear, data, config, **part, monitor=Monitor(**at))
    assert resumed.resumed_from == 1
    jax.tree.map(np.testing.assert_array_equal, resumed.history, whole.history)
    np.testing.assert_array_equal(resumed.params["kernel"], whole.params["kernel"])
    with pytest.raises(ValueError, match=r"another run, which differs in between"):
        training.fit(linear, data, config, start=start, monitor=Monitor(**at))


@pytest.mark.parametrize(
    ("between", "error"),
    [((3, 2), ValueError), ((0, 7), ValueError), ((-1, 2), ValueError), (3, TypeError),
     ((1, 2, 3), TypeError), ((0.5, 2), TypeError)],
)  # fmt: skip
def test_parts_that_are_none_are_refused(data, between, error):
    config = TrainingConfig(epochs=6, batch_size=8, learning_rate=0.2)
    with pytest.raises(error, match="between"):
        training.fit(
            linear, data, config, between=between, start=Start({"kernel": np.ones((4, 3))})
        )


@pytest.mark.parametrize(
    ("dataset", "error", "says"),
    [
        ({"image": 1, "label": 2}, TypeError, "got a mapping with 'image', 'label'"),
        ((x for x in [1, 2]), TypeError, "got generator: collect its batches"),
        ([(np.ones((2, 2, 1)), 0), (np.ones((2, 2, 1)), 1)], TypeError, "got tuple among 2 entr"),
        (([1, 2], [0, 1]), TypeError, "got list among 2 entries"),
        ((np.ones((2, 2, 2, 1)),), ValueError, "got 1 of them"),
        ("data", TypeError, "got str among 4 entries"),
    ],
)
def test_a_data_set_that_is_no_two_arrays_is_told_what_to_be(dataset, error, says):
    config = TrainingConfig(epochs=1, batch_size=2, learning_rate=0.2)
    with pytest.raises(error, match=f"dataset must begin with two arrays.*{says}"):
        training.fit(linear, dataset, config, start=Start({"kernel": np.ones((4, 3))}))


def deep(params, state, images, *, train, key):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["first"])
    return hidden @ params["second"], state


DEEP = {
    name: np.random.default_rng(7).normal(size=shape).astype(np.float32)
    for name, shape in {"first": (4, 2), "second": (2, 3)}.items()
}


def exact_diagonal(params, inputs):
    """The Gauss-Newton diagonal of the mean cross-entropy, from Jacobians, in NumPy."""
    outputs = lambda p: deep(p, {}, inputs, train=False, key=None)[0]  # noqa: E731
    logits, jacobian = np.asarray(outputs(params), np.float64), jax.jacobian(outputs)(params)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    curved = np.einsum("nc,cd->ncd", shares, np.eye(3)) - shares[:, :, None] * shares[:, None]
    return {
        name: np.einsum("nc...,ncd,nd...->...", J, curved, J) / len(logits)
        for name, J in jacobian.items()
    }


def test_sensitivity_against_jacobians():
    rng = np.random.default_rng(5)
    batch = jnp.asarray(rng.normal(size=(6, 2, 2, 1)), jnp.float32), jnp.asarray([0, 1, 2, 0, 1, 2])
    exact = exact_diagonal(DEEP, batch[0])
    mean = np.concatenate([h.ravel() for h in exact.values()]).mean()
    found = jax.jit(lambda key: training.sensitivity(deep, DEEP, {}, batch, key, num_probes=4000))(
        jax.random.key(0)
    )
    for name, h in exact.items():
        np.testing.assert_allclose(found[name] ** 2, h / mean, rtol=0.1)
    flat = jax.tree.map(jnp.zeros_like, DEEP)
    ones = training.sensitivity(deep, flat, {}, (batch[0] * 0, batch[1]), jax.random.key(0))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(ones))
    some = training.sensitivity(
        deep, DEEP, {}, batch, jax.random.key(0), where=lambda name, leaf: name == "first"
    )
    assert (some["second"] == 1).all()
    np.testing.assert_allclose((some["first"] ** 2).mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("seed", [3, (3, 4)])
def test_a_penalty_by_saliency_against_steps_by_hand(data, seed):
    """On the whole set at once; the probe is the one that the epoch's key gives."""
    config = TrainingConfig(
        epochs=3, batch_size=24, learning_rate=0.3, momentum=0.5, l1=0.02, l1_delta=0.1,
        l1_by="saliency", seed=seed,
    )  # fmt: skip
    got = training.fit(deep, data, config, start=Start(DEEP))
    normalization = training.channel_statistics(data[0])
    loss, images = training.make_loss(deep), training.normalize(data[0], normalization)
    for i, one in enumerate(np.atleast_1d(seed)):
        params, velocity = DEEP, jax.tree.map(np.zeros_like, DEEP)
        for epoch in range(1, 4):
            order_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(one), epoch))
            rows = jax.random.permutation(order_key, 24)
            batch = images[rows], jnp.asarray(data[1])[rows]
            r = training.sensitivity(deep, params, {}, batch, jax.random.fold_in(order_key, 1))
            pull = {k: 0.02 * r[k] / (r[k] * np.abs(w) + 0.1) * np.sign(w)
                    for k, w in params.items()}  # fmt: skip
            gradient = jax.grad(loss)(params, batch)
            velocity = {k: 0.5 * velocity[k] + gradient[k] + pull[k] for k in params}
            params = {k: params[k] - 0.3 * velocity[k] for k in params}
        for name, w in params.items():
            mine = got.params[name][i] if isinstance(seed, tuple) else got.params[name]
            np.testing.assert_allclose(mine, w, rtol=1e-4, atol=1e-5)


def test_a_weight_without_curvature_is_not_penalised_by_saliency():
    params, r = {"w": jnp.array([1.0, 1.0, 0.0])}, {"w": jnp.array([0.0, 2.0, 2.0])}
    found = training.l1_weights(params, 0.5, strength=3.0, sensitivity=r)["w"]
    np.testing.assert_allclose(found, [0, 6 / 2.5, 12], rtol=1e-6)
    with pytest.raises(ValueError, match=r"l1_by=.saliency. needs an l1_delta above 0"):
        TrainingConfig(epochs=1, learning_rate=1, l1_by="saliency")

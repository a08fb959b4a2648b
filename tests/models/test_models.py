import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlimit import models
from jaxlimit.lab.torch_layout import renamed
from jaxlimit.models._layers import ConvNorm

# What `make_torch_fixtures.py` had of PyTorch.
FIXTURES = Path(__file__).parents[1] / "fixtures" / "torch_models.npz"

# Small enough to compile in seconds, with every kind of layer of the full net; the full nets
# themselves go through the same checks in the slow tests.
THIN = {
    "fc5": {"widths": (16,) * 4},
    "fc12": {"widths": (16,) * 11},
    "fc3": {},
    "alexnet": {"channels": (4, 8, 8, 8, 8), "hidden": (16, 16)},
    "vgg16": {"stages": ((4,), (8,))},
    "resnet18": {"stage_sizes": (1, 1), "width": 8},
    "resnet50": {"stage_sizes": (1, 1), "width": 4},
    "vit": {"width": 12, "num_blocks": 1, "num_heads": 2, "hidden": 16},
    "cnn": {"channels": (8, 8)},
}


def random_images(size, num=4):
    rng = np.random.default_rng(size)
    return jnp.asarray(rng.standard_normal((num, size, size, 3)), jnp.float32)


@functools.cache  # compiling the random numbers of `init` takes longer than any test of this file
def initial_variables(net, size):
    return jax.jit(net.init)(jax.random.key(0), random_images(size, num=1))


def shapes(name, num_classes, image_shape=(32, 32, 3), **fields):
    net = models.create(name, num_classes=num_classes, **fields)
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


def random_variables(like, seed=1):
    """Draw float64 variables: all of them matter, and activations keep their scale."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.uniform(-1, 1, leaf.shape)
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(noise * np.sqrt(6 / np.prod(leaf.shape[:-1])))
        return jnp.asarray(noise / 4 + (name in ("scale", "var")))

    return jax.tree_util.tree_map_with_path(draw, like)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "num_classes", "image_shape", "count"),
    [
        ("fc5", 10, (32, 32, 3), 3_885_010),
        ("fc5", 10, (8, 8, 1), 877_010),
        ("fc12", 10, (32, 32, 3), 7_269_610),
        ("fc3", 10, (8, 8, 1), 2_778),
        ("alexnet", 10, (32, 32, 3), 46_787_978),
        ("cnn", 10, (8, 8, 1), 160 + 4_640 + 9_248 + 330),
        ("vgg16", 10, (32, 32, 3), 14_728_266),
        ("resnet18", 100, (64, 64, 3), 11_220_132),
        ("resnet50", 100, (64, 64, 3), 23_705_252),
    ],
)
def test_parameter_counts(name, num_classes, image_shape, count):
    params = shapes(name, num_classes, image_shape)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("size", [32, 64])
def test_bfloat16_keeps_float32_parameters_and_logits(name, size):
    variables = shapes(name, 100, (size, size, 3), dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    net = models.create(name, num_classes=100, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((3, size, size, 3), jnp.float32)
    logits = jax.eval_shape(net.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((3, 100), jnp.float32)
    jaxpr = str(jax.make_jaxpr(net.apply)(variables, images))
    assert "bf16" in jaxpr


def check_first_training_step(name, fields):
    net = models.create(name, num_classes=10, **fields)
    images = random_images(32, num=16)
    variables = initial_variables(net, 32)
    train = functools.partial(net.apply, train=True, mutable=["batch_stats"])
    logits, updated = jax.device_get(jax.jit(train)(variables, images))
    # The mean over all labels is never below log(classes) and free of the labels' own noise.
    excess = (np.log(np.exp(logits).sum(-1)) - logits.mean(-1)).mean() - np.log(10)
    assert 0 < excess < 0.1 * np.log(10)
    running, moved = (
        jax.tree.leaves(jax.device_get(v.get("batch_stats", {}))) for v in (variables, updated)
    )
    assert all((a != b).all() for a, b in zip(running, moved, strict=True))


@pytest.mark.parametrize("name", models.names())
def test_initial_loss_is_near_log_of_classes_and_statistics_move(name):
    check_first_training_step(name, THIN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_initial_loss_is_near_log_of_classes_at_full_size(name):
    check_first_training_step(name, {})


def check_gradient(name, size, fields):
    net = models.create(name, num_classes=10, **fields)
    images, labels = random_images(size), jnp.arange(4)
    # A convolutional net's parameters serve images of all sizes, those of the others of one.
    one_size = name.startswith("fc") or name == "vit"
    variables = initial_variables(net, size if one_size else 32)

    def loss(params, state):
        logits = net.apply({"params": params, **state}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    state = {"batch_stats": variables.get("batch_stats", {})}
    gradient = jax.jit(jax.grad(loss))(variables["params"], state)
    for leaf in jax.tree.leaves(jax.device_get(gradient)):
        assert np.isfinite(leaf).all()
        assert leaf.any()


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("size", [32, 64])
def test_gradients_are_finite_and_reach_every_leaf(name, size):
    check_gradient(name, size, THIN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("size", [32, 64])
def test_gradients_at_full_size(name, size):
    check_gradient(name, size, {})


def test_dense_layers_start_with_he_variance_and_zero_biases():
    net = models.create("fc5", num_classes=10, widths=(400, 300, 200, 100))
    params = initial_variables(net, 32)["params"]
    for layer in range(4):
        kernel, bias = params[f"Dense_{layer}"]["kernel"], params[f"Dense_{layer}"]["bias"]
        # A variance of n normal draws has relative deviation sqrt(2/n), at most 0.01 here.
        assert np.var(kernel) * kernel.shape[0] / 2 == pytest.approx(1, abs=0.04)
        assert not bias.any()


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_against_numpy(train):
    layer = ConvNorm(5, kernel_size=1, use_bias=True)
    x = random_images(6)
    variables = jax.eval_shape(functools.partial(layer.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v.astype(jnp.float32), random_variables(variables))
    out, updated = layer.apply(variables, x, train=train, mutable=["batch_stats"])

    conv, norm = (variables["params"][name] for name in ("Conv_0", "BatchNorm_0"))
    running = variables["batch_stats"]["BatchNorm_0"]
    z = np.asarray(x) @ np.asarray(conv["kernel"])[0, 0] + conv["bias"]
    mean, var = (
        (z.mean((0, 1, 2)), z.var((0, 1, 2))) if train else (running["mean"], running["var"])
    )
    expected = (z - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)

    kept = 0.9 if train else 1.0
    for name, batch in (("mean", mean), ("var", var)):
        expected = kept * running[name] + (1 - kept) * batch
        np.testing.assert_allclose(
            updated["batch_stats"]["BatchNorm_0"][name], expected, rtol=1e-5, atol=1e-6
        )


def test_dropout_acts_in_training_only():
    without = models.create("alexnet", num_classes=10, **THIN["alexnet"])
    net, images = without.clone(dropout_rate=0.5), random_images(32)
    variables = initial_variables(without, 32)
    apply = jax.jit(net.apply, static_argnames="train")
    drops = [
        apply(variables, images, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1)
    ]
    assert jnp.abs(drops[0] - drops[1]).max() > 1e-3
    np.testing.assert_array_equal(
        apply(variables, images), jax.jit(without.apply)(variables, images)
    )


TORCH_CASES = {
    "fc5": ("MLP", {"widths": (6, 5)}),
    "alexnet": (
        "AlexNet",
        {"channels": (4, 5, 6, 5, 4), "hidden": (8, 7), "image_size": 112},
    ),
    "vgg16": ("VGG", {"stages": ((4, 5), (6,))}),
    "resnet18": ("ResNet", {"stage_sizes": (1, 1), "width": 4}),
    "resnet50": ("ResNet", {"stage_sizes": (1, 1), "width": 3, "bottleneck": True}),
}


def torch_case(name):
    """The float64 net, images, labels, variables and tangent of a comparison; fixed by seeds."""
    net = models.create(name, num_classes=5, dtype=jnp.float64, **TORCH_CASES[name][1])
    images = random_images(16, num=3).astype(jnp.float64)
    labels = jnp.array([4, 0, 2])
    variables = random_variables(jax.eval_shape(net.init, jax.random.key(0), images))
    params, state = variables["params"], variables.get("batch_stats", {})
    return net, images, labels, params, state, random_variables(params, seed=3)


def logits_and_hessian_product(net, images, labels, params, state, tangent):
    def loss(params):
        logits = net.apply({"params": params, "batch_stats": state}, images)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, logits

    gradient = jax.grad(loss, has_aux=True)
    product = jax.jit(lambda params, tangent: jax.jvp(gradient, (params,), (tangent,)))
    (_, logits), (hessian_tangent, _) = product(params, tangent)
    return {"logits": logits} | renamed(hessian_tangent)


def torch_results(name, images, labels, params, state, tangent):
    """The same by PyTorch, which has to be installed."""
    import torch

    from jaxlimit.lab import torch_networks as references

    kind, fields = TORCH_CASES[name]
    model = references.load(getattr(references, kind)(5, **fields), params, state)
    images = torch.tensor(np.asarray(images.transpose(0, 3, 1, 2)))
    labels = torch.tensor(np.asarray(labels))
    results = references.hessian_product(model, images, labels, tangent)
    return {
        leaf: tensor.detach().numpy()
        for leaf, tensor in {"logits": model(images), **results}.items()
    }


def check_against_torch(name, results_of):
    """In float64 both sides are exact to rounding: relative error below 1e-10."""
    with jax.enable_x64(True):
        net, *case = torch_case(name)
        ours = jax.device_get(logits_and_hessian_product(net, *case))
        expected = results_of(name, *case)
    assert ours.keys() == expected.keys()
    for leaf in ours:
        assert relative_error(ours[leaf], expected[leaf]) < 1e-10, leaf


@pytest.mark.parametrize("name", TORCH_CASES)
def test_forward_and_hessian_product_agree_with_what_torch_gave(name):
    with np.load(FIXTURES) as file:
        kept = {
            key.removeprefix(f"{name}/"): file[key]
            for key in file.files
            if key.startswith(f"{name}/")
        }
    check_against_torch(name, lambda *_: kept)


@pytest.mark.parametrize("name", TORCH_CASES)
def test_forward_and_hessian_product_agree_with_torch(name):
    pytest.importorskip("torch")
    check_against_torch(name, torch_results)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match=r"got 'resnet81': did you mean 'resnet18'"):
        models.create("resnet81", num_classes=10)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be a static int"),
        ({"num_classes": 2, "dtype": jnp.int32}, TypeError, "dtype must be a floating dtype"),
        ({"num_classes": 2, "depth": 3}, TypeError, "depth"),
    ],
)
def test_bad_settings(settings, error, match):
    with pytest.raises(error, match=match):
        models.create("fc5", **settings)


@pytest.mark.parametrize(
    ("name", "images", "error", "match"),
    [
        ("vgg16", jnp.zeros((1, 16, 32, 3)), ValueError, "at least 32x32 pixels, got 16x32"),
        ("resnet18", jnp.zeros((1, 4, 4, 3)), ValueError, "at least 8x8 pixels, got 4x4"),
        ("alexnet", jnp.zeros((1, 0, 4, 3)), ValueError, "at least 1x1 pixels, got 0x4"),
        ("fc5", jnp.zeros((32, 32, 3)), ValueError, r"must be \[N, H, W, C\], got shape"),
        ("fc12", jnp.zeros((1, 8, 8, 1), jnp.uint8), TypeError, "floating .* got dtype uint8"),
    ],
)
def test_images_that_a_net_cannot_take(name, images, error, match):
    net = models.create(name, num_classes=2)
    with pytest.raises(error, match=match):
        jax.eval_shape(net.init, jax.random.key(0), images)


def test_alexnet_needs_what_its_pools_take_away():
    images, thin = jnp.zeros((1, 8, 8, 3)), dict(THIN["alexnet"])
    net = models.create("alexnet", num_classes=2, **(thin | {"image_size": 64}))
    with pytest.raises(ValueError, match="AlexNet: image_size must be at least 65, got 64"):
        jax.eval_shape(net.init, jax.random.key(0), images)
    net = models.create("alexnet", num_classes=2, **(thin | {"image_size": 65}))
    params = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
    assert params["Dense_0"]["kernel"].shape[0] == net.channels[-1]  # one pixel is left


def test_dense_nets_keep_to_the_image_size_they_were_made_for():
    net = models.create("fc5", num_classes=2, **THIN["fc5"])
    variables = shapes("fc5", 2, (8, 8, 1), **THIN["fc5"])
    with pytest.raises(
        ValueError, match=r"images of 64 values .* got 192 from shape \(1, 8, 8, 3\)"
    ):
        jax.eval_shape(net.apply, variables, jnp.zeros((1, 8, 8, 3)))

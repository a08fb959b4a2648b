"""Smaller dense networks against the pruned ones, on examples and by counts made by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annealed import annealed

from jaxlimit import models, pruning, training

RNG = np.random.default_rng(0)
FC5 = models.MLP(widths=(50, 30, 15, 5), num_classes=4)
FC12 = models.MLP(widths=(20, 18, 16, 15, 14, 13, 12, 10, 8, 6, 5), num_classes=4)
VGG16 = models.VGG(stages=((8,) * 2, (10,) * 2, (12,) * 3, (9,) * 3, (9,) * 3), num_classes=4)
ALEXNET = models.AlexNet(channels=(6, 8, 9, 7, 5), hidden=(10, 8), image_size=65, num_classes=4)
RESNET18 = models.create("resnet18", num_classes=4, width=6)
RESNET50 = models.create("resnet50", num_classes=4, width=4, stage_sizes=(1, 2))
NETS = {"fc5": FC5, "fc12": FC12, "vgg16": VGG16, "alexnet": ALEXNET, "resnet18": RESNET18,
        "resnet50": RESNET50, "cnn": models.CNN(channels=(5, 7, 6), num_classes=4)}  # fmt: skip
SIDE = {"fc5": 4, "fc12": 4, "vgg16": 32, "alexnet": 8, "resnet18": 8, "resnet50": 8, "cnn": 8}


def make(name, seed=0):
    """A net with statistics and shifts of BatchNorm, and biases, that are not their start."""
    module, side = NETS[name], SIDE[name]
    images = jax.random.normal(jax.random.key(1), (3, side, side, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        drawn = rng.normal(size=like.shape)
        if jax.tree_util.keystr(path).endswith(("'var']", "'scale']")):
            drawn = 1 + 0.3 * abs(drawn)
        elif len(like.shape) == 1:
            drawn = 0.3 * drawn
        else:
            drawn = drawn * (2 / np.prod(like.shape[:-1])) ** 0.5
        return jnp.asarray(drawn, like.dtype)

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    state = dict(variables)
    return module, state.pop("params"), state, images


@partial(jax.jit, static_argnums=0)
def outputs(module, params, state, images):
    return module.apply({"params": params, **state}, images, train=False)


def check(module, params, state, images):
    small = pruning.compress(module, params, state)
    expected = outputs(module, params, state, images)
    found = outputs(small.module, small.params, small.state, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(scale, 1), rtol=0)
    sizes = [leaf.size for leaf in jax.tree.leaves(small.params)]
    assert small.num_params == sum(sizes) <= small.num_params_before
    assert small.num_bytes == 4 * sum(sizes)
    # The module's own shapes are those of its parameters.
    shapes = jax.eval_shape(small.module.init, jax.random.key(0), images)["params"]
    jax.tree.map(lambda s, leaf: np.testing.assert_equal(s.shape, leaf.shape), shapes, small.params)
    return small


@pytest.mark.parametrize("name", NETS)
def test_pruned_at_random(name):
    """Whole columns and rows go as well as single weights, so that units of every kind arise."""
    module, params, state, images = make(name)
    rng = np.random.default_rng(5)

    def prune(path, leaf):
        if "BatchNorm" in jax.tree_util.keystr(path):
            return leaf
        keep = rng.random(leaf.shape) < 0.5
        keep &= rng.random(leaf.shape[-1:]) < 0.7
        if leaf.ndim > 1:
            keep &= rng.random((*leaf.shape[-2:-1], 1)) < 0.7
        return jnp.where(keep, leaf, 0)

    params = jax.tree_util.tree_map_with_path(prune, params)
    small = check(module, params, state, images)
    assert small.num_params < 0.8 * small.num_params_before


@pytest.mark.parametrize("name", NETS)
def test_nothing_to_remove(name):
    module, params, state, images = make(name)
    small = check(module, params, state, images)
    assert small.num_params == small.num_params_before
    jax.tree.map(np.testing.assert_array_equal, small.params, params)


@pytest.mark.parametrize("name", NETS)
def test_all_removed(name):
    """Every weight is 0: one unit a space is left, and the outputs are constant and the same."""
    module, params, state, images = make(name)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if leaf.ndim > 1 else leaf, params
    )
    small = check(module, params, state, images)
    # Streams hold constants that are not 0 over several blocks.
    assert {width for space, width in small.widths.items() if "stream" not in space} == {1}


def test_counts_of_an_mlp_by_hand():
    module, params, state, images = make("fc5")
    into, out = params["Dense_1"]["kernel"], params["Dense_2"]["kernel"]
    # Units 0 and 1 of the second layer: no way in and no way out; unit 2 a negative constant.
    params["Dense_1"]["kernel"] = into.at[:, [0, 2]].set(0.0)
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"].at[0].set(0.8).at[2].set(-1.0)
    params["Dense_2"]["kernel"] = out.at[1].set(0.0)
    small = check(module, params, state, images)
    assert small.module.widths == (50, 27, 15, 5)
    # Three units of 50 inputs, a bias and 15 outputs each.
    assert small.num_params_before - small.num_params == 3 * (50 + 1 + 15)
    bias = params["Dense_2"]["bias"] + 0.8 * params["Dense_2"]["kernel"][0]
    np.testing.assert_allclose(small.params["Dense_2"]["bias"], bias, rtol=1e-6)


def test_removals_go_on_from_layer_to_layer():
    """A unit without a way out frees those that only it reads, back to the input."""
    module, params, state, images = make("fc12")
    params["Dense_3"]["kernel"] = jnp.zeros_like(params["Dense_3"]["kernel"]).at[:3].set(1.0)
    params["Dense_2"]["kernel"] = params["Dense_2"]["kernel"].at[4:].set(0.0)
    params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[2:, :4].set(0.0)
    small = check(module, params, state, images)
    assert small.module.widths[:4] == (2, 4, 3, 15)


def test_channels_of_a_vgg_by_hand():
    module, params, state, images = make("vgg16")
    kernel = params["ConvNorm_3"]["Conv_0"]["kernel"]
    # Nothing reads channel 1 of the layer before; channels 2, 3 and 4 of this one are constant.
    kernel = kernel.at[:, :, 1, :].set(0.0).at[..., [2, 3, 4]].set(0.0)
    params["ConvNorm_3"]["Conv_0"]["kernel"] = kernel
    norm = params["ConvNorm_3"]["BatchNorm_0"]
    mean = state["batch_stats"]["ConvNorm_3"]["BatchNorm_0"]["mean"]
    params["ConvNorm_3"]["Conv_0"]["bias"] = mean  # so that the constants are the shifts
    norm["bias"] = norm["bias"].at[jnp.array([2, 3, 4])].set(jnp.array([-1.0, 0.5, 0.7]))
    small = check(module, params, state, images)
    # The first of the constants is 0 behind ReLU; the third is merged into the second.
    assert small.module.stages[1] == (9, 8)
    removed = 9 * 10 * 8 - 9 * 9 * 8 + 9 * 10 * 10 - 9 * 9 * 8 + 9 * 12 * 2 + 3 * 1 + 3 * 2
    assert small.num_params_before - small.num_params == removed


def test_residual_streams_keep_what_any_block_reads():
    module, params, state, images = make("resnet18")
    conv = lambda block, i: params[f"ResidualBlock_{block}"][f"ConvNorm_{i}"]["Conv_0"]  # noqa: E731
    for block in (0, 1):  # nothing in the first stage reads channel 2, and in the next none but one
        conv(block, 0)["kernel"] = conv(block, 0)["kernel"].at[:, :, 2].set(0.0)
    conv(2, 0)["kernel"] = conv(2, 0)["kernel"].at[:, :, 2].set(0.0)
    small = check(module, params, state, images)
    assert small.module.streams == (6, 12, 24, 48)
    projection = params["ResidualBlock_2"]["projection"]["Conv_0"]
    projection["kernel"] = projection["kernel"].at[:, :, 2].set(0.0)
    small = check(module, params, state, images)
    assert small.module.streams == (5, 12, 24, 48)
    # Written: stem 3x3x3 and two blocks 3x3x6; read: three 3x3 and the projection; three norms.
    removed = 27 + 2 * 54 + 9 * (6 + 6 + 12) + 12 + 3 * 2
    assert small.num_params_before - small.num_params == removed


def test_pruned_by_l1():
    """An MLP trained with l1 and pruned by the search: less than half is left, the loss stays."""
    module = models.MLP(widths=(30, 20), num_classes=3)
    x = jax.random.normal(jax.random.key(2), (128, 3, 3, 1))
    y = (x[:, 0, 0, 0] > 0).astype(jnp.int32) + (x[:, 1, 1, 0] > 0.5)
    params = module.init(jax.random.key(0), x)["params"]
    loss = training.make_loss(module)
    params = annealed(loss, params, (x, y), rate=0.1, l1=0.005, num_steps=300)
    found = pruning.smallest_mask(
        loss, params, [(x, y)], epsilon=0.01, key=jax.random.key(1),
        methods=("live magnitude", "greedy"),
    )  # fmt: skip
    pruned = pruning.apply_mask(params, found.mask)
    small = check(module, pruned, {}, x)
    assert small.num_params < 0.5 * small.num_params_before
    value = training.make_loss(small.module)(small.params, (x, y))
    np.testing.assert_allclose(value, found.loss, rtol=1e-4)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu, jax.nn.relu])
def test_any_chain_of_dense_layers(activation):
    """Constants of any activation are folded, into a bias that was not there if need be."""
    sizes = (5, 9, 8, 2)
    params = {
        f"layer{i}": {"kernel": jnp.asarray(RNG.normal(size=sizes[i : i + 2]), jnp.float32)}
        for i in range(3)
    }
    params["layer0"]["bias"] = jnp.asarray(RNG.normal(size=9), jnp.float32)
    params["layer0"]["kernel"] = params["layer0"]["kernel"].at[:, [1, 4]].set(0.0)
    params["layer2"]["kernel"] = params["layer2"]["kernel"].at[3].set(0.0)

    def forward(params, x):
        for i in range(3):
            layer = params[f"layer{i}"]
            x = x @ layer["kernel"] + layer.get("bias", 0.0)
            x = activation(x) if i < 2 else x
        return x

    small = pruning.compress_dense(params, activation=activation)
    assert small.widths == {"layer0": 7, "layer1": 7}
    x = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)
    np.testing.assert_allclose(forward(small.params, x), forward(params, x), atol=1e-5)


def test_bad_input():
    _, params, _, _ = make("fc5")
    with pytest.raises(TypeError, match="compress_dense"):
        pruning.compress(nn.Dense(3), {})
    with pytest.raises(ValueError, match="must hold"):
        pruning.compress(make("vgg16")[0], make("vgg16")[1])
    with pytest.raises(ValueError, match="chain"):
        pruning.compress_dense(params, layers=["Dense_0", "Dense_2"])


def test_heads_and_hidden_units_of_a_transformer_by_hand():
    module = models.ViT(num_classes=4, patch=2, width=12, num_blocks=2, num_heads=3, hidden=10)
    images = jax.random.normal(jax.random.key(1), (3, 4, 4, 3))
    params = module.init(jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: w + 0.3 * jnp.asarray(rng.normal(size=w.shape), w.dtype), params
    )
    check(module, params, {}, images)
    first, second = (params[f"Block_{i}"] for i in range(2))
    # Of the first block: head 1 has values that are no function of the tokens, nothing reads head
    # 2; unit 3 is constant, units 4 and 5 are read by nothing.
    value, out = first["attention"]["value"], first["attention"]["out"]
    value["kernel"] = value["kernel"].at[:, 1].set(0.0)
    out["kernel"] = out["kernel"].at[2].set(0.0)
    first["Dense_0"]["kernel"] = first["Dense_0"]["kernel"].at[:, 3].set(0.0)
    first["Dense_1"]["kernel"] = first["Dense_1"]["kernel"].at[4:6].set(0.0)
    # Of the second no head is read: one stays.
    out = second["attention"]["out"]
    out["kernel"] = jnp.zeros_like(out["kernel"])
    small = check(module, params, {}, images)
    assert small.widths == {
        "Block_0/attention": 1, "Block_1/attention": 1, "Block_0/Dense_0": 7, "Block_1/Dense_0": 10,
    }  # fmt: skip
    # A head of 4 features: 12 inputs and a bias to query, key and value, and 12 outputs of each.
    head, unit = 4 * (3 * (12 + 1) + 12), 12 + 1 + 12
    assert small.num_params_before - small.num_params == 4 * head + 3 * unit
    again = pruning.compress(small.module, small.params)
    assert again.num_params == small.num_params


def test_a_transformer_with_nothing_left_but_its_stream():
    module = models.ViT(num_classes=4, patch=2, width=8, num_blocks=1, num_heads=2, hidden=6)
    images = jax.random.normal(jax.random.key(1), (3, 4, 4, 3))
    params = module.init(jax.random.key(0), images)["params"]
    block = params["Block_0"]
    block["attention"]["value"] = jax.tree.map(jnp.zeros_like, block["attention"]["value"])
    block["attention"]["out"]["bias"] = jnp.ones(8)
    block["Dense_0"] = jax.tree.map(jnp.ones_like, block["Dense_0"])
    block["Dense_0"]["kernel"] = jnp.zeros_like(block["Dense_0"]["kernel"])
    assert set(check(module, params, {}, images).widths.values()) == {1}

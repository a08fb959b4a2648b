import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlimit import curvature, flatten_weights
from jaxlimit._core.weights import describe_selection, selected

PARAMS = {
    "Conv_0": {"bias": jnp.zeros(2), "kernel": jnp.arange(6.0).reshape(3, 2)},
    "BatchNorm_0": {"bias": jnp.full(2, 7.0), "scale": jnp.ones(2)},
    "head": [jnp.float32(5.0), jnp.zeros((0, 3))],
}


def test_flat_order_is_that_of_the_pytree_and_the_way_back_keeps_the_rest():
    vector, unflatten = flatten_weights(PARAMS)
    expected = [0, 0, 0, 1, 2, 3, 4, 5, 5]
    np.testing.assert_array_equal(vector, expected)
    back = jax.jit(lambda unflatten, v: unflatten(v))(unflatten, vector + 1)
    assert jax.tree.structure(back) == jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(back["Conv_0"]["kernel"], np.arange(6).reshape(3, 2) + 1)
    np.testing.assert_array_equal(back["BatchNorm_0"]["bias"], [7, 7])
    assert (back["head"][0], back["head"][1].shape) == (6, (0, 3))


shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(
    shapes=shapes, chosen=st.lists(st.booleans(), min_size=5, max_size=5), seed=st.integers(0, 9)
)
def test_there_and_back_is_the_identity(shapes, chosen, seed):
    rng = np.random.default_rng(seed)
    params = {str(i): rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}

    def where(name, leaf):
        return chosen[int(name)]

    size = sum(leaf.size for name, leaf in params.items() if chosen[int(name)])
    if not size:
        with pytest.raises(ValueError, match="where must select at least one weight"):
            flatten_weights(params, where)
        return
    vector, unflatten = flatten_weights(params, where)
    assert vector.shape == (size,)
    jax.tree.map(np.testing.assert_array_equal, unflatten(vector), params)


def test_types_are_joined_in_the_vector_and_parted_on_the_way_back():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(1, jnp.float32)}
    vector, unflatten = flatten_weights(params)
    assert vector.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, unflatten(vector)) == {
        "a": jnp.bfloat16,
        "b": jnp.float32,
    }


def test_the_way_back_is_linear_with_a_transpose_that_flattens():
    vector, unflatten = flatten_weights(PARAMS)
    cotangent = jax.tree.map(lambda x: x + 1.0, PARAMS)
    _, transpose = jax.vjp(unflatten, vector)
    np.testing.assert_array_equal(transpose(cotangent)[0], flatten_weights(cotangent)[0])


@pytest.mark.parametrize(
    ("name", "studied"),
    [
        ("Dense_0/kernel", True),
        ("Dense_0/bias", True),
        ("BatchNorm_3/scale", False),
        ("block/batch_norm/bias", False),
        ("ConvNorm_0/BatchNorm_0/bias", False),
        ("ConvNorm_0/Conv_0/bias", True),
        ("ConvNorm_0/Conv_0/kernel", True),
        ("pre_norm/attention/value/kernel/value", True),
        ("LayerNorm_0/scale", False),
        ("block/norm1/bias", False),
        ("norm/scale/value", False),
        ("norms/0/bias/value", False),
        ("bn/scale", False),
        ("bn_init/scale", False),
        ("layer2/conv_bn1/bias", False),
        ("bnb/kernel", True),
        ("subnet/bias", True),
        ("h/0/ln_1/scale", False),
        ("transformer/ln_f/bias", False),
        ("root_block/gn_root/scale", False),
        ("block1/unit01/gn_proj/bias", False),
        ("attention/query_ln/scale", False),
        ("encoder/RMSNorm_0/scale", False),
        ("encoder/layernorm_embedding/bias", False),
        ("ConvBN_0/scale", False),
        ("BatchNorm2d/weight", False),
        ("layer1.0.bn1.weight", False),
        ("layer1.0.conv1.weight", True),
        ("layer_normalization/gamma", False),
        ("abnormal/kernel", True),
        ("abnormal/bias", True),
        ("enormous/kernel", True),
        ("denormalizer/kernel", True),
        ("denormalizer/scale", True),
        ("norm_mlp/kernel", True),
        ("norm_mlp/bias", True),
        ("norm_mlp/scale", False),
        ("ln_mlp/bias", False),
        ("bn_conv1/bias", False),
        ("adaptive_norm/kernel", True),
        ("norm_embed/embedding", True),
        ("layer_scale/gamma", True),
        ("inner/kernel", True),
        ("ln", False),
    ],
)
def test_the_default_selector_leaves_normalisation_out(name, studied):
    assert curvature.is_weight(name, None) is studied
    assert curvature.every_leaf(name, None) is True


@pytest.mark.parametrize(
    ("name", "shape", "studied"),
    [
        ("norm/weight", (4,), False),
        ("norm/weight", (4, 3), True),  # of a layer that is called so and is none
        ("norm/scale", (1, 4, 1), False),
        ("norm/bias", (4, 2), False),
        ("norm/kernel", (4,), True),
        ("ln/g", (4,), False),
        ("ln/g", (4, 4), True),
    ],
)
def test_the_rank_of_a_leaf_tells_a_kernel_from_a_scale(name, shape, studied):
    assert curvature.is_weight(name, np.ones(shape)) is studied


def test_a_line_says_what_is_left_out_and_what_only_looks_like_a_scale():
    params = {
        "ln_1": {"scale": np.ones(3), "bias": np.ones(3)},
        "fc": {"kernel": np.ones((3, 2)), "bias": np.ones(2)},
        "layer_scale": {"gamma": np.ones(5)},
    }
    assert describe_selection(params) == (
        "13 of 19 parameters are under study; left out: ln_1/bias, ln_1/scale (6); "
        "kept though named like a scale: layer_scale/gamma (5)"
    )
    assert describe_selection(params, curvature.every_leaf) == (
        "19 of 19 parameters are under study; "
        "kept though named like a scale: layer_scale/gamma, ln_1/bias, ln_1/scale (11)"
    )
    many = {f"bn{i}": {"scale": np.ones(1)} for i in range(5)} | {"w": np.ones(2)}
    assert describe_selection(many).endswith("bn0/scale, bn1/scale, bn2/scale and 2 more (5)")


def test_selectors_see_names_and_leaves():
    assert selected(PARAMS, lambda name, leaf: name == "head/0") == [0, 0, 0, 0, 1, 0]
    assert selected(PARAMS, lambda name, leaf: leaf.ndim == 2) == [0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ValueError, "params must hold at least one array, got an empty pytree"),
        ({"a": np.arange(3)}, TypeError, r"params\['a'\] must be a real floating .*int"),
        ({"a": np.ones(3, complex)}, TypeError, r"params\['a'\] .*complex"),
        ([np.array([1.0, np.inf])], ValueError, r"params\[0\] must be finite"),
        ({"BatchNorm_0": np.ones(3)}, ValueError, "where must select at least one weight"),
    ],
)
def test_bad_parameters_are_named(params, error, message):
    with pytest.raises(error, match=message):
        flatten_weights(params)

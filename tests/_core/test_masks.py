"""Masks between their two forms: what is not under study stays, and other sizes are named."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit._core.masks import flat_mask, kept_by_layer, layer_masks, mask_tree

PARAMS = {"norm": {"scale": jnp.ones(3)}, "out": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}}


def test_there_and_back():
    flat = np.array([True, False, False, True, True, False])
    tree = mask_tree(flat, PARAMS)
    assert tree["norm"]["scale"].all()
    np.testing.assert_array_equal(tree["out"]["bias"], flat[:2])
    np.testing.assert_array_equal(tree["out"]["kernel"], flat[2:].reshape(2, 2))
    for mask in (tree, flat, jnp.asarray(flat)):
        np.testing.assert_array_equal(flat_mask(mask, PARAMS), flat)


@pytest.mark.parametrize("size", [5, 7])
def test_another_size_is_named(size):
    with pytest.raises(ValueError, match=f"each of the 6 weights under study, got {size}"):
        flat_mask(np.ones(size, bool), PARAMS)
    with pytest.raises(ValueError, match=rf"mask must be flat, \[6\].*got shape \({size},\)"):
        mask_tree(np.ones(size, bool), PARAMS)


def test_numbers_are_no_mask():
    with pytest.raises(TypeError, match="mask must be boolean"):
        flat_mask(np.ones(6), PARAMS)


def test_layers_hold_what_is_studied_alone():
    params = PARAMS | {"top": jnp.ones(3)}
    flat = np.array([True, False, False, True, True, False, True, True, True])
    assert kept_by_layer(flat, params) == {"out": (3, 6), "top": (3, 3)}
    masks = layer_masks(params)
    np.testing.assert_array_equal(masks["out"], np.arange(9) < 6)
    np.testing.assert_array_equal(masks["top"], np.arange(9) >= 6)

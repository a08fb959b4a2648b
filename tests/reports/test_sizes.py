"""Bytes of a pruned network, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import Task, models, training
from jaxlimit.reports.sizes import stored


def loss(params, batch):
    return jnp.mean(batch)


def layers(dead):
    """A convolution and two dense layers, whose units between are dead but for some."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    params = {
        "Conv_0": {"kernel": normal(3, 3, 1, 4), "bias": normal(4)},
        "Dense_9": {"kernel": normal(16, 12), "bias": normal(12)},
        "Dense_10": {"kernel": normal(12, 5), "bias": normal(5)},
    }
    params["Dense_10"]["kernel"][:dead] = 0
    return params


def test_the_dense_end_of_a_network_is_compressed():
    task = Task(loss, layers(0), [jnp.ones((2, 2))])
    found = stored(task, layers(7))
    whole = 4 * (3 * 3 * 4 + 4 + 16 * 12 + 12 + 12 * 5 + 5)
    assert found.size.dense == whole
    assert found.compressed == whole - 4 * 7 * (16 + 1 + 5)
    assert "units left: Dense_9 5" in str(found)
    assert "every unit does something" in str(stored(task, layers(0)))
    assert stored(task, layers(0)).compressed == whole


def test_a_network_of_the_zoo_is_compressed_as_its_loss_says():
    module = models.MLP(widths=(6, 4), num_classes=3)
    params = module.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))["params"]
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:, :2].set(0.0)
    params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[:2].set(0.0)
    by_loss = Task(training.make_loss(module), params, [jnp.ones((2, 2))])
    by_name = Task(loss, params, [jnp.ones((2, 2))], module=module)
    for task in (by_loss, by_name):
        found = stored(task, params)
        left = 4 * (4 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3)
        assert found.compressed == left


@pytest.mark.parametrize(
    "params",
    [
        {"w": np.ones((3, 4), np.float32)},  # no names of layers
        {"Dense_0": {"kernel": np.ones((3, 4), np.float32)}},  # no units between
        {"Conv_0": {"kernel": np.ones((3, 3, 1, 2), np.float32)}},
        {  # no chain
            "Dense_0": {"kernel": np.ones((3, 4), np.float32)},
            "Dense_1": {"kernel": np.ones((3, 4), np.float32)},
        },
        np.ones(3, np.float32),
    ],
)
def test_others_have_no_compressed_form(params):
    found = stored(Task(loss, params, [jnp.ones((2, 2))]), params)
    assert found.compressed is None
    assert "compressed: none" in str(found)

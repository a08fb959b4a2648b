"""The transformer against the same mathematics in NumPy, its curvature against dense oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from jaxlimit import curvature, flatten_weights, models

SMALL = {"patch": 2, "width": 6, "num_blocks": 2, "num_heads": 2, "hidden": 8}


@pytest.fixture(scope="module")
def net():
    module = models.create("vit", num_classes=3, **SMALL)
    images = np.random.default_rng(0).normal(size=(5, 4, 6, 2))
    init = jax.jit(module.init)
    params = init(jax.random.key(0), jnp.asarray(images, jnp.float32))["params"]
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda w: w + 0.3 * noise.normal(size=w.shape).astype(np.float32), params)
    return module, params, images


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference(p, images):
    """ViT in float64, token by token and head by head."""
    n, height, width, _ = images.shape
    patches = [
        images[:, i : i + 2, j : j + 2].reshape(n, -1)
        for i in range(0, height, 2)
        for j in range(0, width, 2)
    ]
    x = np.stack(patches, 1) @ p["embed"]["kernel"] + p["embed"]["bias"]
    x = np.concatenate([np.repeat(p["class_token"], n, 0), x], 1) + p["positions"]
    for b in (p["Block_0"], p["Block_1"]):
        y, heads = layer_norm(x, b["LayerNorm_0"]), []
        for h in range(2):
            q, k, v = (
                y @ b["attention"][part]["kernel"][:, h] + b["attention"][part]["bias"][h]
                for part in ("query", "key", "value")
            )
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            heads.append(np.exp(log_softmax(scores, -1)) @ v @ b["attention"]["out"]["kernel"][h])
        x = x + sum(heads) + b["attention"]["out"]["bias"]
        y = layer_norm(x, b["LayerNorm_1"])
        hidden = gelu(y @ b["Dense_0"]["kernel"] + b["Dense_0"]["bias"])
        x = x + hidden @ b["Dense_1"]["kernel"] + b["Dense_1"]["bias"]
    head = p["Head_0"]["Dense_0"]
    return layer_norm(x[:, 0], p["LayerNorm_0"]) @ head["kernel"] + head["bias"]


def test_logits_are_those_of_the_mathematics(net):
    module, params, images = net
    found = jax.jit(module.apply)({"params": params}, jnp.asarray(images, jnp.float32))
    truth = reference(jax.tree.map(lambda w: np.asarray(w, np.float64), params), images)
    np.testing.assert_allclose(found, truth, rtol=2e-4, atol=2e-4)


def test_norms_are_constants_and_all_else_is_weight(net):
    _, params, _ = net
    vector, _ = flatten_weights(params)
    norms = 2 * 6 * 5
    assert vector.size == sum(leaf.size for leaf in jax.tree.leaves(params)) - norms


def test_products_are_those_of_the_dense_matrices(net):
    module, params, images = net
    labels = jnp.array([0, 1, 2, 1, 0])
    batches = (jnp.asarray(images, jnp.float32)[None], labels[None])
    apply = lambda p, batch: module.apply({"params": p}, batch[0])  # noqa: E731

    def cross_entropy(logits, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss = curvature.split_loss(apply, cross_entropy)
    vector, unflatten = flatten_weights(params)
    one = jax.tree.map(lambda leaf: leaf[0], batches)
    flat = lambda w: loss(unflatten(w), one)  # noqa: E731
    v = jnp.asarray(np.random.default_rng(2).normal(size=vector.size), jnp.float32)
    hessian = jax.jit(jax.hessian(flat))(vector)
    product = curvature.hessian_matvec(loss, params, batches)(v)
    np.testing.assert_allclose(product, hessian @ v, rtol=1e-3, atol=1e-4)
    jacobian = jax.jit(jax.jacobian(lambda w: apply(unflatten(w), one)))(vector)
    p = np.asarray(jax.jit(apply)(params, one))
    p = np.exp(p) / np.exp(p).sum(-1, keepdims=True)
    outer = (np.eye(3) * p[:, None] - p[:, :, None] * p[:, None]) / len(p)
    gauss_newton = np.einsum("nia,nij,njb->ab", jacobian, outer, jacobian, optimize=True)
    product = curvature.gauss_newton_matvec(loss, params, batches)(v)
    np.testing.assert_allclose(product, gauss_newton @ np.asarray(v), rtol=1e-3, atol=1e-4)
    diagonal = curvature.diagonal(loss, params, batches)
    np.testing.assert_allclose(diagonal, np.diag(gauss_newton), rtol=1e-3, atol=1e-6)


def test_sizes_of_the_full_net_and_bad_images():
    module = models.create("vit", num_classes=10)
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    block = 4 * (192 * 192 + 192) + 4 * 192 + 2 * 192 * 768 + 768 + 192
    count = 48 * 192 + 192 + 192 + 65 * 192 + 6 * block + 2 * 192 + 192 * 10 + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == count
    with pytest.raises(ValueError, match="multiples of the patch"):
        module.init(jax.random.key(0), jnp.zeros((1, 30, 32, 3)))
    with pytest.raises(ValueError, match="64 patches, got 256"):
        jax.eval_shape(module.apply, {"params": like}, jnp.zeros((1, 64, 64, 3)))


def test_half_precision_gives_float32_logits_close_by(net):
    module, params, images = net
    narrow = module.clone(dtype=jnp.bfloat16)
    images = jnp.asarray(images, jnp.float32)
    found = jax.jit(narrow.apply)({"params": params}, images)
    assert found.dtype == jnp.float32
    wide = jax.jit(module.apply)({"params": params}, images)
    np.testing.assert_allclose(found, wide, rtol=0.1, atol=0.1)

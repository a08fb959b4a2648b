"""Losses with Hessians by hand, and the tools to hold an operator against them."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

EPS = float(np.finfo(np.float32).eps)
BF16 = 2.0**-8  # unit roundoff of bfloat16
MODES = ["linearized", "forward-over-reverse"]
NUM_EXAMPLES, NUM_INPUTS, NUM_CLASSES = 11, 4, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_EXAMPLES, NUM_INPUTS)).astype(np.float32)
TARGETS = RNG.normal(size=(NUM_EXAMPLES, NUM_CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, NUM_CLASSES, NUM_EXAMPLES)


def dense(matvec, dim, dtype=jnp.float32):
    """The operator's matrix: one block of all unit vectors."""
    return np.asarray(jax.vmap(matvec)(jnp.eye(dim, dtype=dtype))).T


def ragged(*arrays):
    """Batches of 4, 4 and 3 examples."""
    return [tuple(a[i : i + 4] for a in arrays) for i in range(0, NUM_EXAMPLES, 4)]


def assert_close(got, expected, rounding=EPS):
    """Compare matrices to a hundred units of rounding of their greatest entry."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=100 * rounding * np.abs(expected).max())


def linear_loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params - y[:, 0]) ** 2)


def logistic_loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.logaddexp(0, -jnp.sign(y[:, 0]) * (x @ params)))


def softmax_loss(params, batch):
    return jnp.mean(example_losses(softmax_logits(params, batch), batch))


def softmax_logits(params, batch):
    return batch[0] @ params["kernel"] + params["bias"]


def example_losses(logits, batch):
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch[-1][:, None], -1)[:, 0]


W = RNG.normal(size=NUM_INPUTS).astype(np.float32)
SOFTMAX = {
    "kernel": RNG.normal(size=(NUM_INPUTS, NUM_CLASSES)).astype(np.float32),
    "bias": RNG.normal(size=NUM_CLASSES).astype(np.float32),
}


def softmax_factors():
    """Per-example output Hessians diag p - p pᵀ, and inputs with a leading 1 for the bias."""
    logits = X.astype(float) @ SOFTMAX["kernel"] + SOFTMAX["bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    inputs = np.concatenate([np.ones((NUM_EXAMPLES, 1)), X], axis=1)
    return p[:, :, None] * np.eye(NUM_CLASSES) - p[:, :, None] * p[:, None, :], inputs


def softmax_hessian():
    curvatures, inputs = softmax_factors()
    # Flat order: bias (input 0), then the kernel row by row.
    hessian = np.einsum("nab,ni,nj->iajb", curvatures, inputs, inputs) / NUM_EXAMPLES
    return hessian.reshape(15, 15)


def logistic_hessian():
    p = 1 / (1 + np.exp(-X.astype(float) @ W))
    return (X.T * p * (1 - p)) @ X / NUM_EXAMPLES


class Net(nn.Module):
    """Dense, convolution and BatchNorm layers, and a recomputed one."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(6)(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.relu(nn.Conv(2, (3,))(x[..., None])).reshape(len(x), -1)
        return nn.remat(nn.Dense)(NUM_CLASSES)(x)


@cache
def make_net():
    """Parameters and BatchNorm statistics, neither of them at its starting value."""
    variables = Net().init(jax.random.key(1), X)
    params = jax.tree.map(lambda x: x + 0.1, variables["params"])
    return params, {"batch_stats": jax.tree.map(lambda x: x + 0.2, variables["batch_stats"])}


NET_DIM = 77  # without the 12 of BatchNorm
NET_BATCHES = X[:10].reshape(2, 5, -1), LABELS[:10].reshape(2, 5)


def net_loss(params, batch, state):
    logits = Net().apply({"params": params, **state}, batch[0])
    return jnp.mean(example_losses(logits, batch))


def mlp_logits(params, batch, scale):
    return scale * jnp.tanh(batch[0] @ params["first"]) @ params["second"]


def mlp_loss(params, batch, scale):
    return output_loss(mlp_logits(params, batch, scale), batch)


def output_loss(logits, batch):
    return example_losses(logits, batch).mean()


NUM_HIDDEN, MLP_DIM, SCALE = 3, 21, np.float32(1.5)
MLP = {
    "first": RNG.normal(size=(NUM_INPUTS, NUM_HIDDEN)).astype(np.float32),
    "second": RNG.normal(size=(NUM_HIDDEN, NUM_CLASSES)).astype(np.float32),
}


def mlp_oracle():
    """Jacobian of the logits, output gradients and output Hessians by hand, and the Hessian."""
    first, second, x = (a.astype(float) for a in (MLP["first"], MLP["second"], X))
    hidden = np.tanh(x @ first)
    logits = SCALE * hidden @ second
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    classes, slope = np.eye(NUM_CLASSES), 1 - hidden**2
    by_first = SCALE * np.einsum("ni,nh,ha->naih", x, slope, second)
    by_second = SCALE * np.einsum("nh,ab->nahb", hidden, classes)
    jacobian = np.concatenate(
        [by.reshape(NUM_EXAMPLES, NUM_CLASSES, -1) for by in (by_first, by_second)], axis=2
    )
    gradient = p - classes[LABELS]
    output_hessian = p[:, :, None] * classes - p[:, :, None] * p[:, None, :]
    gauss_newton = np.einsum("nai,nab,nbj->ij", jacobian, output_hessian, jacobian)
    # The rest of the Hessian: the network's own curvature, weighted by the output gradient.
    back, bend = gradient @ second.T, -2 * hidden * slope
    same = np.eye(NUM_HIDDEN)
    within = SCALE * np.einsum("ni,nj,nh,nh,hg->ihjg", x, x, back, bend, same)
    across = SCALE * np.einsum("ni,nh,na,hg->ihga", x, slope, gradient, same)
    rest = np.zeros((MLP_DIM, MLP_DIM))
    rest[:12, :12], rest[:12, 12:] = within.reshape(12, 12), across.reshape(12, 9)
    rest[12:, :12] = rest[:12, 12:].T
    return jacobian, gradient, gauss_newton / NUM_EXAMPLES, (gauss_newton + rest) / NUM_EXAMPLES


JACOBIAN, OUTPUT_GRADIENT, GAUSS_NEWTON, MLP_HESSIAN = mlp_oracle()
BATCHES = ragged(X, LABELS)


def program_of(matvec, vector):
    return jax.make_jaxpr(lambda matvec, vector: matvec(vector))(matvec, vector)

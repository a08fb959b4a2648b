"""A network and its data that no device count divides, and what to compare results with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def problem(num=53, hidden=9):
    """An MLP with D = 109, which neither 8 nor 3 divides, on 53 examples."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (6, hidden)), "bias": jnp.zeros(hidden)},
        "Dense_1": {"kernel": jax.random.normal(keys[1], (hidden, 4)), "bias": jnp.ones(4)},
        "BatchNorm_0": {"scale": jnp.full(hidden, 1.5)},
    }
    inputs = jax.random.normal(keys[2], (num, 6))
    labels = jax.random.randint(keys[3], (num,), 0, 4)
    return params, (inputs, labels)


def logits(params, batch):
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = jnp.tanh(batch[0] @ first["kernel"] + first["bias"])
    return (hidden * params["BatchNorm_0"]["scale"]) @ second["kernel"] + second["bias"]


def cross_entropy(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def loss(params, batch):
    return cross_entropy(logits(params, batch), batch)


def ragged(batch, *ends):
    """Cut a batch at `ends`."""
    leaves, treedef = jax.tree.flatten(batch)
    parts = zip(*(jnp.split(leaf, ends) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(treedef, part) for part in parts]


def close(result, wanted, tolerance=2e-6):
    """Whether two vectors agree relative to the norm of the wanted one."""
    error = np.linalg.norm(np.asarray(result) - np.asarray(wanted))
    assert error <= tolerance * np.linalg.norm(np.asarray(wanted)), error

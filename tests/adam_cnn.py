"""A small convolutional network trained as people train: Adam, no l1, digits."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from sklearn.datasets import load_digits

from jaxlimit import Task, curvature, formats


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Data(NamedTuple):
    train: tuple
    held_out: tuple


def data() -> Data:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)[order]
    labels = labels[order].astype(np.int32)
    return Data((images[:1297], labels[:1297]), (images[1297:], labels[1297:]))


def cut(examples, size):
    return [tuple(x[i : i + size] for x in examples) for i in range(0, len(examples[1]), size)]


def outputs(params, batch):
    return CNN().apply({"params": params}, batch[0])


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def accuracy(params, batch):
    return jnp.mean(jnp.argmax(outputs(params, batch), -1) == batch[1])


loss = curvature.split_loss(outputs, cross_entropy)


@functools.cache
def trained(epochs=12):
    images, labels = data().train
    params = CNN().init(jax.random.key(0), images[:1])["params"]
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    carry, rng = (params, optimizer.init(params)), np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(len(labels))[: len(labels) // 64 * 64].reshape(-1, 64)
        carry, _ = jax.lax.scan(
            step, carry, (jnp.asarray(images)[order], jnp.asarray(labels)[order])
        )
    return jax.device_get(carry[0])


def task(folder, **changes):
    """Train, write the checkpoint as Flax does, and read it again."""
    path = folder / "cnn.msgpack"
    path.write_bytes(serialization.to_bytes(trained()))
    checkpoint = formats.load(path, like=trained())
    held = {"held_out": cut(data().held_out, 500), "accuracy": accuracy, "checkpoint": checkpoint}
    return Task(loss, checkpoint.params, cut(data().train, 649), **held | changes)

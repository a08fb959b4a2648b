"""A checkpoint goes on with the data, weights and loss that it was made with, and no others."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, spectrum

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM, DIM = 10_000, 12
INPUTS = RNG.normal(size=(NUM, 4)).astype(np.float32)
TARGETS = RNG.normal(size=NUM).astype(np.float32)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32), "b": jnp.ones((2, 2))}
OFFSET = np.zeros(2, np.float32)


def loss(params, batch, scale):
    outputs = jnp.tanh(batch[0] @ params["a"]) @ params["b"] + OFFSET
    return jnp.mean((scale * outputs.sum(1) - batch[1]) ** 2)


def batches_of(inputs, size):
    if NUM % size:
        return [(inputs[i : i + size], TARGETS[i : i + size]) for i in range(0, NUM, size)]
    return inputs.reshape(-1, size, 4), TARGETS.reshape(-1, size)


def run(folder, *, loss=loss, params=PARAMS, inputs=INPUTS, size=1000, scale=1.0, **settings):
    operator = curvature.hessian_matvec(
        loss, params, batches_of(inputs, size), jnp.float32(scale), **settings
    )
    return go(operator, folder)


def go(operator, folder):
    monitor = spectrum.Monitor(chunk=3, checkpoint_dir=folder, checkpoint_every=3)
    return spectrum.run_probes(operator, KEY, num_steps=6, monitor=monitor)


def changed(array, place, by):
    array = np.array(array)
    array[place] += by
    return array


OTHERS = {  # one change each, and what the error says of it
    "one input of 10,000 examples": ({"inputs": changed(INPUTS, (17, 2), 1e-3)}, "data"),
    "two examples whose inputs are swapped": (
        {"inputs": INPUTS[[1, 0, *range(2, NUM)]]},
        "data",
    ),
    "one weight in its last bit": (
        {"params": PARAMS | {"b": PARAMS["b"].at[0, 0].set(np.nextafter(1, 2, dtype="f4"))}},
        "params",
    ),
    "an operand": ({"scale": 1 + 1e-4}, "operands"),
    "a term of the loss": (
        {"loss": lambda p, b, s: loss(p, b, s) + 1e-6 * jnp.sum(p["a"] ** 2)},
        "program of JAX",
    ),
    "the mask": ({"mask": np.arange(DIM) != 3}, "mask"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nearly_equal_problems_are_told_apart(name, tmp_path):
    change, said = OTHERS[name]
    first = {"mask": np.arange(DIM) != 4} if said == "mask" else {}
    run(tmp_path, **first)
    with pytest.raises(ValueError, match=rf"another run, which differs in operator\.{said}"):
        run(tmp_path, **change)


def test_an_array_that_the_loss_closes_over(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setitem(globals(), "OFFSET", np.array([0, 1e-5], np.float32))
    with pytest.raises(ValueError, match=r"differs in operator\.program of JAX"):
        run(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 250},
        {"size": 3000},
        {"mode": "forward-over-reverse"},
        {"product_dtype": jnp.bfloat16},
        {"inputs": INPUTS.astype(np.float64)},
        {"mesh": jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))},
    ],
    ids=["smaller batches", "ragged", "recomputed", "narrow products", "float64", "mesh"],
)
def test_the_same_problem_goes_on_however_it_is_computed(settings, tmp_path):
    wanted = run(tmp_path)
    found = run(tmp_path, **settings)
    # All steps were kept, so these are the first run's own bits.
    np.testing.assert_array_equal(found.nodes, wanted.nodes)


def test_data_read_from_an_iterator_in_another_order(tmp_path):
    def operator(inputs, order):
        batches = batches_of(inputs, 1000)
        read = lambda: ((batches[0][i], batches[1][i]) for i in order)  # noqa: E731
        return curvature.hessian_matvec_over(loss, PARAMS, read, jnp.float32(1))

    wanted = go(operator(INPUTS, range(10)), tmp_path)
    found = go(operator(INPUTS, [3, 1, 2, 0, *range(4, 10)]), tmp_path)
    np.testing.assert_array_equal(found.nodes, wanted.nodes)
    with pytest.raises(ValueError, match=r"differs in operator\.data"):
        go(operator(changed(INPUTS, (0, 0), 1e-3), range(10)), tmp_path)


@pytest.mark.slow
def test_a_program_has_the_same_digest_in_another_process():
    script = """
        import jax, jax.numpy as jnp, numpy as np, optax, flax.linen as nn
        from jaxlimit._core.functions import Frozen

        module = nn.Sequential([nn.Conv(4, (3, 3)), nn.gelu, lambda x: x.mean((1, 2)), nn.Dense(3)])
        x, y = jnp.ones((2, 8, 8, 1)), jnp.array([0, 1])
        params = module.init(jax.random.key(0), x)
        noise = jax.random.key(3)

        @jax.custom_vjp
        def straight(x):
            return jnp.round(x)

        straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))

        def loss(params):
            out = straight(module.apply(params, x)) + jax.random.normal(noise, (2, 3))
            out = jax.lax.scan(lambda c, r: (c + jax.nn.relu(r), c), jnp.zeros(3), out)[1]
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

        print(Frozen(jax.grad(loss), params).digest)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ran = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    digests = [process.stdout.strip() for process in ran]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 32

"""The memory of a certificate at the size of a ResNet, in a process of its own."""

import subprocess
import sys

import pytest

DIM = 25_000_000
FLOATS = 7  # 6 by count; 6.8 were measured, pages that the allocator keeps among them

PROGRAM = f"""
import resource
import jax, jax.numpy as jnp, numpy as np
from jax.tree_util import Partial
from jaxlimit import limits

dim = {DIM}
rng = np.random.default_rng(0)
diagonal = jnp.asarray(10 ** rng.uniform(-3, 0, dim), jnp.float32)
common = jnp.asarray(rng.standard_normal(dim) / dim**0.5, jnp.float32)
weights = jnp.asarray(rng.standard_normal(dim), jnp.float32)
gradient = 1e-3 * common

def product(diagonal, common, v):
    return diagonal * v + jnp.sum(common * v) * common

operator = Partial(jax.jit(product), diagonal, common)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

# The operator, its argument and its result, and what is given.
argument = np.ones(dim, np.float32)
result = np.asarray(operator(jnp.asarray(argument)))
before = peak()
del argument, result
settings = {{}} if SETTING == "rows" else {{"diagonal": diagonal}}
found = limits.certificate(operator, gradient, weights, 0.02 * dim, num_products=40, **settings)
print((peak() - before) / 4 / dim, found.num_kept, found.num_products)
"""


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["diagonal", "rows"])
def test_seven_floats_a_weight(setting):
    program = PROGRAM.replace("SETTING", repr(setting))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    floats, num_kept, num_products = done.stdout.split()
    assert float(floats) <= FLOATS
    # Weights of all sizes and curvatures: some may go, and not all.
    assert 0.1 * DIM < int(num_kept) < DIM
    assert int(num_products) <= 40

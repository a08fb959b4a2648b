"""Measures and their integrals with and without jit, against a dense eigenproblem."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import spectrum

DIM = 12
MATRIX = np.random.default_rng(0).normal(size=(DIM, DIM)).astype(np.float32)
MATRIX = (MATRIX + MATRIX.T) / 2
OPERATOR = jax.tree_util.Partial(jnp.matmul, jnp.asarray(MATRIX))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_full_depth_reads_the_probe_s_own_measure(self):
        """Nodes are eigenvalues, weights the squares of the probe's coefficients."""

        def measure(operator, key):
            found = spectrum.spectral_measure(operator, key, dim=DIM, num_steps=DIM)
            return found.nodes, found.weights

        nodes, weights = self.variant(measure)(OPERATOR, jax.random.key(0))
        chex.assert_shape([nodes, weights], (1, DIM))
        chex.assert_tree_all_finite((nodes, weights))
        order = np.argsort(nodes[0])
        chex.assert_trees_all_close(
            np.asarray(nodes[0])[order], np.linalg.eigvalsh(MATRIX), rtol=1e-3, atol=1e-3
        )
        chex.assert_trees_all_close(weights.sum(), 1.0, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_traces_of_a_known_spectrum_are_means(self):
        eigenvalues = jnp.asarray(np.linalg.eigvalsh(MATRIX))

        def mean_square(eigenvalues):
            measure = spectrum.exact_measure(eigenvalues)
            return spectrum.trace_function(measure, jnp.square).value

        found = self.variant(mean_square)(eigenvalues)
        chex.assert_rank(found, 0)
        chex.assert_trees_all_close(found, (MATRIX**2).sum() / DIM, rtol=1e-4)

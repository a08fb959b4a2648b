"""The recurrence with and without jit, against the matrix that it reduces."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import lanczos

MATRIX = np.random.default_rng(3).normal(size=(10, 10)).astype(np.float32)
MATRIX = (MATRIX + MATRIX.T) / 2


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_the_basis_reduces_the_matrix_to_its_tridiagonal(self):
        """QᵀAQ = T, and Q has orthonormal rows."""

        def run(matrix, start):
            operator = jax.tree_util.Partial(jnp.matmul, matrix)
            return lanczos.tridiagonalize(operator, start, num_steps=6, reorthogonalize="full")

        start = jax.random.normal(jax.random.key(0), (10,))
        found = self.variant(run)(jnp.asarray(MATRIX), start)
        basis = np.asarray(found.basis)[:6]
        chex.assert_shape(basis, (6, 10))
        chex.assert_trees_all_close(basis @ basis.T, np.eye(6), atol=1e-5)
        off = np.asarray(found.off_diagonal)[:5]
        wanted = np.diag(np.asarray(found.diagonal)) + np.diag(off, 1) + np.diag(off, -1)
        chex.assert_trees_all_close(basis @ MATRIX @ basis.T, wanted, atol=1e-4)

"""The functions on a mesh of two processes; `test_distributed.py` starts both.

python process_cases.py COORDINATOR PROCESS FOLDER
"""

import sys
from pathlib import Path

import jax
import mesh_problem as cases
import numpy as np

from jaxlimit import curvature, lanczos, limits, spectrum

DIM = 103


def check(folder: Path) -> None:
    """Hold each function on the mesh against itself on one device."""
    mesh = jax.make_mesh((2,), ("data",))
    params, batch = jax.tree.map(np.asarray, cases.problem())
    batches = cases.ragged(batch, 20, 51)
    args = (cases.loss, params, batches)
    both = {"mesh": mesh}
    cases.close(curvature.mean_gradient(*args, **both), curvature.mean_gradient(*args))
    tolerances = limits.loss_tolerance(*args, **both), limits.loss_tolerance(*args)
    np.testing.assert_allclose(*tolerances, rtol=1e-5)

    one, many = curvature.hessian_matvec(*args), curvature.hessian_matvec(*args, **both)
    over = curvature.hessian_matvec_over(cases.loss, params, lambda: iter(batches), **both)
    vector = jax.random.normal(jax.random.key(3), (DIM,))
    for matvec in (many, over):
        cases.close(matvec(vector), one(vector))

    key, settings = jax.random.key(0), {"dim": DIM, "num_pairs": 3}
    wanted = lanczos.extremal_eigenpairs(one, key, **settings)
    pairs = lanczos.extremal_eigenpairs(many, key, **both, **settings)
    cases.close(pairs.values, wanted.values, 1e-5)
    wanted = lanczos.two_pass_eigenpairs(one, vector, num_steps=12, num_pairs=2)
    for matvec in (many, over):
        pairs = lanczos.two_pass_eigenpairs(matvec, vector, num_steps=12, num_pairs=2, **both)
        cases.close(pairs.values, wanted.values, 1e-5)

    for store in lanczos.STORES:
        settings = {"dim": DIM, "num_steps": 12, "store": store}
        monitor = spectrum.Monitor(chunk=3)
        wanted = spectrum.run_probes(one, key, monitor=monitor, **settings)
        monitor = spectrum.Monitor(chunk=3, checkpoint_dir=folder / store, checkpoint_every=3)
        result = spectrum.run_probes(many, key, monitor=monitor, **both, **settings)
        cases.close(result.diagonal, wanted.diagonal, 1e-4 if store == "bfloat16" else 1e-5)


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    check(Path(sys.argv[3]))

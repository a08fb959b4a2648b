"""Ask PyTorch and curvlinops for what the tests compare with, in float64, and keep it.

python tests/make_torch_fixtures.py, where `.[benchmarks]` is installed.
"""

import jax
import numpy as np
from test_curvature_peers import FIXTURES as OPERATORS
from test_curvature_peers import curvlinops_matrices
from test_models import FIXTURES as MODELS
from test_models import TORCH_CASES, torch_case, torch_results


def main():
    MODELS.parent.mkdir(exist_ok=True)
    with jax.enable_x64(True):
        results = {
            f"{name}/{leaf}": array
            for name in TORCH_CASES
            for leaf, array in torch_results(name, *torch_case(name)[1:]).items()
        }
    np.savez_compressed(MODELS, **results)
    np.savez_compressed(OPERATORS, **curvlinops_matrices(np.float64))


if __name__ == "__main__":
    main()

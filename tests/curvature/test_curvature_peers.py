"""The operators beside those of other libraries, where these are installed or were once asked."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    BATCHES,
    LABELS,
    MLP,
    MLP_DIM,
    NUM_CLASSES,
    NUM_HIDDEN,
    NUM_INPUTS,
    SOFTMAX,
    X,
    assert_close,
    dense,
    example_losses,
    mlp_logits,
    mlp_loss,
    output_loss,
    ragged,
    softmax_hessian,
    softmax_loss,
)

from jaxlimit import curvature

# What `make_torch_fixtures.py` had of curvlinops.
FIXTURES = Path(__file__).parents[1] / "fixtures" / "torch_operators.npz"
# PyTorch keeps the transposes, so that its flat order is another one.
ORDER = np.concatenate(
    [np.arange(12).reshape(4, 3).T.ravel(), 12 + np.arange(9).reshape(3, 3).T.ravel()]
)


def our_matrices():
    one = jnp.float32(1.0)
    matvecs = {
        "HessianLinearOperator": curvature.hessian_matvec(mlp_loss, MLP, BATCHES, one),
        "GGNLinearOperator": curvature.gauss_newton_matvec(
            mlp_logits, output_loss, MLP, BATCHES, one
        ),
        "EFLinearOperator": curvature.fisher_matvec(
            mlp_logits, MLP, BATCHES, one, example_losses=example_losses
        ),
    }
    return {name: dense(matvec, MLP_DIM)[np.ix_(ORDER, ORDER)] for name, matvec in matvecs.items()}


def curvlinops_matrices(dtype):
    """The same by curvlinops, which has to be installed."""
    import curvlinops
    import torch

    model = torch.nn.Sequential(
        torch.nn.Linear(NUM_INPUTS, NUM_HIDDEN, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(NUM_HIDDEN, NUM_CLASSES, bias=False),
    )
    model[0].weight.data, model[2].weight.data = (
        torch.tensor(w.T.astype(dtype)) for w in MLP.values()
    )
    matrices = {}
    for name in ("HessianLinearOperator", "GGNLinearOperator", "EFLinearOperator"):
        operator = getattr(curvlinops, name)(
            model,
            torch.nn.CrossEntropyLoss(),
            list(model.parameters()),
            [(torch.tensor(x.astype(dtype)), torch.tensor(y)) for x, y in BATCHES],
            check_deterministic=False,
        )
        identity = torch.tensor(np.eye(MLP_DIM, dtype=dtype))
        matrices[name] = (operator @ identity).detach().numpy()
    return matrices


def check_operators(expected):
    ours = our_matrices()
    assert ours.keys() == expected.keys()
    for name, matrix in ours.items():
        assert_close(matrix, expected[name])


def test_agreement_with_what_curvlinops_gave():
    with np.load(FIXTURES) as kept:
        check_operators(dict(kept))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_agreement_with_curvlinops():
    pytest.importorskip("curvlinops")
    check_operators(curvlinops_matrices(np.float32))


def test_matfree_takes_the_operator_as_it_is():
    decomp = pytest.importorskip("matfree.decomp")
    matvec = curvature.hessian_matvec(softmax_loss, SOFTMAX, ragged(X, LABELS))
    tridiagonalize = decomp.tridiag_sym(11)
    start = jnp.asarray(np.random.default_rng(7).normal(size=15), jnp.float32)
    _, tridiagonal, *_ = tridiagonalize(lambda v, m: m(v), start, matvec)
    # Ten nonzero eigenvalues, and 0 for the 5 shifts of all classes at once.
    found = np.linalg.eigvalsh(np.asarray(tridiagonal, float))
    assert_close(found, np.linalg.eigvalsh(softmax_hessian())[4:])

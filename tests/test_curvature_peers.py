"""The operators beside those of other libraries, where these are installed."""

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


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_agreement_with_curvlinops():
    torch = pytest.importorskip("torch")
    curvlinops = pytest.importorskip("curvlinops")
    model = torch.nn.Sequential(
        torch.nn.Linear(NUM_INPUTS, NUM_HIDDEN, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(NUM_HIDDEN, NUM_CLASSES, bias=False),
    )
    # PyTorch keeps the transposes, so that its flat order is another one.
    model[0].weight.data, model[2].weight.data = (torch.tensor(w.T) for w in MLP.values())
    order = np.concatenate(
        [np.arange(12).reshape(4, 3).T.ravel(), 12 + np.arange(9).reshape(3, 3).T.ravel()]
    )
    one = jnp.float32(1.0)
    ours = {
        "HessianLinearOperator": curvature.hessian_matvec(mlp_loss, MLP, BATCHES, one),
        "GGNLinearOperator": curvature.gauss_newton_matvec(
            mlp_logits, output_loss, MLP, BATCHES, one
        ),
        "EFLinearOperator": curvature.fisher_matvec(
            mlp_logits, MLP, BATCHES, one, example_losses=example_losses
        ),
    }
    data = [(torch.tensor(x), torch.tensor(y)) for x, y in BATCHES]
    for name, matvec in ours.items():
        theirs = getattr(curvlinops, name)(
            model,
            torch.nn.CrossEntropyLoss(),
            list(model.parameters()),
            data,
            check_deterministic=False,
        )
        matrix = (theirs @ torch.eye(MLP_DIM)).detach().numpy()
        assert_close(dense(matvec, MLP_DIM)[np.ix_(order, order)], matrix)


def test_matfree_takes_the_operator_as_it_is():
    decomp = pytest.importorskip("matfree.decomp")
    matvec = curvature.hessian_matvec(softmax_loss, SOFTMAX, ragged(X, LABELS))
    tridiagonalize = decomp.tridiag_sym(11)
    start = jnp.asarray(np.random.default_rng(7).normal(size=15), jnp.float32)
    _, tridiagonal, *_ = tridiagonalize(lambda v, m: m(v), start, matvec)
    # Ten nonzero eigenvalues, and 0 for the 5 shifts of all classes at once.
    found = np.linalg.eigvalsh(np.asarray(tridiagonal, float))
    assert_close(found, np.linalg.eigvalsh(softmax_hessian())[4:])

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    BATCHES,
    EPS,
    GAUSS_NEWTON,
    JACOBIAN,
    LABELS,
    MLP,
    MLP_DIM,
    MLP_HESSIAN,
    MODES,
    NET_BATCHES,
    NET_DIM,
    NUM_EXAMPLES,
    OUTPUT_GRADIENT,
    SCALE,
    SOFTMAX,
    TARGETS,
    W,
    X,
    assert_close,
    dense,
    example_losses,
    linear_loss,
    logistic_hessian,
    logistic_loss,
    make_net,
    mlp_logits,
    mlp_loss,
    net_loss,
    output_loss,
    program_of,
    ragged,
    softmax_hessian,
    softmax_logits,
    softmax_loss,
)
from jax.extend import core
from jax.tree_util import Partial

from jaxlimit import curvature, flatten_weights

# --- closed forms -----------------------------------------------------------------------------

PROBLEMS = {
    "linear": (linear_loss, W, ragged(X, TARGETS), X.T.astype(float) @ X / NUM_EXAMPLES),
    "logistic": (logistic_loss, W, ragged(X, TARGETS), logistic_hessian()),
    "softmax": (softmax_loss, SOFTMAX, ragged(X, LABELS), softmax_hessian()),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_matvec_meets_the_closed_form_over_ragged_batches(name, mode):
    loss, params, batches, hessian = PROBLEMS[name]
    matvec = curvature.hessian_matvec(loss, params, batches, mode=mode)
    assert_close(dense(matvec, len(hessian)), hessian)


@pytest.mark.parametrize("mode", curvature.HVP_MODES)
def test_every_mode_of_hvp_meets_the_closed_form(mode):
    vector, unflatten = flatten_weights(SOFTMAX)

    @jax.jit
    def product(v):
        tangent = curvature.hvp(softmax_loss, SOFTMAX, unflatten(v), (X, LABELS), mode=mode)
        return flatten_weights(tangent)[0]

    # A central difference rounds to about eps^(2/3) of the gradient's scale.
    rounding = EPS ** (2 / 3) if mode == "finite-difference" else EPS
    assert_close(dense(product, vector.size), softmax_hessian(), rounding)


def test_mean_gradient_meets_the_closed_form():
    residual = X.astype(float) @ W - TARGETS[:, 0]
    gradient = curvature.mean_gradient(linear_loss, jnp.asarray(W), ragged(X, TARGETS))
    assert_close(gradient, X.T @ residual / NUM_EXAMPLES)


# --- networks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net_hessian():
    with jax.enable_x64(True):
        params, state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), make_net())
        weights, unflatten = flatten_weights(params, curvature.every_leaf)
        batch = (jnp.asarray(X, jnp.float64), LABELS)
        return np.asarray(
            jax.jit(jax.hessian(lambda w: net_loss(unflatten(w), batch, state)))(weights)
        )


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_is_in_or_out_by_the_selector(net_hessian, mode):
    params, state = make_net()
    norm = np.concatenate(
        [np.full(x.size, k.startswith("BatchNorm")) for k in params for x in params[k].values()]
    )
    assert (norm.sum(), norm.size) == (12, 89)
    for where, chosen in ((curvature.every_leaf, norm | True), (curvature.is_weight, ~norm)):
        matvec = curvature.hessian_matvec(
            net_loss, params, (X[None], LABELS[None]), state, mode=mode, where=where
        )
        assert_close(dense(matvec, chosen.sum()), net_hessian[np.ix_(chosen, chosen)])


@pytest.mark.parametrize("mode", MODES)
def test_float64_keeps_its_precision_over_ragged_batches(mode):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), MLP)
        batches = ragged(np.asarray(X, np.float64), LABELS)
        matvec = curvature.hessian_matvec(mlp_loss, params, batches, 1.5, mode=mode)
        hessian = dense(matvec, MLP_DIM, jnp.float64)
    assert_close(hessian, MLP_HESSIAN, np.finfo(np.float64).eps)


@pytest.mark.parametrize("mode", MODES)
def test_gauss_newton_meets_the_dense_formula(mode):
    matvec = curvature.gauss_newton_matvec(mlp_logits, output_loss, MLP, BATCHES, SCALE, mode=mode)
    assert_close(dense(matvec, MLP_DIM), GAUSS_NEWTON)


def test_exact_fisher_of_a_classifier_is_its_gauss_newton_matrix():
    matvec = curvature.fisher_matvec(mlp_logits, MLP, BATCHES, SCALE)
    assert_close(dense(matvec, MLP_DIM), GAUSS_NEWTON)


@pytest.mark.parametrize("mode", MODES)
def test_empirical_fisher_is_the_mean_outer_product_of_gradients(mode):
    gradients = np.einsum("na,nai->ni", OUTPUT_GRADIENT, JACOBIAN)
    matvec = curvature.fisher_matvec(
        mlp_logits, MLP, BATCHES, SCALE, example_losses=example_losses, mode=mode
    )
    assert_close(dense(matvec, MLP_DIM), gradients.T @ gradients / NUM_EXAMPLES)


FLAT_MASK = np.random.default_rng(3).random(MLP_DIM) < 0.4
TREE_MASK = {"first": FLAT_MASK[:12].reshape(4, 3), "second": FLAT_MASK[12:].reshape(3, 3)}


@pytest.mark.parametrize("mask", [FLAT_MASK, jnp.asarray(FLAT_MASK), TREE_MASK])
def test_masks_give_principal_submatrices(mask):
    matvec = curvature.hessian_matvec(mlp_loss, MLP, BATCHES, SCALE, mask=mask)
    expected = MLP_HESSIAN[np.ix_(FLAT_MASK, FLAT_MASK)]
    assert_close(dense(matvec, FLAT_MASK.sum()), expected)


def second_layer(name, leaf):
    return name == "second" and leaf.dtype == jnp.float32


@pytest.mark.parametrize("mask", [FLAT_MASK[12:], TREE_MASK])
def test_masks_select_within_a_chosen_layer(mask):
    matvec = curvature.hessian_matvec(mlp_loss, MLP, BATCHES, SCALE, where=second_layer, mask=mask)
    chosen = FLAT_MASK & (np.arange(MLP_DIM) >= 12)
    assert_close(dense(matvec, chosen.sum()), MLP_HESSIAN[np.ix_(chosen, chosen)])


def test_host_loop_gives_the_same_matrix():
    matvec = curvature.hessian_matvec_over(mlp_loss, MLP, lambda: reversed(BATCHES), SCALE)
    hessian = np.stack([matvec(unit) for unit in jnp.eye(MLP_DIM)])
    assert_close(hessian, MLP_HESSIAN)
    masked = curvature.hessian_matvec_over(mlp_loss, MLP, lambda: BATCHES, SCALE, mask=FLAT_MASK)
    again = curvature.restrict(masked, np.arange(FLAT_MASK.sum()) < 3)
    chosen = np.flatnonzero(FLAT_MASK)[:3]
    assert_close(
        np.stack([again(unit) for unit in jnp.eye(3)]), MLP_HESSIAN[np.ix_(chosen, chosen)]
    )


# --- how it computes --------------------------------------------------------------------------


def constants_of(value):
    """Yield every array that a traced program holds instead of being given it."""
    if isinstance(value, core.ClosedJaxpr):
        yield from value.consts
        value = value.jaxpr
    if isinstance(value, core.Jaxpr):
        for equation in value.eqns:
            yield from (v.val for v in equation.invars if isinstance(v, core.Literal))
            yield from (c for param in equation.params.values() for c in constants_of(param))
    elif isinstance(value, tuple | list):
        yield from (c for entry in value for c in constants_of(entry))


@pytest.fixture(scope="module")
def operators():
    params, state = make_net()
    settings = {
        "linearized": {"mode": "linearized"},
        "recomputed": {"mode": "forward-over-reverse"},
        "bfloat16": {"product_dtype": jnp.bfloat16},
        "masked": {"mask": np.arange(NET_DIM) < 31},
    }
    return {
        name: curvature.hessian_matvec(net_loss, params, NET_BATCHES, state, **kwargs)
        for name, kwargs in settings.items()
    }


@pytest.mark.parametrize("name", ["linearized", "recomputed", "bfloat16", "masked"])
def test_data_and_weights_are_operands_not_constants(operators, name):
    vector = jnp.ones(31 if name == "masked" else NET_DIM)
    program = program_of(operators[name], vector)
    assert max(map(np.size, constants_of(program)), default=0) <= 1
    np.testing.assert_array_equal(
        jax.jit(lambda m, v: m(v))(operators[name], vector).shape, vector.shape
    )


def test_constants_are_found_where_there_are_some():
    matrix = jnp.asarray(X)
    program = program_of(Partial(lambda vector: jax.jit(lambda v: matrix @ v)(vector)), jnp.ones(4))
    assert max(map(np.size, constants_of(program))) == X.size


def test_other_data_of_the_same_shapes_compile_nothing():
    params, state = make_net()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )

    def product(shift):
        x, state_now = jnp.asarray(X + shift), jax.tree.map(lambda s: s + shift, state)
        params_now = jax.tree.map(lambda p: p + shift, params)
        matvec = curvature.hessian_matvec(
            net_loss, params_now, (x[None], jnp.asarray(LABELS)[None]), state_now
        )
        return matvec(vector)

    vector = jnp.ones(NET_DIM)
    first = product(np.float32(0.0))
    assert compiled
    compiled.clear()
    second = product(np.float32(0.5))
    assert not compiled
    assert not np.allclose(first, second)


def test_operators_cross_jit_scan_and_vmap_as_pytrees(operators):
    matvec = operators["linearized"]
    vector = jnp.ones(NET_DIM)

    @jax.jit
    def power(matvec, vector):
        return jax.lax.scan(lambda v, _: (matvec(v), None), vector, length=2)[0]

    expected = matvec(matvec(vector))
    np.testing.assert_allclose(power(matvec, vector), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(matvec, curvature.Operator)
    assert matvec.linearized
    assert not operators["recomputed"].linearized


def test_a_block_of_vectors_shares_the_primal_pass(operators):
    def flops(function, vectors):
        return jax.jit(function).lower(vectors).compile().cost_analysis()["flops"]

    matvec = operators["recomputed"]
    one, block = flops(matvec, jnp.ones(NET_DIM)), flops(jax.vmap(matvec), jnp.ones((8, NET_DIM)))
    # The primal pass is at least an eighth of a product, and seven of eight are saved.
    assert block < 8 * one * (1 - 7 / 8 / 8)


def test_memory_budget_chooses_the_mode():
    params, state = make_net()
    batches, vector = (np.stack([X, X]), np.stack([LABELS] * 2)), jnp.ones(NET_DIM)
    programs = [
        str(program_of(curvature.hessian_matvec(net_loss, params, batches, state, **kw), vector))
        for kw in ({}, {"memory_budget": 0})
    ]
    assert [" scan[" in program for program in programs] == [False, True]


# --- bad input --------------------------------------------------------------------------------


def make(loss=softmax_loss, params=SOFTMAX, batches=BATCHES, **settings):
    return curvature.hessian_matvec(loss, params, batches, **settings)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(loss=softmax_logits), TypeError, r"loss must return one real.*\(4, 3\)"),
        (lambda: make(loss=lambda p, b: 1), TypeError, "loss must return one real.*int"),
        (lambda: make(params={"kernel": np.ones((4, 3), int)}), TypeError, "params.*kernel.*int"),
        (lambda: make(params={"kernel": np.full(3, np.nan)}), ValueError, "params.*kernel.*finite"),
        (lambda: make(params={}), ValueError, "params must hold at least one array"),
        (lambda: make(batches=[]), ValueError, "batches must hold at least one batch"),
        (lambda: make(batches=(X[None, :0], LABELS[None, :0])), ValueError, "batches .*nonzero"),
        (lambda: make(batches=[(X, LABELS[:3])]), ValueError, r"batches .*\(11, 4\), \(3,\)"),
        (lambda: make(batches=(X, LABELS)), ValueError, r"batches must have leaves \[num_batches"),
        (lambda: make(mode="fast"), ValueError, "mode must be one of 'auto'.*got 'fast'"),
        (lambda: make(memory_budget=-1), ValueError, "memory_budget .*-1"),
        (lambda: make(product_dtype=jnp.int8), TypeError, "product_dtype .*float32, got int8"),
        (lambda: make(product_dtype=jnp.float32), TypeError, "narrower than float32"),
        (
            lambda: make(product_dtype=jnp.bfloat16, mode="forward-over-reverse"),
            ValueError,
            "mode must be 'linearized' or 'auto' with a product_dtype",
        ),
        (lambda: make(where=lambda name, leaf: False), ValueError, "where must select"),
        (lambda: make(mask=np.ones(4, bool)), ValueError, "mask must have .* 15 .*got 4"),
        (lambda: make(mask=np.zeros(15, bool)), ValueError, "mask must .*select.* 0 selected"),
        (lambda: make(mask=np.ones(15)), TypeError, "mask must be boolean.*float64"),
        (lambda: make(mask={"bias": np.ones(3, bool)}), ValueError, "mask must have the structure"),
        (lambda: make()(jnp.ones(14)), ValueError, r"vector must have shape \(15,\), got \(14,\)"),
        (lambda: make(colour=1), TypeError, "colour"),
        (
            lambda: curvature.hvp(softmax_loss, SOFTMAX, SOFTMAX, BATCHES[0], mode="sideways"),
            ValueError,
            "mode must be one of .*sideways",
        ),
        (
            lambda: curvature.hvp(softmax_loss, SOFTMAX, {"bias": np.ones(3)}, BATCHES[0]),
            ValueError,
            "tangent must have the structure of params",
        ),
        (
            lambda: curvature.fisher_matvec(
                lambda p, b: b[0] @ p["kernel"][:, 0], SOFTMAX, BATCHES
            ),
            TypeError,
            r"apply must return logits \[batch, classes\] .*\(4,\)",
        ),
        (
            lambda: curvature.fisher_matvec(
                softmax_logits, SOFTMAX, BATCHES, example_losses=lambda y, b: y.mean()
            ),
            TypeError,
            r"example_losses must return the losses of its 4 examples.*shape=\(\)",
        ),
        (
            lambda: curvature.hessian_matvec_over(softmax_loss, SOFTMAX, BATCHES),
            TypeError,
            "make_iterator must be a function.*list",
        ),
        (
            lambda: curvature.hessian_matvec_over(softmax_loss, SOFTMAX, lambda: iter(())),
            ValueError,
            "make_iterator .*empty",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_iterator_that_does_not_start_anew_is_named():
    batches = iter(BATCHES)
    with pytest.raises(ValueError, match=r"make_iterator must return a fresh iterator.*same one"):
        curvature.hessian_matvec_over(softmax_loss, SOFTMAX, lambda: batches)


@pytest.mark.parametrize("wrap", [lambda rows: map(tuple, rows), lambda rows: (r for r in rows)])
def test_a_used_up_source_loses_no_batch(wrap):
    """The first product has all examples, and what cannot be read again is told."""
    rows = iter(list(BATCHES))
    matvec = curvature.hessian_matvec_over(softmax_loss, SOFTMAX, lambda: wrap(rows))
    vector = jnp.arange(15.0)
    wanted = curvature.hessian_matvec(softmax_loss, SOFTMAX, BATCHES)(vector)
    np.testing.assert_allclose(matvec(vector), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="make_iterator must return a fresh iterator"):
        matvec(vector)


def test_passes_of_unequal_length_are_named():
    lengths = iter([2, 2, 1])

    def read():
        return iter(BATCHES[: next(lengths)])

    matvec = curvature.hessian_matvec_over(softmax_loss, SOFTMAX, read)
    matvec(jnp.ones(15))
    with pytest.raises(ValueError, match="8 examples in one pass and 4 in another"):
        matvec(jnp.ones(15))


def test_host_loop_says_that_it_cannot_be_traced():
    matvec = curvature.hessian_matvec_over(softmax_loss, SOFTMAX, lambda: BATCHES)
    with pytest.raises(TypeError, match="cannot run under jit"):
        jax.jit(matvec)(jnp.ones(15))
    with pytest.raises(ValueError, match=r"vector must have shape \(15,\)"):
        matvec(jnp.ones(3))

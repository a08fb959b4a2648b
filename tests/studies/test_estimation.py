"""The whole chain on a small network trained on real digits, against its dense Hessian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annealed import annealed, cross_entropy
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import jaxlimit
from jaxlimit import curvature, limits, spectrum
from jaxlimit._core.estimate import Estimate
from jaxlimit.studies._reasons import reasons_of as reasons_for

KEY = jax.random.key(3)
STAGES = ("spectrum", "removed weights")


def loss(params, batch):
    images, labels = batch
    hidden = jnp.tanh(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return cross_entropy(hidden @ params["output"]["kernel"] + params["output"]["bias"], labels)


def eigenvalues_of(matrix):
    with threadpool_limits(1):  # on a busy machine the threads of BLAS spin in vain
        return np.linalg.eigvalsh(matrix)


@pytest.fixture(scope="module")
def network():
    """A 64-24-10 network (D = 1,810) trained with l1 on digits; its data, Hessian, spectrum."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:400] / 16, jnp.float32)
    labels = jnp.asarray(labels[:400], jnp.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 24)) / 8, "bias": jnp.zeros(24)},
        "output": {"kernel": jax.random.normal(keys[1], (24, 10)) / 5, "bias": jnp.zeros(10)},
    }

    params = annealed(loss, params, (images, labels), rate=0.2, l1=1e-3, num_steps=600)
    weights, unflatten = jaxlimit.flatten_weights(params)
    gradient = jax.grad(lambda w: loss(unflatten(w), (images, labels)))

    @jax.jit
    def columns(weights):
        product = lambda v: jax.jvp(gradient, (weights,), (v,))[1]  # noqa: E731
        return jax.lax.map(product, jnp.eye(weights.size), batch_size=181)

    hessian = np.asarray(columns(weights), np.float64)
    batches = (images.reshape(4, 100, 64), labels.reshape(4, 100))
    hessian = (hessian + hessian.T) / 2
    return params, np.asarray(weights), batches, hessian, eigenvalues_of(hessian)


@pytest.fixture(scope="module")
def estimate(network):
    seen = []
    params, _, batches, *_ = network
    found = jaxlimit.estimate_limit(
        loss,
        params,
        batches,
        key=jax.random.key(1),
        num_steps=192,
        num_probes=2,
        on_progress=lambda *report: seen.append(report),
    )
    assert tuple(dict.fromkeys(stage for stage, _, _ in seen)) == STAGES
    assert all(done <= total for _, done, total in seen)
    return found


def exact_limit(spectrum, weights, epsilon, negative):
    """The smallest k with ρ_L(R(k/D)) ≤ k/D, by trying all k in float64; also its R."""
    size = np.abs(spectrum) if negative == "abs" else np.maximum(spectrum, 0)
    squares = np.concatenate([np.cumsum(np.sort(weights.astype(np.float64) ** 2))[::-1], [0.0]])
    for k, square in enumerate(squares):
        if square == 0 or np.mean(size / (size + 2 * epsilon / square)) <= k / size.size:
            return k, square**0.5
    raise AssertionError


@pytest.mark.parametrize("negative", ["abs", "clip"])
def test_prediction_holds_the_limit_of_the_dense_hessian(network, estimate, negative):
    _, weights, _, _, eigenvalues = network
    k, radius = exact_limit(eigenvalues, weights, float(estimate.epsilon), negative)
    found = estimate.prediction if negative == "abs" else estimate.clipped
    truth = k / weights.size
    assert found.lower <= truth <= found.upper
    # Against the dense Hessian at the same ε its error is no error: the interval without it holds.
    plain = limits.pruning_limit(estimate.measure, weights, estimate.epsilon, negative=negative)
    assert plain.lower <= truth <= plain.upper
    assert plain.upper - plain.lower < found.upper - found.lower
    assert found.radius == pytest.approx(radius, rel=0.1)


def test_gap_and_bounds_are_those_of_the_dense_hessian(network, estimate):
    _, weights, _, hessian, eigenvalues = network
    prediction = estimate.prediction
    removed = np.argsort(-np.abs(weights), kind="stable")[int(prediction.num_kept) :]
    values = eigenvalues_of(hessian[np.ix_(removed, removed)])
    radius, epsilon = float(prediction.radius), float(estimate.epsilon)
    c = 2 * epsilon / radius**2
    gap = np.sum(np.abs(values) / (np.abs(values) + c)) / weights.size
    assert estimate.gap.lower <= gap <= estimate.gap.upper
    difference = estimate.upper_bound.value - estimate.gap.value
    assert difference == pytest.approx(float(prediction.ratio), rel=1e-4)
    assert estimate.removed_measure.dim == removed.size
    trace = np.abs(eigenvalues).sum()
    assert estimate.factors.trace == pytest.approx(trace, rel=0.1)
    bound = 1 - 2 * epsilon * weights.size / (radius**2 * trace + 2 * epsilon * weights.size)
    assert estimate.trace_bound == pytest.approx(bound, rel=0.1)
    assert estimate.trace_bound >= prediction.ratio
    assert estimate.largest == pytest.approx(eigenvalues[-1], rel=1e-3)
    assert estimate.smallest == pytest.approx(eigenvalues[0], rel=0.05)
    assert estimate.near_zero >= np.mean(np.abs(eigenvalues) < c) - 0.02


def test_error_of_epsilon_is_part_of_the_interval(network, estimate):
    params, weights, batches, *_ = network
    epsilon = limits.loss_tolerance_estimate(loss, params, batches)
    assert (estimate.epsilon, estimate.epsilon_error) == (epsilon.value, epsilon.standard_error)
    assert estimate.epsilon_error > 0
    plain = limits.pruning_limit(estimate.measure, weights, epsilon.value)
    assert estimate.prediction.ratio == plain.ratio
    by_epsilon = float(estimate.sensitivity.epsilon * estimate.epsilon_error)
    joint = np.hypot(float(plain.standard_error), by_epsilon)
    assert estimate.prediction.standard_error == pytest.approx(joint, rel=1e-3)


def test_known_spectra_are_taken_and_the_report_is_the_same(network, estimate):
    params, _, batches, *_ = network
    stages = []
    again = jaxlimit.estimate_limit(
        loss,
        params,
        batches,
        key=jax.random.key(2),
        measure=estimate.measure,
        removed_measure=estimate.removed_measure,
        on_progress=lambda stage, *_: stages.append(stage),
    )
    assert not stages
    jax.tree.map(np.testing.assert_array_equal, again[:-2], estimate[:-2])
    assert again.reasons == estimate.reasons


def test_a_wide_interval_says_what_to_raise(network, estimate):
    params, _, batches, *_ = network
    vague = Estimate(estimate.epsilon, 0.5 * estimate.epsilon, 0.0, 2 * estimate.epsilon)
    known = {"measure": estimate.measure, "removed_measure": estimate.removed_measure}
    reasons = jaxlimit.estimate_limit(
        loss, params, batches, key=jax.random.key(1), epsilon=vague, **known
    ).reasons
    assert any("most of it from the estimate of ε" in r for r in reasons)

    def reasons_of(half_width, standard_error):
        p = estimate.prediction
        ends = {"lower": p.ratio - half_width, "upper": p.ratio + half_width}
        prediction = p._replace(standard_error=jnp.asarray(standard_error), **ends)
        return " ".join(reasons_for(estimate._replace(prediction=prediction)))

    assert "most of it from the Lanczos depth: raise num_steps" in reasons_of(0.1, 0.01)
    assert "most of it from the probes: raise num_probes" in reasons_of(0.1, 0.045)
    assert "the interval is" not in reasons_of(0.005, 0.001)
    gap = estimate.gap
    ends = f"{100 * gap.lower:.3g} and {100 * gap.upper:.3g} % of the weights: raise num_gap_steps"
    assert ends in reasons_of(0, 0)


def linear(params, batch):
    return jnp.mean(batch @ params)


def quadratic(params, batch):
    return jnp.mean((batch @ params) ** 2)


@pytest.mark.parametrize(
    ("loss", "params", "epsilon", "reason"),
    [
        (linear, jnp.ones(5), 0.1, "the Hessian vanishes"),
        (quadratic, jnp.ones(5), jnp.inf, "so large that all weights may go"),
        (quadratic, jnp.ones(5), 1e6, "so large that all weights may go"),
        (lambda params, _: params @ params / 2, jnp.ones(100), 51.0, "published bound is 0.38 all"),
        (quadratic, jnp.zeros(5), 0.1, "all weights are 0 already"),
        (quadratic, jnp.ones(5), 0.0, "no weight may go"),
    ],
)
def test_the_ends_are_said_in_words(loss, params, epsilon, reason):
    batches = jax.random.normal(jax.random.key(0), (2, 8, 5))
    found = jaxlimit.estimate_limit(
        loss, params, batches, key=jax.random.key(1), epsilon=epsilon, num_steps=5
    )
    assert any(reason in r for r in found.reasons), found.reasons
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((found.prediction, found.gap)))


def test_a_tolerance_stops_early():
    batches = jax.random.normal(jax.random.key(0), (1, 60, 160))
    found = jaxlimit.estimate_limit(
        quadratic, jnp.ones(160), batches, key=jax.random.key(1), num_steps=160, tolerance=1e6
    )
    assert found.measure.nodes.shape[-1] == 128  # the first look, at four chunks


def curved(dim):
    """Weights, and a quadratic loss whose Hessian has the eigenvalues ½ … 3/2."""
    values = np.linspace(0.5, 1.5, dim)
    weights = np.random.default_rng(2).standard_normal(dim)
    rows = jnp.asarray(np.diag(np.sqrt(dim * values))[None], jnp.float32)
    return weights, values, rows, lambda w, batch: 0.5 * jnp.mean((batch @ w["kernel"]) ** 2)


@pytest.mark.parametrize(("dtype", "x64"), [("float64", True), ("bfloat16", False)])
def test_parameters_of_any_precision_have_the_same_limit(dtype, x64):
    weights, values, rows, loss = curved(400)
    k, _ = exact_limit(values, weights, 10.0, "abs")
    settings = {"key": jax.random.key(1), "epsilon": 10.0, "num_steps": 24, "num_gap_steps": 24}
    with jax.enable_x64(x64):
        params = {"kernel": jnp.asarray(weights, dtype)}
        found = jaxlimit.estimate_limit(loss, params, rows, num_probes=4, **settings)
        assert float(found.prediction.ratio) == pytest.approx(k / 400, abs=1e-2)
        wide = "float64" if dtype == "float64" else "float32"
        assert found.measure.nodes.dtype == found.removed_measure.nodes.dtype == wide
        assert found.reasons == ()


def test_a_vector_of_another_type_than_the_weights_is_named():
    message = "vector must have dtype float64, that of the weights, got float32"
    weights, _, rows, loss = curved(5)
    with jax.enable_x64(True):
        params, rows = {"kernel": jnp.asarray(weights)}, jnp.asarray(rows, jnp.float64)
        key, narrow = jax.random.key(0), jnp.ones(5, jnp.float32)
        for matvec in (
            curvature.hessian_matvec(loss, params, rows),
            curvature.hessian_matvec(loss, params, rows, mode="forward-over-reverse"),
            curvature.hessian_matvec(loss, params, rows, mask=np.ones(5, bool)),
            curvature.hessian_matvec_over(loss, params, lambda: list(rows)),
        ):
            for call in (
                lambda m=matvec: m(narrow),
                lambda m=matvec: spectrum.spectral_measure(m, key, num_steps=2, dtype="float32"),
                lambda m=matvec: curvature.check(m, key, dtype="float32"),
            ):
                with pytest.raises(TypeError, match=message):
                    call()
            assert matvec(narrow.astype(float)).dtype == jnp.float64


def test_a_mask_is_refused_since_leaves_are_selected():
    weights, _, rows, loss = curved(5)
    with pytest.raises(TypeError, match="select whole leaves by where="):
        jaxlimit.estimate_limit(
            loss, {"kernel": jnp.asarray(weights)}, rows, key=KEY, mask=np.ones(5, bool)
        )


def test_a_run_that_was_cut_off_goes_on_from_its_last_checkpoint(tmp_path):
    weights, _, rows, loss = curved(160)
    params = {"kernel": jnp.asarray(weights, jnp.float32)}
    settings = {"key": KEY, "epsilon": 10.0, "num_steps": 128, "checkpoint_dir": tmp_path}

    def cut_off(stage, done, total):
        if done == 96:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxlimit.estimate_limit(loss, params, rows, on_progress=cut_off, **settings)
    seen = []
    jaxlimit.estimate_limit(loss, params, rows, on_progress=lambda *a: seen.append(a), **settings)
    assert [done for stage, done, _ in seen if stage == "spectrum"] == [96, 128]


def test_bad_input_is_named_before_any_work():
    batches, key = jnp.ones((2, 4, 3)), jax.random.key(0)

    def call(loss=quadratic, **settings):
        settings = {"params": jnp.ones(3), "batches": batches, **settings}
        return jaxlimit.estimate_limit(loss, key=key, **settings)

    for settings, message in (
        ({"epsilon": -1.0}, "epsilon must lie in"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_probes": 0}, "num_probes must be at least 1"),
        ({"tolerance": -1.0}, "tolerance must lie in"),
        ({"batches": []}, "at least one batch"),
        ({"params": jnp.array([1.0, jnp.nan, 1.0])}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**settings)
    for settings, message in (
        ({"num_stepz": 4}, "has no argument 'num_stepz': did you mean 'num_steps'"),
        ({"removed_measure": 5}, "removed_measure must be a SpectralMeasure"),
        ({"measure": 5}, "measure must be a SpectralMeasure"),
        ({"on_progress": 3}, "on_progress must be callable, got 3"),
        ({"epsilon": "0.1"}, "epsilon must be a real number"),
        ({"epsilon": True}, "epsilon must be a real number"),
        ({"memory": "1e9"}, "memory must be a real number"),
        ({"num_steps": True}, "num_steps must be a static int"),
    ):
        with pytest.raises(TypeError, match=message):
            call(**settings)
    for wrong, message in ((0, "int 0"), (jax.random.PRNGKey(0), "wrap an old key")):
        with pytest.raises(TypeError, match=f"key must come from jax.random.key, got .*{message}"):
            jaxlimit.estimate_limit(quadratic, jnp.ones(3), batches, key=wrong)
    with pytest.raises(ValueError, match="key must be one key"):
        jaxlimit.estimate_limit(quadratic, jnp.ones(3), batches, key=jax.random.split(key))
    with pytest.raises(TypeError, match="one real floating number"):
        call(lambda w, batch: batch * w)
    with pytest.raises(FloatingPointError, match="loss must be finite"):
        call(lambda w, batch: jnp.mean(batch @ w) / 0)
    draws = iter(range(100))
    with pytest.raises(ValueError, match="loss must be deterministic"):
        call(lambda w, batch: jnp.mean(batch @ w) + next(draws))


def test_a_loss_that_is_no_mean_is_refused_or_named():
    batches, key = jax.random.normal(KEY, (4, 8, 3)), jax.random.key(0)
    call = partial(jaxlimit.estimate_limit, params=jnp.ones(3), batches=batches, key=key)
    for epsilon in (None, 0.1):
        with pytest.raises(ValueError, match="got their sum"):
            call(lambda params, batch: jnp.sum((batch @ params) ** 2), epsilon=epsilon)

    def by_batch(params, batch):
        out = batch @ params
        return jnp.mean(((out - out.mean()) / out.std() - jnp.tanh(out)) ** 2)

    found = call(by_batch, num_steps=3)
    assert "no mean over independent examples" in found.reasons[0]
    assert "4 batches of 8 examples" in found.reasons[0]
    losses = [by_batch(jnp.ones(3), batch) for batch in batches]
    expected = np.std(losses, ddof=1) * (8 / 128) ** 0.5
    assert found.epsilon == pytest.approx(expected, rel=1e-3)
    reason = call(by_batch, epsilon=0.1, num_steps=3).reasons[0]
    assert "its curvature are those of these batches" in reason


def test_the_estimate_prints_a_few_lines_and_says_what_is_studied():
    weights, _, rows, loss = curved(40)
    params = {"kernel": jnp.asarray(weights, jnp.float32), "ln_1": {"scale": jnp.ones(7)}}
    found = jaxlimit.estimate_limit(loss, params, rows, key=KEY, epsilon=10.0, num_steps=24)
    text = repr(found)
    assert len(text) < 1200
    assert "40 of 47 parameters are under study; left out: ln_1/scale (7)" in text
    assert f"{float(found.prediction.ratio):.3%}"[:2] in text
    assert str(found) == text
    assert len(repr(found.prediction)) < 200


def test_a_product_that_is_not_finite_is_named():
    # Finite loss and gradient, infinite curvature at 0.
    rough = lambda w, batch: jnp.mean(jnp.abs(batch @ w) ** 1.5)  # noqa: E731
    with pytest.raises(FloatingPointError, match="matvec returned NaN or infinity"):
        jaxlimit.estimate_limit(
            rough, jnp.zeros(3), jnp.ones((1, 4, 3)), key=jax.random.key(0), epsilon=0.1
        )


def test_measure_of_another_network_is_refused(network):
    params, _, batches, *_ = network
    other = spectrum.exact_measure(jnp.ones(3))
    with pytest.raises(ValueError, match="weights must have as many entries"):
        jaxlimit.estimate_limit(
            loss, params, batches, key=jax.random.key(0), epsilon=0.1, measure=other
        )

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.tree_util import Partial

from jaxlimit import pruning
from jaxlimit._core import magnitudes
from jaxlimit._core.memory import DeviceMemoryError
from jaxlimit.pruning import SweepResult

EPS = float(np.finfo(np.float32).eps)
SIZE = 12
unhurried = settings(deadline=None)  # the first example compiles
# One compiled program for all the examples that hypothesis draws.
mask_of = jax.jit(pruning.flat_magnitude_mask)
ranks_of = magnitudes.ranks
norm_of = jax.jit(pruning.removed_norm)
support_of = jax.jit(pruning.support_fraction)
kept_of = jax.jit(pruning.num_kept)

# Few distinct magnitudes, so that ties abound; subnormal ones, which floats may compare as 0.
magnitudes = st.sampled_from([0.0, -0.0, 1e-45, -3e-39, 2e-39, 0.5, -0.5, 1.0, -1.0, 2.5, 3e38])
vectors = arrays.arrays(np.float32, SIZE, elements=magnitudes)


def stable_order(weights):
    """NumPy's order of magnitude, greatest first, the lower index first among equals."""
    return np.argsort(-np.abs(weights.astype(np.float64)), kind="stable")


def exact_count(dim, ratio):
    return math.floor(Fraction(float(np.float32(ratio))) * dim + Fraction(1, 2))


def quadratic(params, batch):
    return jnp.mean((batch["x"] @ params["kernel"] + params["bias"] - batch["y"]) ** 2)


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "kernel": jax.random.normal(keys[0], (4, 3)).round(1),
        "bias": jax.random.normal(keys[1], (3,)),
    }
    x, y = jax.random.normal(keys[2], (10, 4)), jax.random.normal(keys[3], (10, 3))
    batches = [{"x": x[i : i + 4], "y": y[i : i + 4]} for i in range(0, 10, 4)]
    return params, batches, {"x": x, "y": y}


def flat(params):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])


# --- order and masks --------------------------------------------------------------------------


@unhurried
@given(weights=vectors, kept=st.integers(0, SIZE))
def test_masks_keep_the_greatest_and_the_lower_index_among_equals(weights, kept):
    expected = np.zeros(SIZE, bool)
    expected[stable_order(weights)[:kept]] = True
    np.testing.assert_array_equal(mask_of(weights, kept), expected)


@unhurried
@given(weights=vectors)
def test_ranks_are_the_places_in_a_stable_sort(weights):
    expected = np.empty(SIZE, int)
    expected[stable_order(weights)] = np.arange(SIZE)
    np.testing.assert_array_equal(ranks_of(weights), expected)


@unhurried
@given(weights=vectors.filter(lambda w: np.abs(w).max() < 1e30), ratio=st.floats(0, 1, width=32))
def test_removed_norm_is_that_of_a_sort(weights, ratio):
    removed = stable_order(weights)[exact_count(SIZE, ratio) :]
    expected = np.linalg.norm(weights[removed].astype(np.float64))
    # Squares of subnormal numbers vanish in float32.
    np.testing.assert_allclose(norm_of(weights, ratio), expected, rtol=SIZE * EPS, atol=1e-19)


def test_order_crosses_rows_and_precisions():
    weights = np.random.default_rng(0).normal(size=10_000).astype(np.float32).round(2)
    order = stable_order(weights)
    for kept in (0, 1, 5000, 9999, 10_000):
        expected = np.zeros(weights.size, bool)
        expected[order[:kept]] = True
        np.testing.assert_array_equal(pruning.flat_magnitude_mask(weights, kept), expected)
    expected = np.linalg.norm(weights[order[5000:]].astype(np.float64))
    np.testing.assert_allclose(pruning.removed_norm(weights, 0.5), expected, rtol=1e-5)
    half = jnp.asarray([1.0, 3.0, 2.0], jnp.bfloat16)
    assert pruning.magnitude_mask(half, 1 / 3).tolist() == [False, True, False]


def test_float64_weights_are_ordered_in_float64():
    with jax.enable_x64(True):
        weights = 1 + jnp.array([1.0, 3.0, 2.0]) * 1e-12
        assert pruning.magnitude_mask(weights, 1 / 3).tolist() == [False, True, False]
        assert pruning.magnitude_mask(weights, 2 / 3).tolist() == [False, True, True]
        assert ranks_of(weights).tolist() == [2, 0, 1]


@unhurried
@given(dim=st.integers(1, 2**31 - 1), ratio=st.floats(0, 1, width=32))
def test_the_number_kept_is_exact(dim, ratio):
    assert int(kept_of(dim, ratio)) == exact_count(dim, ratio)


def test_the_number_kept_at_the_edges():
    billion = 1_000_000_007
    ratios = np.array([0.0, 1.0, 0.5, 1e-9, 4.9e-10, 0.02, 1 - 2**-24, 1e-30], np.float32)
    got = jax.jit(pruning.num_kept, static_argnums=0)(billion, ratios)
    assert got.tolist() == [exact_count(billion, ratio) for ratio in ratios]


def test_the_norm_of_weights_near_the_largest_number():
    weights = jnp.array([3e38, 1e38])
    np.testing.assert_allclose(pruning.removed_norm(weights, 0.0), 10**0.5 * 1e38, rtol=1e-6)


def test_a_ratio_is_clipped():
    ratios = jnp.array([-jnp.inf, -0.5, 1.5, jnp.inf])
    assert pruning.num_kept(100, ratios).tolist() == [0, 0, 100, 100]


def test_masks_are_traceable_and_leave_what_is_not_studied():
    params = {"BatchNorm_0": {"scale": jnp.zeros(2)}, "kernel": jnp.array([3.0, -1.0, 2.0, 0.0])}
    mask = jax.jit(pruning.magnitude_mask)(params, 0.5)
    assert mask["kernel"].tolist() == [True, False, True, False]
    assert mask["BatchNorm_0"]["scale"].tolist() == [True, True]
    within = jax.jit(lambda params: pruning.magnitude_mask(params, 0.5))(params)
    assert within["kernel"].tolist() == [True, False, True, False]
    pruned = pruning.apply_mask(params, mask)
    assert pruned["kernel"].tolist() == [3.0, 0.0, 2.0, 0.0]
    everything = pruning.magnitude_mask(params, 1 / 6, where=lambda name, leaf: True)
    assert flat(everything).sum() == 1


# --- sweep ------------------------------------------------------------------------------------


def test_a_sweep_prunes_at_each_ratio_as_pruning_one_by_one(problem):
    params, batches, everything = problem
    ratios = [0.0, 0.1, 0.35, 0.5, 0.8, 1.0] * 4  # more than one piece
    told = []
    sweep = pruning.magnitude_sweep(
        quadratic, params, batches, ratios, on_progress=lambda *told_now: told.append(told_now)
    )
    for i, ratio in enumerate(ratios[:6]):
        pruned = pruning.apply_mask(params, pruning.magnitude_mask(params, ratio))
        np.testing.assert_allclose(sweep.losses[i], quadratic(pruned, everything), rtol=1e-5)
        assert int(sweep.num_kept[i]) == exact_count(15, ratio)
        np.testing.assert_allclose(
            sweep.radii[i], np.linalg.norm(flat(params) - flat(pruned)), rtol=1e-6
        )
        np.testing.assert_allclose(sweep.kept_norms[i], np.abs(flat(pruned)).sum(), rtol=1e-6)
    np.testing.assert_array_equal(sweep.losses[:6], sweep.losses[18:])
    assert told == [("sweep", 12, 24), ("sweep", 24, 24)]


def test_a_sweep_passes_operands_and_keeps_what_is_not_studied(problem):
    params, batches, everything = problem

    def scaled(params, batch, scale):
        return scale * quadratic(params, batch)

    def only_kernel(name, leaf):
        return name == "kernel"

    sweep = pruning.magnitude_sweep(
        scaled, params, batches, [0.0], jnp.float32(2.0), where=only_kernel
    )
    emptied = params | {"kernel": jnp.zeros((4, 3))}
    np.testing.assert_allclose(sweep.losses, [2 * quadratic(emptied, everything)], rtol=1e-6)


def test_a_sweep_that_runs_out_of_memory_says_what_to_change(problem, monkeypatch):
    def refuse(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")

    params, batches, _ = problem
    monkeypatch.setattr(pruning.sweeps, "_sweep", refuse)
    with pytest.raises(DeviceMemoryError, match=r"in a sweep .*: make batches smaller: RESOURCE"):
        pruning.magnitude_sweep(quadratic, params, batches, [0.5, 1.0])


def sweep_of(ratios, losses):
    nothing = jnp.zeros(len(ratios))
    return SweepResult(jnp.array(ratios), jnp.array(losses), nothing, nothing, nothing)


@pytest.mark.parametrize(
    ("ratios", "losses", "limit"),
    [
        ([0.1, 0.2, 0.4, 1.0], [0.5, 3.0, 0.9, 1.0], 0.4),  # a pass below a failure is no limit
        ([1.0, 0.4, 0.2, 0.1], [1.0, 0.9, 3.0, 0.5], 0.4),  # in any order
        ([0.1, 0.2, 1.0], [0.5, 1.0, 0.9], 0.1),  # all pass
        ([0.1, 0.2, 0.9], [0.5, 0.5, 2.0], 1.0),  # the largest fails
        ([0.1, 0.2, 1.0], [np.nan, np.inf, 1.0], 1.0),
        ([0.1, 0.2, 1.0], [0.0, -np.inf, 1.0], 1.0),
        ([0.2, 0.2, 1.0], [1.0, 2.0, 1.0], 1.0),  # a ratio asked for twice fails if once
        ([0.2, 1.0], [1.1, 1.1], 0.2),  # equality passes
    ],
)
def test_the_empirical_limit(ratios, losses, limit):
    found = pruning.empirical_limit(sweep_of(ratios, losses), jnp.float32(1.0), jnp.float32(0.1))
    assert float(found) == np.float32(limit)


@pytest.mark.parametrize(
    ("losses", "limit"),
    [
        ([3.0, 2.1, 1.0, 0.0], 0.5 - 0.1 * 0.1 / 1.1),
        ([1.0, 1.1, 1.0, 0.9], 0.2),
        ([3.0, 2.0, math.inf, 1.0], 0.8),
        ([0.0, 2.0, 2.0, 2.0], 1.0),
    ],
)
def test_a_smooth_curve_passes_between_two_ratios(losses, limit):
    sweep = sweep_of([0.2, 0.4, 0.5, 0.8], losses)
    found = pruning.empirical_limit(sweep, 1.0, 0.1, interpolate=True)
    assert float(found) == pytest.approx(limit, rel=1e-6)


losses = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, math.nan, math.inf]), min_size=5, max_size=5)
limit_of = jax.jit(pruning.empirical_limit)


@unhurried
@given(losses=losses)
def test_the_empirical_limit_is_that_of_a_walk_from_the_top(losses):
    ratios = [0.1, 0.3, 0.5, 0.7, 1.0]
    limit = 1.0
    for ratio, loss in zip(ratios[::-1], losses[::-1], strict=True):
        if not loss <= 1.0:
            break
        limit = ratio
    assert float(limit_of(sweep_of(ratios, losses), 0.5, 0.5)) == np.float32(limit)


# --- sums and scales ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_sweep_sums_in_float32_whatever_the_loss_and_the_weights_are(dtype):
    rng = np.random.default_rng(3)
    offsets = rng.uniform(5, 9, (2000, 4)).astype(np.float32)

    def loss(params, batch):
        return jnp.mean(batch * params["kernel"].sum() / params["kernel"].size).astype(dtype)

    params = {"kernel": jnp.ones(256, dtype) * jnp.arange(1, 257, dtype=jnp.float32).astype(dtype)}
    sweep = pruning.magnitude_sweep(loss, params, offsets, [0.5, 1.0])
    weights = np.asarray(params["kernel"], np.float64)
    kept = np.where(np.arange(256) >= 128, weights, 0)
    for row, pruned in enumerate((kept, weights)):
        losses = jnp.asarray(offsets.mean(1) * pruned.mean(), dtype).astype(jnp.float32)
        assert sweep.losses[row] == pytest.approx(float(np.mean(losses)), rel=0.02)
        assert sweep.kept_norms[row] == pytest.approx(pruned.sum(), rel=1e-6)
        assert sweep.radii[row] == pytest.approx(np.linalg.norm(weights - pruned), rel=1e-6)
    tiny = {"kernel": jnp.full(100, 1e-3, dtype)}
    sweep = pruning.magnitude_sweep(loss, tiny, offsets[:1], [0.0])
    assert sweep.radii[0] == pytest.approx(10 * float(tiny["kernel"][0]), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_support_of_many_narrow_weights(dtype):
    weights = np.zeros(2_000_000, np.float32)
    weights[: 2_000_000 * 3 // 10] = 1
    weights[-1000:] = 1e-3
    assert pruning.support_fraction(jnp.asarray(weights, dtype)) == pytest.approx(0.3, abs=1e-6)
    count = 2_000_000 * 3 // 10 / 2
    assert pruning.removed_norm(jnp.asarray(weights, dtype), 0.15) == pytest.approx(
        math.sqrt(count), rel=1e-5
    )


@pytest.mark.parametrize("s", [2.0**n for n in (-100, -65, 65, 100)])
def test_every_figure_of_pruning_scales_with_the_weights(s):
    weights = np.random.default_rng(4).normal(size=50).astype(np.float32)
    loss = lambda w, x: jnp.mean(x @ (w / jnp.float32(s)))  # noqa: E731
    data, ratios = jnp.ones((1, 3, 50)), [0.0, 0.3, 1.0]
    near = pruning.magnitude_sweep(lambda w, x: jnp.mean(x @ w), weights, data, ratios)
    far = pruning.magnitude_sweep(loss, weights * np.float32(s), data, ratios)
    np.testing.assert_allclose(far.radii, near.radii * s, rtol=1e-6)
    np.testing.assert_allclose(far.kept_norms, near.kept_norms * s, rtol=1e-6)
    np.testing.assert_allclose(far.losses, near.losses, rtol=1e-6)
    for ratio in ratios:
        np.testing.assert_allclose(
            norm_of(weights * np.float32(s), ratio), norm_of(weights, ratio) * s, rtol=1e-6
        )
        np.testing.assert_array_equal(
            pruning.magnitude_mask(jnp.asarray(weights * np.float32(s)), ratio),
            pruning.magnitude_mask(jnp.asarray(weights), ratio),
        )
    assert support_of(weights * np.float32(s), relative_norm=0.3) == support_of(
        weights, relative_norm=0.3
    )


def test_the_radius_of_few_small_weights_under_a_large_one():
    weights = jnp.concatenate([jnp.full(100, 1e-25), jnp.ones(1)])
    assert pruning.removed_norm(weights, 1 / 101) == pytest.approx(1e-24, rel=1e-6)


def test_nan_under_jit_is_announced():
    broken = jnp.array([1.0, jnp.nan, 2.0, 3.0])
    for keep in (
        jax.jit(pruning.magnitude_mask)(broken, 0.5),
        jax.jit(pruning.magnitude_mask)(jnp.ones(4), jnp.nan),
        jax.jit(pruning.flat_magnitude_mask)(broken, 2),
    ):
        assert not keep.any()
    assert np.isnan(norm_of(broken, 0.5))
    assert np.isnan(norm_of(jnp.ones(4), jnp.nan))
    assert np.isnan(support_of(broken))
    assert int(kept_of(4, jnp.nan)) == -1
    pruned = jax.jit(pruning.apply_mask)(jnp.ones(3), jnp.array([1.0, jnp.nan, 0.0]))
    np.testing.assert_array_equal(pruned, [1, np.nan, 0])


# --- baselines --------------------------------------------------------------------------------


@unhurried
@given(weights=arrays.arrays(np.float32, SIZE, elements=st.sampled_from([0.0, 0.5, -1.0, 2.5])))
def test_support_is_the_fewest_weights_that_leave_little_out(weights):
    sizes = np.sort(np.abs(weights.astype(np.float64)))
    left_out = np.sqrt(np.cumsum(sizes**2))
    removable = int(np.sum(left_out <= 0.31271 * np.linalg.norm(sizes)))
    found = support_of(weights, relative_norm=0.31271)
    assert round(float(found) * SIZE) == SIZE - removable


def test_the_taylor_forecast_is_exact_for_a_quadratic():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(9, 9))
    hessian, gradient, weights = matrix + matrix.T, rng.normal(size=9), rng.normal(size=9)

    def loss(w):
        return gradient @ (w - weights) + (w - weights) @ hessian @ (w - weights) / 2

    ratios = [0.0, 0.2, 1 / 3, 1.0]
    order, expected = stable_order(weights), []
    for ratio in ratios:
        pruned = weights.copy()
        pruned[order[exact_count(9, ratio) :]] = 0
        expected.append(loss(pruned))
    matvec = Partial(jnp.matmul, jnp.asarray(hessian, jnp.float32))
    to_float32 = [jnp.asarray(x, jnp.float32) for x in (gradient, weights)]
    got = pruning.taylor_forecast(to_float32[0], matvec, to_float32[1], ratios)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pruning.magnitude_mask(jnp.ones(3), 1.5), ValueError, r"ratio .*\[0, 1\].* 1.5"),
        (lambda: pruning.removed_norm(jnp.ones(3), -0.1), ValueError, r"ratio .*\[0, 1\].*-0.1"),
        (lambda: pruning.removed_norm(jnp.ones(3), jnp.nan), ValueError, r"ratio .* nan"),
        (lambda: pruning.magnitude_mask(jnp.arange(3), 0.5), TypeError, "params.*int32"),
        (lambda: pruning.magnitude_mask({}, 0.5), ValueError, "params .*empty"),
        (
            lambda: pruning.magnitude_mask(jnp.array([1.0, jnp.nan]), 0.5),
            ValueError,
            "params must be finite",
        ),
        (
            lambda: pruning.magnitude_mask({"a": jnp.ones(3)}, 0.5, where=lambda n, x: False),
            ValueError,
            "where must select",
        ),
        (
            lambda: pruning.apply_mask(jnp.ones(3), jnp.ones(2, bool)),
            ValueError,
            r"mask must have the shapes .*\(3,\).*\(2,\)",
        ),
        (
            lambda: pruning.apply_mask({"a": jnp.ones(2)}, {"a": jnp.array([1.0, jnp.nan])}),
            ValueError,
            r"mask\['a'\] must hold Booleans",
        ),
        (lambda: pruning.apply_mask(jnp.ones(2), jnp.full(2, 2)), ValueError, "mask must hold"),
        (lambda: pruning.apply_mask(jnp.ones(2), jnp.ones(2, complex)), TypeError, "mask .*real"),
        (lambda: pruning.magnitude_mask(jnp.ones(3), "0.5"), TypeError, "ratio .*str '0.5'"),
        (lambda: pruning.magnitude_mask(jnp.ones(3), True), TypeError, "ratio .*bool"),
        (lambda: pruning.magnitude_mask(jnp.ones(3), None), TypeError, "ratio .*None"),
        (lambda: pruning.flat_magnitude_mask(jnp.ones(3), 4), ValueError, r"num_kept .*3\], got 4"),
        (lambda: pruning.flat_magnitude_mask(jnp.ones(3), 1.5), TypeError, "num_kept .*integer"),
        (lambda: pruning.flat_magnitude_mask(jnp.ones((3, 1)), 1), ValueError, "weights .*vector"),
        (
            lambda: pruning.flat_magnitude_mask(jnp.array([jnp.nan]), 1),
            ValueError,
            "weights must be finite",
        ),
        (
            lambda: pruning.empirical_limit(sweep_of([1.0], [1.0]), 1.0, -0.1),
            ValueError,
            "epsilon .*-0.1",
        ),
        (
            lambda: pruning.empirical_limit(sweep_of([1.0], [1.0]), jnp.nan, 0.1),
            ValueError,
            "dense_loss must be finite",
        ),
        (
            lambda: pruning.support_fraction(jnp.ones(2), relative_norm=-1.0),
            ValueError,
            "relative_norm .*-1",
        ),
        (
            lambda: pruning.taylor_forecast(jnp.ones(2), lambda v: v, jnp.ones(3), [0.5]),
            ValueError,
            r"gradient .*\(3,\).*\(2,\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("ratios", "message"),
    [([], "ratios must be a non-empty"), ([[0.5]], "ratios"), ([0.5, 2.0], "ratios .*2")],
)
def test_bad_ratios_of_a_sweep_are_named(problem, ratios, message):
    with pytest.raises(ValueError, match=message):
        pruning.magnitude_sweep(quadratic, *problem[:2], ratios)


def test_a_sweep_names_empty_data_and_a_loss_that_is_no_scalar(problem):
    params, batches, _ = problem
    with pytest.raises(ValueError, match="batches must hold at least one"):
        pruning.magnitude_sweep(quadratic, params, [], [0.5])
    with pytest.raises(TypeError, match=r"loss must return one real floating number.*shape=\(4,"):
        pruning.magnitude_sweep(lambda p, b: b["x"] @ p["kernel"], params, batches, [0.5])

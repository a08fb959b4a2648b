"""Checks on eight devices; `test_mesh.py` runs them in a process that has as many."""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_problem import close, cross_entropy, logits, loss, problem, ragged

import jaxlimit
from jaxlimit import (
    adapters,
    curvature,
    lanczos,
    limits,
    planning,
    pruning,
    spectrum,
    traces,
    training,
)
from jaxlimit.lab import cost as cost_model
from jaxlimit.studies import HostBatches, StudySettings, study

AUTO = Mesh(np.array(jax.devices()), ("data",))
MESHES = {
    "auto": AUTO,
    "explicit": jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)),
    "two axes": jax.make_mesh((4, 2), ("data", "model")),
    "three devices": Mesh(np.array(jax.devices()[:3]), ("data",)),
}


def slow_on(*args):
    """Leave a case to the slow suite."""
    return pytest.param(*args, marks=pytest.mark.slow)


OPERATORS = {
    "hessian": lambda p, b, **s: curvature.hessian_matvec(loss, p, b, **s),
    "gauss-newton": lambda p, b, **s: curvature.gauss_newton_matvec(
        logits, cross_entropy, p, b, **s
    ),
    "fisher": lambda p, b, **s: curvature.fisher_matvec(logits, p, b, **s),
}
SETTINGS = {
    "linearised": {"mode": "linearized"},
    "recomputed": {"mode": "forward-over-reverse"},
    "sharded weights": {"shard_params": True},
}


@pytest.mark.parametrize(
    ("operator", "settings", "mesh"),
    [
        ("hessian", "linearised", "auto"),
        ("hessian", "recomputed", "explicit"),
        ("hessian", "sharded weights", "three devices"),
        slow_on("gauss-newton", "linearised", "three devices"),
        slow_on("gauss-newton", "sharded weights", "explicit"),
        ("fisher", "recomputed", "two axes"),
    ],
)
def test_a_product_is_that_of_one_device(operator, settings, mesh):
    make, settings, mesh = OPERATORS[operator], SETTINGS[settings], MESHES[mesh]
    params, batch = problem()
    batches = ragged(batch, 20, 40, 50)  # the last of 3 examples, fewer than devices
    wanted = make(params, batches, mode="forward-over-reverse")
    split = make(params, batches, mesh=mesh, **settings)
    vector = jax.random.normal(jax.random.key(1), (103,))
    close(split(vector), wanted(vector))
    close(jax.jit(split)(vector), wanted(vector))


def test_a_certificate_is_that_of_one_device():
    params, batch = problem(48)
    split_loss = curvature.split_loss(logits, cross_entropy)
    source = split_loss, params, ragged(batch, 20)
    weights = jaxlimit.flatten_weights(params)[0].at[::7].set(0)
    gradient = jnp.zeros_like(weights)  # the net is not trained: it would gain by losing all
    found = [
        limits.certificate(
            curvature.gauss_newton_matvec(*source, mesh=mesh),
            gradient,
            weights,
            0.05,
            num_products=30,
        )
        for mesh in (None, MESHES["explicit"])
    ]
    assert found[0].num_kept > 0
    assert abs(found[0].num_kept - found[1].num_kept) <= 1
    close(found[1].relaxed + weights, found[1].relaxed + weights)  # free to go with any others


@pytest.mark.parametrize("settings", [{}, {"num_probes": 2, "key": jax.random.key(7)}])
def test_a_diagonal_is_that_of_one_device(settings):
    # Signs belong to examples, but a probe squares the sum over a batch, which the mesh cuts anew.
    num, size = (48, 1) if settings else (53, 20)
    params, batch = problem(num)
    split_loss = curvature.split_loss(logits, cross_entropy)
    batches = ragged(batch, *range(size, num, size))
    found = curvature.diagonal(split_loss, params, batches, mesh=MESHES["explicit"], **settings)
    close(found, curvature.diagonal(split_loss, params, batches, **settings))


@pytest.mark.parametrize("mesh", [MESHES["explicit"], slow_on(MESHES["two axes"])])
def test_a_product_takes_what_lies_on_the_mesh(mesh):
    """Parameters and data may come laid out; a caller's own `set_mesh` does not matter."""
    params, batch = problem(48)
    vector = jax.random.normal(jax.random.key(1), (103,))
    wanted = curvature.hessian_matvec(loss, params, ragged(batch))(vector)
    n = mesh.shape["data"]
    laid_out = jax.device_put(batch, NamedSharding(mesh, P("data")))
    stacked = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
    stacked = jax.device_put(stacked, NamedSharding(mesh, P(None)))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        close(curvature.hessian_matvec(loss, params, [laid_out], mesh=mesh)(vector), wanted)
        close(curvature.hessian_matvec(loss, params, stacked, mesh=mesh)(vector), wanted)


def test_blocks_and_refits_are_those_of_one_device():
    params, batch = problem()
    batches, key = ragged(batch, 30), jax.random.key(3)
    one = curvature.gauss_newton_matvec(logits, cross_entropy, params, batches)
    many = curvature.gauss_newton_matvec(logits, cross_entropy, params, batches, mesh=AUTO)
    weights = jax.random.normal(jax.random.key(4), (103,))
    kept, gradient = jnp.abs(weights) > 0.5, 0.1 * weights
    for found, wanted in zip(
        limits.refit(many, gradient, weights, kept, num_steps=5),
        limits.refit(one, gradient, weights, kept, num_steps=5),
        strict=True,
    ):
        np.testing.assert_allclose(found + 1, wanted + 1, rtol=2e-3)
    halves = {"low": np.arange(103) < 60, "high": np.arange(103) >= 60}
    found = spectrum.block_measures(many, key, halves, num_steps=80)
    wanted = spectrum.block_measures(one, key, halves, num_steps=80)
    f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.01)  # noqa: E731
    for name, mask in halves.items():
        exact = jnp.linalg.eigvalsh(jax.vmap(one.restrict(mask))(jnp.eye(int(mask.sum()))))
        truth = float(f(exact).mean())
        for measure in (found[name], wanted[name]):
            estimate = spectrum.trace_bracket(measure, f)
            assert jnp.sum(jnp.ones(2)) == 2  # what comes back goes with plain arrays
            assert estimate.lower <= truth <= estimate.upper


def test_masks_and_narrow_products():
    params, batch = problem()
    batches = ragged(batch, 30)
    mask = np.arange(103) % 3 > 0
    vector = jax.random.normal(jax.random.key(2), (int(mask.sum()),))
    one = curvature.hessian_matvec(loss, params, batches, mask=mask)
    many = curvature.hessian_matvec(loss, params, batches, mask=mask, mesh=AUTO)
    close(many(vector), one(vector))
    again = curvature.restrict(curvature.restrict(many, np.arange(68) < 40), np.arange(40) > 2)
    head = jnp.zeros(68).at[3:40].set(vector[:37])
    close(again(vector[:37]), one(head)[3:40])
    narrow = curvature.hessian_matvec(
        loss, params, batches, mask=mask, mesh=AUTO, product_dtype=jnp.bfloat16
    )
    close(narrow(vector), one(vector), 2e-2)


def trace_within(H, **kw):
    f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.1)  # noqa: E731
    return spectrum.trace_within(H, KEY, f, tolerance=1.0, num_steps=12, num_probes=1, **kw)


KEY, START = jax.random.key(5), jax.random.normal(jax.random.key(6), (103,))
TAKES_MESH = {
    "spectral_measure": lambda H, **kw: spectrum.spectral_measure(H, KEY, num_steps=6, **kw).nodes,
    "run_probes": lambda H, **kw: (
        spectrum.run_probes(H, KEY, num_steps=6, monitor=spectrum.Monitor(chunk=4), **kw).nodes
    ),
    "trace_within": lambda H, **kw: trace_within(H, **kw).estimate.value[None],
    "tridiagonalize": lambda H, **kw: lanczos.tridiagonalize(H, START, num_steps=6, **kw).diagonal,
    "two passes": lambda H, **kw: (
        lanczos.two_pass_eigenpairs(H, START, num_steps=8, num_pairs=1, **kw).values
    ),
    "eigenpairs": lambda H, **kw: lanczos.extremal_eigenpairs(H, KEY, num_pairs=2, **kw).values,
}
TAKES_NONE = {
    "hutchinson": lambda H: traces.hutchinson(H, KEY, num_matvecs=4).value[None],
    "hutch++": lambda H: traces.hutch_plus_plus(H, KEY, num_matvecs=9).value[None],
    "xtrace": lambda H: traces.xtrace(H, KEY, num_matvecs=8).value[None],
    "diagonal": lambda H: traces.diagonal(H, KEY, num_matvecs=8).value,
    "hutchinson's diagonal": lambda H: (
        traces.diagonal(H, KEY, num_matvecs=8, method="hutchinson").value
    ),
    "to_dense": adapters.to_dense,
    "to_scipy": lambda H: adapters.to_scipy(H) @ np.asarray(START),
    "taylor_forecast": lambda H: pruning.taylor_forecast(START, H, START, [0.1, 0.5]),
    "extend": lambda H: (
        lanczos.extend(H, lanczos.start(START, num_steps=4), num_steps=4).off_diagonal
    ),
    "restrict": lambda H: H.restrict(np.arange(103) > 50)(START[:52]),
}


@pytest.fixture(scope="module")
def three_operators():
    """On one device, split over eight, and over eight reading from the host."""
    params, batch = problem()
    read = lambda: ragged(batch, 20, 51)  # noqa: E731
    return (
        curvature.hessian_matvec(loss, params, ragged(batch)),
        curvature.hessian_matvec(loss, params, ragged(batch), mesh=MESHES["explicit"]),
        curvature.hessian_matvec_over(loss, params, read, mesh=AUTO),
    )


@pytest.mark.parametrize("name", [*TAKES_MESH, *TAKES_NONE])
def test_a_split_operator_needs_no_mesh(name, three_operators):
    """And what comes back goes with any other array."""
    one, split, host = three_operators
    run = (TAKES_MESH | TAKES_NONE)[name]
    wanted = run(one)
    for settings in ({}, {"mesh": AUTO})[: 1 + (name in TAKES_MESH)]:
        result = run(split, **settings)
        close(result + jnp.zeros(len(wanted)), wanted, 2e-5)
    if name in {"spectral_measure", "two passes", "tridiagonalize", "to_scipy", "restrict"}:
        close(run(host) + jnp.zeros(len(wanted)), wanted, 2e-5)


def test_an_operator_knows_its_mesh(three_operators):
    one, split, host = three_operators
    assert one.mesh is None
    assert split.mesh == host.mesh == AUTO
    assert split.restrict(np.arange(103) > 50).mesh == AUTO
    assert "mesh={'data': 8}" in repr(split)
    with pytest.raises(ValueError, match="mesh must be that of matvec"):
        spectrum.spectral_measure(split, KEY, num_steps=2, mesh=MESHES["three devices"])
    assert curvature.check(split, KEY).problems == ()


def laid_out(params, mesh):
    """Split each leaf along its first axis that eight divides, as `fit(shard_params=True)` does."""

    def put(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % 8 == 0]
        spec = P(*[None] * axes[0], "data") if axes else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, params)


@pytest.mark.parametrize("mesh", ["auto", "explicit"])
def test_the_mesh_is_that_of_the_arrays(mesh):
    params, batch = problem(hidden=16)
    split, batches = laid_out(params, MESHES[mesh]), ragged(batch, 20)
    operator = curvature.hessian_matvec(loss, split, batches)
    assert operator.mesh == AUTO
    vector = jax.random.normal(KEY, (operator.dim,))
    close(operator(vector), curvature.hessian_matvec(loss, params, batches)(vector))
    for run in (
        lambda p: curvature.mean_gradient(loss, p, batches),
        lambda p: jnp.ravel(limits.loss_tolerance(loss, p, batches).value),
        lambda p: pruning.magnitude_sweep(loss, p, batches, [0.1, 0.5]).losses,
        lambda p: pruning.support_fraction(p)[None],
        lambda p: pruning.removed_norm(p, 0.3)[None],
        lambda p: jaxlimit.flatten_weights(p)[0],
    ):
        close(run(split), run(params), 1e-5)
    settings = {"key": KEY, "num_steps": 8, "num_gap_steps": 4}
    wanted = jaxlimit.estimate_limit(loss, params, batches, **settings).prediction.ratio
    result = jaxlimit.estimate_limit(loss, split, batches, **settings).prediction.ratio
    close(result + jnp.zeros(1), wanted, 2e-2)  # a count of some weights, at least


@pytest.mark.parametrize("mesh", ["auto", "explicit"])
def test_a_mask_lies_as_its_parameters(mesh):
    params, _ = problem(hidden=16)
    split = laid_out(params, MESHES[mesh])
    wanted = pruning.magnitude_mask(params, 0.4)
    mask = pruning.magnitude_mask(split, 0.4)
    pruned = pruning.apply_mask(split, mask)
    by_hand = jax.tree.map(lambda w, keep: w * keep, split, mask)
    for name in ("Dense_0", "Dense_1"):
        kernel = wanted[name]["kernel"]
        np.testing.assert_array_equal(mask[name]["kernel"], kernel)
        assert mask[name]["kernel"].sharding == split[name]["kernel"].sharding
        for tree in (pruned, by_hand):
            np.testing.assert_array_equal(tree[name]["kernel"], params[name]["kernel"] * kernel)


def weighted(params, batch):
    outputs = logits(params, batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])
    return losses, jnp.where(batch[1] == 0, 20.0, batch[1] / 3)


def test_weights_of_examples_on_a_mesh():
    """However they are dealt out: the loss is one ratio over all of them."""
    params, batch = problem()
    vector = jax.random.normal(KEY, (103,))
    for make in (curvature.hessian_matvec, curvature.mean_gradient):
        one = make(weighted, params, [batch])
        for mesh in ("explicit", "three devices"):
            many = make(weighted, params, ragged(batch, 20, 51), mesh=MESHES[mesh])
            close(*(x(vector) if callable(x) else x for x in (many, one)), 1e-5)
    read = lambda: ragged(batch, 20, 51)  # noqa: E731
    one = curvature.hessian_matvec(weighted, params, [batch])
    over = curvature.hessian_matvec_over(weighted, params, read, mesh=AUTO)
    close(over(vector), one(vector), 1e-5)


def lowered(matvec, size):
    vector = jax.device_put(jnp.ones(size), NamedSharding(AUTO, P("data")))
    return jax.jit(lambda matvec, v: matvec(v)).lower(matvec, vector).compile()


def collectives(compiled):
    found = re.findall(r"= \S+ ([a-z-]+?)(?:-start)?\(", compiled.as_text())
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return sorted(kind for kind in found if kind in kinds)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_product_is_one_all_gather_and_one_reduce_scatter(settings):
    params, batch = problem()
    for batches in (ragged(batch, 48), ragged(batch, 10, 20, 50)):
        matvec = curvature.hessian_matvec(loss, params, batches, mesh=AUTO, **settings)
        gathers = 1 + ("shard_params" in settings)
        wanted = ["all-gather"] * gathers + ["reduce-scatter"]
        assert collectives(lowered(matvec, 104)) == wanted


def sent(compiled, n=8):
    """Bytes that each of n devices sends in the all-gathers and reduce-scatters of a program."""
    results = re.findall(
        r"= f32\[(\d+)\]\S* (all-gather|reduce-scatter)(?:-start)?\(", compiled.as_text()
    )
    # A gather's result is whole, and a device sends its part to all others; a scatter's is a part,
    # and as much goes to each of the others.
    shares = {"all-gather": 1 / n, "reduce-scatter": 1}
    return sum((n - 1) * shares[kind] * 4 * int(size) for size, kind in results)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_cost_model_sends_what_the_program_sends(settings):
    params, batch = problem(hidden=4)
    matvec = curvature.hessian_matvec(loss, params, ragged(batch, 48), mesh=AUTO, **settings)
    network = cost_model.Network(parameters=48, forward_flops=0.0, first_flops=0.0, activations=0.0)
    cost = cost_model.product_cost(
        network,
        planning.H100,
        num_examples=53,
        num_steps=1,
        num_devices=8,
        sharded="shard_params" in settings,
    )
    assert sent(lowered(matvec, 48)) == cost.link_bytes


@pytest.mark.parametrize(
    ("store", "reorthogonalize", "mesh"),
    [
        ("bfloat16", "full", "three devices"),
        slow_on("bfloat16", "selective", "two axes"),
        ("pinned_host", "selective", "explicit"),
        slow_on("pinned_host", "full", "three devices"),
    ],
)
def test_a_basis_kept_in_less_is_split_too(store, reorthogonalize, mesh):
    mesh = MESHES[mesh]
    params, batch = problem()
    one = curvature.hessian_matvec(loss, params, ragged(batch))
    many = curvature.hessian_matvec(loss, params, ragged(batch), mesh=mesh)
    start = jax.random.normal(jax.random.key(3), (103,))
    settings = {"num_steps": 60, "reorthogonalize": reorthogonalize, "store": store}
    wanted = lanczos.tridiagonalize(one, start, **settings)
    result = lanczos.tridiagonalize(many, start, mesh=mesh, **settings)
    # Steps near D = 103 and a basis in bfloat16 make the most of rounding.
    close(result.diagonal[:40], wanted.diagonal[:40], 1e-4 if store == "bfloat16" else 1e-5)
    state = lanczos.start(start, mesh=mesh, **settings)
    state = lanczos.extend(many, state, num_steps=2, reorthogonalize=reorthogonalize)
    kind = "pinned_host" if store == "pinned_host" else "device"
    assert state.basis.sharding.memory_kind == kind
    share = state.basis.addressable_shards[0].data
    assert share.shape[1] == state.current.size // mesh.shape["data"]
    assert share.dtype.itemsize == (2 if store == "bfloat16" else 4)
    more = lanczos.with_room(state, 10**6, reorthogonalize=reorthogonalize)
    assert more.diagonal.size == 103
    assert more.basis.sharding == state.basis.sharding
    before, after = np.asarray(state.basis), np.asarray(more.basis)
    np.testing.assert_array_equal(after[: len(before)], before)
    assert not after[len(before) :].any()


@pytest.mark.parametrize(
    ("reorthogonalize", "mesh"),
    [("full", "three devices"), ("selective", "explicit"), slow_on("none", "two axes")],
)
def test_lanczos_on_split_vectors(reorthogonalize, mesh):
    mesh = MESHES[mesh]
    params, batch = problem()
    start = jax.random.normal(jax.random.key(3), (103,))
    one = curvature.hessian_matvec(loss, params, ragged(batch))
    settings = {"num_steps": 12, "reorthogonalize": reorthogonalize}
    wanted = lanczos.tridiagonalize(one, start, **settings)
    many = curvature.hessian_matvec(loss, params, ragged(batch), mesh=mesh)
    foreign = lambda v: one(v)  # noqa: E731
    for matvec in (many, foreign):
        result = lanczos.tridiagonalize(matvec, start, mesh=mesh, **settings)
        close(result.diagonal, wanted.diagonal, 1e-5)
        close(result.off_diagonal, wanted.off_diagonal, 1e-5)
        if reorthogonalize == "full":
            close(result.basis[:, :103], wanted.basis, 1e-4)
            assert not result.basis[:, 103:].any()


def test_full_depth_ends_at_the_dimension_and_not_at_the_padded_one():
    matrix = np.diag(np.arange(1.0, 11))
    operator = jax.tree_util.Partial(jnp.matmul, jnp.asarray(matrix, jnp.float32))
    result = lanczos.tridiagonalize(operator, jnp.ones(10), num_steps=99, mesh=AUTO)
    assert result.diagonal.shape == (10,)
    assert (int(result.num_valid), float(result.residual_norm)) == (10, 0)
    beta = np.diag(result.off_diagonal, 1)
    ritz = np.linalg.eigvalsh(np.diag(result.diagonal) + beta + beta.T)
    np.testing.assert_allclose(ritz, np.arange(1, 11), atol=1e-5)


@pytest.mark.parametrize(
    ("which", "mesh"), [slow_on("largest", "explicit"), ("both", "three devices")]
)
def test_eigenpairs_on_split_vectors(which, mesh):
    """With H + I, of which the padding must not become an eigenvector, smaller than any other."""
    mesh = MESHES[mesh]
    params, batch = problem()
    one = curvature.hessian_matvec(loss, params, ragged(batch))
    shifted = jax.tree_util.Partial(lambda matvec, v: matvec(v) + v, one)
    many = curvature.hessian_matvec(loss, params, ragged(batch), mesh=mesh)
    settings = {"dim": 103, "num_pairs": 4, "which": which}
    for split, whole in ((many, one), (shifted, shifted)):
        wanted = lanczos.extremal_eigenpairs(whole, jax.random.key(3), **settings)
        result = lanczos.extremal_eigenpairs(split, jax.random.key(3), mesh=mesh, **settings)
        close(result.values, wanted.values, 1e-5)
        vectors = result.vectors[:, :103]
        assert result.complete
        assert not result.vectors[:, 103:].any()
        products = jnp.stack([whole(v) for v in vectors])
        residuals = np.linalg.norm(products - result.values[:, None] * vectors, axis=1)
        assert residuals.max() <= 5e-5 * float(jnp.abs(wanted.values).max())


def test_eigenpairs_in_two_passes_on_split_vectors():
    mesh = MESHES["three devices"]
    params, batch = problem()
    start = jax.random.normal(jax.random.key(3), (103,))
    one = curvature.hessian_matvec(loss, params, ragged(batch))
    wanted = lanczos.two_pass_eigenpairs(one, start, num_steps=12, num_pairs=2)
    many = curvature.hessian_matvec(loss, params, ragged(batch), mesh=mesh)
    over = curvature.hessian_matvec_over(loss, params, lambda: ragged(batch, 20, 51), mesh=mesh)
    for matvec in (many, over):
        result = lanczos.two_pass_eigenpairs(matvec, start, num_steps=12, num_pairs=2, mesh=mesh)
        close(result.values, wanted.values, 1e-5)
        close(result.residual_norms, wanted.residual_norms, 1e-3)
        assert result.vectors.sharding.spec == P(None, "data")


def test_data_read_on_the_host_are_shared_batch_by_batch():
    params, batch = problem()
    vector = jax.random.normal(jax.random.key(1), (103,))
    wanted = curvature.hessian_matvec(loss, params, ragged(batch))(vector)
    read = lambda: ragged(batch, 20, 51)  # noqa: E731
    matvec = curvature.hessian_matvec_over(loss, params, read, mesh=AUTO)
    close(matvec(vector), wanted)


def test_batches_that_stay_on_the_host_are_dealt_out_whole():
    """Nine batches of five and one of eight: three, and one, are over."""
    params, batch = problem()
    batches = ragged(jax.tree.map(np.asarray, batch), *range(5, 50, 5))
    held = HostBatches(jax.tree.map(np.asarray, piece) for piece in batches)
    gradient = curvature.mean_gradient(loss, params, held, mesh=AUTO)
    close(gradient, curvature.mean_gradient(loss, params, batches))
    vector = jnp.arange(103.0)
    product = curvature.hessian_matvec(loss, params, held, mesh=AUTO)(vector)
    close(product, curvature.hessian_matvec(loss, params, batches)(vector))
    tolerance = limits.loss_tolerance(loss, params, held, mesh=AUTO)
    close(tolerance.value, limits.loss_tolerance(loss, params, batches).value)


def test_the_gradient_and_the_tolerance_are_those_of_one_device():
    params, batch = problem()
    args = (loss, params, ragged(batch, 20, 40, 50))
    for mesh in (MESHES["explicit"], MESHES["three devices"]):
        close(curvature.mean_gradient(*args, mesh=mesh), curvature.mean_gradient(*args))
        np.testing.assert_allclose(
            limits.loss_tolerance_estimate(*args, mesh=mesh),
            limits.loss_tolerance_estimate(*args),
            rtol=1e-5,
        )


def test_weighted_losses_on_a_mesh_are_those_of_one_device():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((5, 21, *size)).astype(np.float32) for size in ((3,), ()))
    weights = jnp.array([0.5, -0.5, 1.0])

    def weighted(w, batch):
        return (batch[0] @ w - batch[1]) ** 2, jnp.where(batch[1] > 1, 20.0, 1.0)

    mesh, args = MESHES["three devices"], (weighted, weights, (x, y))
    wanted, found = limits.loss_tolerance(*args), limits.loss_tolerance(*args, mesh=mesh)
    close(np.array([*found]), np.array([*wanted]), 1e-5)
    wanted, found = (pruning.magnitude_sweep(*args, [0.3, 1.0], mesh=m) for m in (None, mesh))
    close(found.losses, wanted.losses, 1e-5)
    by_batch = lambda w, b: jnp.mean((b[0] @ w - (b[0] @ w).mean() - b[1]) ** 2)  # noqa: E731
    with pytest.raises(ValueError, match="must be a mean over examples where a mesh cuts batches"):
        limits.loss_tolerance(by_batch, weights, (x, y), mesh=mesh)


def bytes_of_a_device(tree):
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    shards = [array.addressable_shards for array in arrays]
    return sum(s.data.nbytes for shard in shards for s in shard if s.device == jax.devices()[0])


def test_memory_of_vectors_and_basis_falls_as_the_number_of_devices():
    dim = 8 * 4096
    operator = jax.tree_util.Partial(jnp.multiply, jnp.linspace(0, 1, dim))
    sizes = {}
    for n in (1, 2, 4, 8):
        mesh = Mesh(np.array(jax.devices()[:n]), ("data",))
        state = lanczos.start(jnp.ones(dim), num_steps=16, mesh=mesh)
        state = lanczos.extend(operator, state, num_steps=4)
        long = (state.previous, state.current, state.basis)
        sizes[n] = bytes_of_a_device(long)
    assert {n: sizes[1] / size for n, size in sizes.items()} == {1: 1, 2: 2, 4: 4, 8: 8}


def test_memory_of_the_bases_of_eigenpairs_falls_too():
    dim = 8 * 32768
    operator = jax.tree_util.Partial(jnp.multiply, jnp.linspace(0, 1, dim))

    def peak(n):
        mesh = Mesh(np.array(jax.devices()[:n]), ("data",))

        def run(key):
            return lanczos.extremal_eigenpairs(operator, key, dim=dim, num_pairs=3, mesh=mesh)

        return jax.jit(run).lower(jax.random.key(0)).compile().memory_analysis()

    one, eight = peak(1), peak(8)
    # Beside the 51 vectors of one device, eight need the buffer of one more.
    assert eight.temp_size_in_bytes == pytest.approx(52 / 51 / 8 * one.temp_size_in_bytes, rel=1e-2)
    assert eight.output_size_in_bytes == pytest.approx(one.output_size_in_bytes / 8, rel=0.02)


def test_memory_of_sharded_weights_falls_too():
    params, batch = problem(hidden=800)
    whole = curvature.hessian_matvec(
        loss, params, ragged(batch), mesh=AUTO, mode="forward-over-reverse"
    )
    sharded = curvature.hessian_matvec(loss, params, ragged(batch), mesh=AUTO, shard_params=True)
    dim = 6 * 800 + 800 + 800 * 4 + 4
    assert bytes_of_a_device(whole) - bytes_of_a_device(sharded) == 4 * (dim - -(-dim // 8))


@pytest.mark.parametrize("mesh", [slow_on(MESHES["explicit"]), MESHES["three devices"]])
def test_the_limit_is_that_of_one_device(mesh):
    params, batch = problem()
    args = (loss, params, ragged(batch, 20, 40, 50))
    settings = {"key": jax.random.key(5), "num_steps": 24, "num_gap_steps": 12, "num_probes": 2}
    wanted = jaxlimit.estimate_limit(*args, **settings)
    result = jaxlimit.estimate_limit(*args, mesh=mesh, **settings)
    assert float(result.largest) == pytest.approx(float(wanted.largest), rel=1e-5)
    assert float(result.prediction.ratio) == pytest.approx(float(wanted.prediction.ratio), rel=1e-3)
    assert float(result.gap.value) == pytest.approx(float(wanted.gap.value), rel=1e-2)


@pytest.mark.slow
def test_spectral_measure_and_run_probes_agree():
    params, batch = problem()
    matvec = curvature.hessian_matvec(loss, params, ragged(batch), mesh=AUTO)
    settings = {"dim": 103, "num_steps": 10, "num_probes": 2, "mesh": AUTO}
    measure = spectrum.spectral_measure(matvec, jax.random.key(0), **settings)
    again = spectrum.run_probes(
        matvec, jax.random.key(0), monitor=spectrum.Monitor(chunk=3), **settings
    )
    close(measure.recurrence.diagonal, again.recurrence.diagonal, 1e-5)


def test_a_trace_to_a_tolerance_is_that_of_one_device():
    params, batch = problem()
    f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.1)  # noqa: E731
    settings = {"dim": 103, "tolerance": 0.02, "num_steps": 24, "num_probes": 2}
    wanted, result = (
        spectrum.trace_within(
            curvature.hessian_matvec(loss, params, ragged(batch), mesh=mesh),
            jax.random.key(0),
            f,
            mesh=mesh,
            **settings,
        )
        for mesh in (None, MESHES["three devices"])
    )
    assert result.measure.nodes.shape == wanted.measure.nodes.shape
    np.testing.assert_allclose(result.estimate, wanted.estimate, rtol=1e-3)
    double = jax.tree_util.Partial(jnp.multiply, jnp.float32(2))
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh, got str"):
        spectrum.trace_within(double, jax.random.key(0), f, dim=9, tolerance=1.0, mesh="data")


@pytest.mark.parametrize("mesh", [MESHES["explicit"], slow_on(MESHES["three devices"])])
def test_the_sweep_is_that_of_one_device(mesh):
    params, batch = problem()
    args = (loss, params, ragged(batch, 20, 40, 50), np.geomspace(0.01, 1, 23))
    wanted = pruning.magnitude_sweep(*args)
    result = pruning.magnitude_sweep(*args, mesh=mesh)
    for name in ("losses", "radii", "kept_norms"):
        np.testing.assert_allclose(getattr(result, name), getattr(wanted, name), rtol=1e-6)
    np.testing.assert_array_equal(result.num_kept, wanted.num_kept)


@pytest.mark.slow
def test_the_smallest_mask_is_that_of_one_device():
    """Counts may differ by rounding where a mask is at the edge; the table stays."""
    params, batch = problem()
    split = curvature.split_loss(logits, cross_entropy)
    args = (split, params, ragged(batch, 20, 40, 50))
    settings = {"epsilon": 0.3, "key": jax.random.key(0)}
    wanted = pruning.smallest_mask(*args, **settings)
    result = pruning.smallest_mask(*args, **settings, mesh=MESHES["explicit"])
    assert [c.method for c in result.candidates] == [c.method for c in wanted.candidates]
    assert abs(result.num_kept - wanted.num_kept) <= 1
    assert result.loss <= result.dense_loss + 0.3
    assert abs(result.certificate.num_kept - wanted.certificate.num_kept) <= 1
    pruned = pruning.apply_mask(params, result.mask)  # the mask goes with any other arrays
    np.testing.assert_allclose(loss(pruned, batch), result.loss, rtol=1e-5)


class Net(nn.Module):
    """With BatchNorm, whose statistics have to be those of the whole batch."""

    normalized: bool = True

    @nn.compact
    def __call__(self, x, *, train=False):
        # A bias here would have no gradient but rounding errors, whose sign l1 would then follow.
        x = nn.Dense(16, use_bias=False)(x.reshape(len(x), -1))
        if self.normalized:
            x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x)
        return nn.Dense(4)(x)


def images(num=70):
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (num, 8, 8, 1), dtype=np.uint8),
        rng.integers(0, 4, num).astype(np.int32),
    )


@pytest.mark.parametrize(
    ("mesh", "sharded"),
    [slow_on(MESHES["explicit"], False), (AUTO, True), slow_on(MESHES["three devices"], True)],
)
def test_training_takes_the_same_steps(mesh, sharded):
    config = training.TrainingConfig(
        epochs=3, learning_rate=0.05, batch_size=20, l1=1e-4, augment=True, accumulate=2
    )
    wanted = training.fit(Net(), images(), config)
    result = training.fit(Net(), images(), config, mesh=mesh, shard_params=sharded)
    for name in ("params", "state"):
        jax.tree.map(lambda a, b: close(a, b, 1e-5), getattr(result, name), getattr(wanted, name))
    np.testing.assert_allclose(result.history.loss, wanted.history.loss, rtol=1e-5)
    if sharded and mesh.shape["data"] != 3:  # 3 divides no side of the kernel
        kernel = result.params["Dense_0"]["kernel"]
        assert bytes_of_a_device([kernel]) == kernel.nbytes // mesh.shape["data"]


def test_training_goes_on_on_another_mesh(tmp_path):
    """With batches smaller than either mesh; BatchNorm would make much of the rounding of two."""
    net = Net(normalized=False)
    config = training.TrainingConfig(epochs=2, learning_rate=0.01, batch_size=2)
    done = []

    def stop(metrics):
        done.append(metrics)
        if len(done) == 2:
            raise KeyboardInterrupt

    at = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        training.fit(
            net,
            images(),
            config,
            mesh=AUTO,
            shard_params=True,
            monitor=training.Monitor(on_epoch=stop, **at),
        )
    result = training.fit(
        net, images(), config, mesh=MESHES["three devices"], monitor=training.Monitor(**at)
    )
    assert result.resumed_from == 1
    wanted = training.fit(net, images(), config)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), result.params, wanted.params)


@pytest.mark.parametrize("store", ["device", slow_on("bfloat16"), slow_on("pinned_host")])
def test_lanczos_goes_on_from_its_checkpoint(store, tmp_path):
    params, batch = problem()
    matvec = curvature.hessian_matvec(loss, params, ragged(batch), mesh=AUTO)
    settings = {"dim": 103, "num_steps": 12, "num_probes": 2, "mesh": AUTO}
    settings["store"] = store
    monitor = spectrum.Monitor(chunk=3, checkpoint_dir=tmp_path, checkpoint_every=3)
    whole = spectrum.Monitor(chunk=3)
    wanted = spectrum.run_probes(matvec, jax.random.key(0), monitor=whole, **settings)

    def stop(stage, done, total):
        if done > 14:
            raise KeyboardInterrupt

    watched = replace(monitor, on_progress=stop)
    with pytest.raises(KeyboardInterrupt):
        spectrum.run_probes(matvec, jax.random.key(0), monitor=watched, **settings)
    seen = []
    result = spectrum.run_probes(
        matvec,
        jax.random.key(0),
        monitor=replace(monitor, on_progress=lambda *a: seen.append(a[1])),
        **settings,
    )
    assert seen[0] > 12
    for found, known in zip(result.recurrence, wanted.recurrence, strict=True):
        np.testing.assert_array_equal(found, known)
    settings |= {"mesh": MESHES["three devices"]}
    matvec = curvature.hessian_matvec(loss, params, ragged(batch), mesh=settings["mesh"])
    with pytest.raises(ValueError, match="padded_dim: checkpoint 104, this run 105"):
        spectrum.run_probes(matvec, jax.random.key(0), monitor=monitor, **settings)


@pytest.mark.parametrize("mesh", [None, AUTO], ids=["one device", "mesh"])
def test_another_problem_does_not_go_on(mesh, tmp_path):
    params, batch = problem()
    matvec = curvature.hessian_matvec(loss, params, ragged(batch))
    monitor = spectrum.Monitor(chunk=3, checkpoint_dir=tmp_path, checkpoint_every=3)
    settings = {"num_steps": 6, "monitor": monitor}
    spectrum.run_probes(matvec, jax.random.key(0), dim=103, mesh=mesh, **settings)
    with pytest.raises(ValueError, match=r"another run, which differs in dim: .* 103, this run 99"):
        spectrum.run_probes(lambda v: 2 * v, jax.random.key(0), dim=99, mesh=mesh, **settings)
    with pytest.raises(ValueError, match="another run, which differs in key"):
        spectrum.run_probes(matvec, jax.random.key(1), dim=103, mesh=mesh, **settings)
    with pytest.raises(ValueError, match=r"another run, which differs in operator\.program"):
        spectrum.run_probes(
            lambda v: 1.01 * matvec(v), jax.random.key(0), dim=103, mesh=mesh, **settings
        )


def test_what_is_no_mesh_is_refused():
    params, batch = problem()
    args = (loss, params, ragged(batch))
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh, got str"):
        curvature.hessian_matvec(*args, mesh="data")
    with pytest.raises(ValueError, match="mesh must have an axis"):
        curvature.hessian_matvec(*args, mesh=Mesh(np.array(jax.devices()[0]), ()))
    with pytest.raises(ValueError, match="mesh must be given with shard_params"):
        curvature.hessian_matvec(*args, shard_params=True)
    with pytest.raises(ValueError, match="with shard_params: a linearisation would"):
        curvature.hessian_matvec(*args, mesh=AUTO, shard_params=True, mode="linearized")
    with pytest.raises(ValueError, match=r"vector must have shape \(103,\), or \(104,\)"):
        curvature.hessian_matvec(*args, mesh=AUTO)(jnp.ones(99))
    with pytest.raises(TypeError, match="vector must have dtype float32, that of the weights"):
        curvature.hessian_matvec(*args, mesh=AUTO)(jnp.ones(103, jnp.bfloat16))
    with pytest.raises(ValueError, match="nonzero number of examples"):
        curvature.hessian_matvec(loss, params, ragged(batch, 0), mesh=AUTO)


@pytest.mark.slow
def test_a_study_is_that_of_one_device():
    """Measured limit, mask and prediction; the layers' limits run on the mesh too."""
    params, batch = problem()
    settings = StudySettings(
        epsilon=0.1, num_steps=24, num_gap_steps=4, num_layer_steps=4, num_ratios=9, quiet=True
    )
    one, many = (
        study(loss, params, ragged(batch, 20), key=KEY, settings=settings, mesh=mesh)
        for mesh in (None, AUTO)
    )
    assert many.measured.by_loss == one.measured.by_loss
    np.testing.assert_allclose(many.measured.losses, one.measured.losses, rtol=1e-5)
    assert abs(many.found.num_kept - one.found.num_kept) <= 1
    assert abs(many.certified.num_kept - one.certified.num_kept) <= 1
    ratios = [float(found.estimate.prediction.ratio) for found in (one, many)]
    np.testing.assert_allclose(*ratios, rtol=0.05)
    np.testing.assert_array_equal(many.layer_limits.names, one.layer_limits.names)

"""Plans against compiled programs, counts against closed forms, and a device that refuses."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import curvature, estimate_limit, lanczos, models, planning, training
from jaxlimit.lab import cost as cost_model
from jaxlimit.lab.cost import Network
from jaxlimit.planning import Workload

WORKLOAD = Workload(
    dim=10**6,
    itemsize=4,
    held=10**8,
    linearization=2 * 10**9,
    num_examples=1024,
    batch_size=128,
)
PLAN = partial(planning.plan, WORKLOAD, num_steps=96, reorthogonalize="selective")


@pytest.mark.parametrize(
    ("memory", "mode", "store", "reorthogonalize"),
    [
        (80e9, "linearized", "device", "selective"),
        (5.1e9, "linearized", "bfloat16", "selective"),
        (4.75e9, "linearized", "pinned_host", "selective"),
        (2e9, "forward-over-reverse", "device", "selective"),
        (0.7e9, "forward-over-reverse", "bfloat16", "selective"),
        (0.3e9, "forward-over-reverse", "pinned_host", "selective"),
    ],
)
def test_less_memory_takes_the_next_way(memory, mode, store, reorthogonalize):
    plan = PLAN(memory=memory)
    assert plan.fits
    assert plan.total <= 0.9 * memory
    assert (plan.mode, plan.store, plan.reorthogonalize) == (mode, store, reorthogonalize)


def test_what_a_cpu_pins_is_its_own_memory(monkeypatch):
    monkeypatch.setattr(planning.memory, "usable_memory", lambda: 4.75e9)
    assert PLAN(memory=4.75e9).store == "pinned_host"
    here = PLAN()
    assert here.fits
    assert (here.mode, here.store) == ("forward-over-reverse", "device")


@pytest.mark.parametrize(("copies", "fits"), [(2.9, False), (3.1, True)])
def test_a_host_holds_the_basis_before_a_chunk_and_its_checkpoint_too(copies, fits, monkeypatch):
    basis = PLAN(memory=4.75e9).host_bytes
    monkeypatch.setattr(planning.memory, "host_memory", lambda: copies * basis)
    assert PLAN(memory=4.75e9, stores=("pinned_host",), modes=("linearized",)).fits == fits


def test_last_of_all_no_basis_and_then_advice():
    bare = PLAN(memory=0.5e9, stores=("device", "none"))
    assert (bare.reorthogonalize, bare.parts["basis"]) == ("none", 0)
    nothing = PLAN(memory=1e8)
    assert not nothing.fits
    assert "nothing fits" in nothing.reasons[0]
    assert "parameters and data" in nothing.reasons[0]
    assert "take fewer examples" in nothing.reasons[0]


def test_batches_are_cut_as_far_as_it_takes():
    plan = PLAN(memory=1.0e9, modes=("forward-over-reverse",), stores=("device",))
    whole = PLAN(memory=80e9, modes=("forward-over-reverse",), stores=("device",))
    assert (whole.pieces, plan.pieces) == (1, 4)
    assert "each batch is cut into 4" in plan.reasons


def test_every_probe_holds_a_basis():
    one, four = (PLAN(memory=80e9, num_probes=n).parts["basis"] for n in (1, 4))
    assert (one, four) == (72 * 4 * 10**6, 4 * 72 * 4 * 10**6)


@pytest.mark.parametrize("store", lanczos.STORES)
@pytest.mark.parametrize("mode", ["full", "selective", "none"])
def test_planned_bytes_of_lanczos_are_those_of_the_compiled_program(store, mode):
    dim = 50_000
    matvec = Partial(jnp.multiply, jnp.ones(dim))
    start = partial(lanczos.start, num_steps=64, reorthogonalize=mode, store=store)
    state = start(jnp.ones(dim))
    memory = lanczos.recurrence._extend.lower(matvec, state, 8).compile().memory_analysis()
    compiled = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )
    plan = planning.plan(
        Workload(dim, 4, 0, 4 * dim, 1, 1),
        num_steps=64,
        reorthogonalize=mode,
        memory=1e12,
        modes=("linearized",),
        stores=(store,),
    )
    parts = ("Lanczos vectors", "basis", "work on the basis")
    # The CPU's memory is all host memory: its compiler counts a pinned basis with the rest.
    planned = sum(plan.parts[part] for part in parts) + 2 * plan.host_bytes
    compiled -= matvec.args[0].nbytes
    # The compiler may do without the scratch vector that is planned for.
    assert 0.95 * compiled <= planned <= 1.1 * compiled + 4 * dim


def small_network(name, width):
    fields = {"fc5": {"widths": (width, width)}, "resnet18": {"width": width}}[name]
    module = models.create(name, num_classes=10, **fields)
    images = jnp.ones((4, 16, 16, 16, 3))
    variables = dict(module.init(jax.random.key(0), images[0, :1]))
    params = variables.pop("params")
    loss = training.make_loss(module)
    return loss, params, (images, jnp.zeros((4, 16), jnp.int32)), variables


@pytest.mark.parametrize(
    ("name", "width"), [("fc5", 64), pytest.param("resnet18", 8, marks=pytest.mark.slow)]
)
def test_planned_linearisation_is_what_the_operator_carries(name, width):
    loss, params, batches, state = small_network(name, width)
    workload = planning.measure(loss, params, batches, state)
    matvec = curvature.hessian_matvec(loss, params, batches, state, mode="linearized")
    carried = sum(leaf.nbytes for leaf in jax.tree.leaves(matvec))
    assert workload.linearization == carried
    assert workload.num_examples == 64
    assert workload.batch_size == 16


def test_flops_of_products_follow_the_closed_form():
    """Linearised 6F - 4F₁, recomputed 8F - 5F₁ - F₂, with F counted from the forward pass."""
    loss, params, batches, state = small_network("fc5", 64)
    forward = planning.count_flops(loss, params, jax.tree.map(lambda x: x[0], batches), state)
    first = 2 * 16 * (16 * 16 * 3) * 64
    network = Network(0, forward / 16, first / 16, 0)
    dim = planning.measure(loss, params, batches, state).dim
    for mode in planning.MODES:
        matvec = curvature.hessian_matvec(loss, params, batches, state, mode=mode)
        counted = planning.count_flops(matvec, jnp.ones(dim))
        # The gradient at the first activations is needed by its tangent only, through a ReLU.
        unread = 64 * 2 * 64 * 64 if mode == "forward-over-reverse" else 0
        expected = cost_model.product_flops(network, 64, mode) - unread
        assert counted == pytest.approx(expected, rel=1e-3)


def compiled_flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_flops_are_those_that_the_compiler_counts():
    loss, params, batches, state = small_network("fc5", 64)
    matvec = curvature.hessian_matvec(loss, params, batches, state, mode="linearized")
    vector = jnp.ones(planning.measure(loss, params, batches, state).dim)
    # The compiler counts elementwise work too, some operations for each weight and activation.
    expected = pytest.approx(compiled_flops(matvec, vector), rel=0.02)
    assert planning.count_flops(matvec, vector) == expected

    def convolve(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=layout
        )

    # Without padding, whose taps the compiler leaves out.
    arrays = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 5))
    counted = planning.count_flops(convolve, *arrays)
    assert counted == 2 * (2 * 7 * 7 * 5) * 27
    assert counted == pytest.approx(compiled_flops(convolve, *arrays), rel=1e-6)


def test_loops_and_branches_are_counted_as_they_run():
    matrix = jnp.ones((3, 3))

    def loop(x):
        x = jax.lax.scan(lambda x, _: (matrix @ x, None), x, length=5)[0]
        return jax.lax.cond(x[0] > 0, lambda: matrix @ (matrix @ x), lambda: x)

    assert planning.count_flops(loop, jnp.ones(3)) == 7 * 18


def test_memory_falls_as_the_mesh_grows_but_for_what_is_whole():
    network, machine = Network(10**9, 2e9, 0.0, 1e6), planning.H100
    cost = partial(cost_model.product_cost, network, machine, num_examples=1000, num_steps=96)
    one, split = cost(num_devices=1), cost(num_devices=8, sharded=True)
    assert one.link_bytes == 0
    # The weights, the vector and the product, all in float32 and all of them whole.
    assert split.whole_bytes == 12 * 10**9
    assert split.link_bytes == pytest.approx(7 / 8 * split.whole_bytes)
    assert split.vector_bytes == one.vector_bytes / 8
    assert split.parameter_bytes == one.parameter_bytes / 8


@pytest.mark.parametrize(("num_steps", "kind"), [(96, "full"), (1000, "selective")])
def test_the_model_of_a_step_holds_the_basis_that_the_depth_asks_for(num_steps, kind):
    network = Network(10**6, 2e6, 0.0, 1e3)
    cost = cost_model.product_cost(network, planning.H100, num_examples=1, num_steps=num_steps)
    plan = planning.plan(
        Workload(10**6, 4, 0, 0, 1, 1), num_steps=num_steps, reorthogonalize=kind, memory=1e12
    )
    parts = ("Lanczos vectors", "basis", "work on the basis")
    assert cost.vector_bytes == sum(plan.parts[part] for part in parts)


def layered(params, x, remat):
    layer = jax.checkpoint(lambda w, h: jnp.tanh(h @ w)) if remat else lambda w, h: jnp.tanh(h @ w)
    for kernel in params:
        x = layer(kernel, x)
    return jnp.mean(x**2)


@pytest.mark.parametrize("mode", cost_model.COST_MODES)
def test_flops_of_every_mode_are_those_of_a_traced_network(mode):
    """A tanh in every layer, so that nothing of it is piecewise linear and goes unread."""
    widths, num = (12, 20, 16, 8), 32
    params = [jnp.full(shape, 0.1) for shape in itertools.pairwise(widths)]
    products = [2 * a * b for a, b in itertools.pairwise(widths)]
    network = Network(sum(p.size for p in params), sum(products), products[0], 0)
    matvec = curvature.hessian_matvec(
        partial(layered, remat=mode == "rematerialized"),
        params,
        jnp.ones((1, num, widths[0])),
        mode="linearized" if mode == "linearized" else "forward-over-reverse",
    )
    counted = planning.count_flops(matvec, jnp.ones(network.parameters))
    assert counted == cost_model.product_flops(network, num, mode)


DECODER = {"layers": 3, "width": 16, "hidden": 24, "vocabulary": 40, "context": 8}


def decoder_params():
    width, hidden, rows = DECODER["width"], DECODER["hidden"], DECODER["vocabulary"]
    block = {
        "attention": jnp.full((4, width, width), 0.1),
        "gate": jnp.full((2, width, hidden), 0.1),
        "down": jnp.full((hidden, width), 0.1),
    }
    blocks = [block] * DECODER["layers"]
    return {"table": jnp.ones((rows, width)), "blocks": blocks, "head": jnp.ones((width, rows))}


def decoder_block(block, x):
    query, key, value, out = block["attention"]
    scores = jax.nn.softmax((x @ query) @ (x @ key).T)
    x = x + (scores @ (x @ value)) @ out
    gate, up = block["gate"]
    return x + (jax.nn.silu(x @ gate) * (x @ up)) @ block["down"]


def decoder_loss(params, batch):
    def of_sequence(tokens):
        x = params["table"][tokens]
        for block in params["blocks"]:
            x = jax.checkpoint(decoder_block)(block, x)
        logits = x @ params["head"]
        return jnp.mean(jax.nn.logsumexp(logits, 1) - logits[jnp.arange(len(tokens)), tokens])

    return jnp.mean(jax.vmap(of_sequence)(batch))


def test_a_transformer_is_what_a_traced_decoder_is():
    network, params = cost_model.transformer(**DECODER), decoder_params()
    tokens = jnp.zeros((2, DECODER["context"]), jnp.int32)
    assert network.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 2 * network.forward_flops == planning.count_flops(decoder_loss, params, tokens)
    matvec = curvature.hessian_matvec(
        decoder_loss, params, tokens[None], mode="forward-over-reverse"
    )
    counted = planning.count_flops(matvec, jnp.ones(network.parameters))
    # Not made again, nor are their tangents: a block's last product, which only its output needs,
    # and the head, which is in no block.
    width, hidden, context = (DECODER[name] for name in ("width", "hidden", "context"))
    kept = 2 * context * width * (DECODER["layers"] * hidden + DECODER["vocabulary"])
    assert counted == cost_model.product_flops(network, 2, "rematerialized") - 2 * 3 * kept


@pytest.mark.parametrize("mode", planning.MODES)
def test_read_and_written_are_within_a_factor_of_two_of_the_compilers_count(mode):
    """The model counts passes over weights and activations; the compiler, every operand."""
    loss, params, batches, state = small_network("fc5", 256)
    batches = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batches)  # no loop
    workload = planning.measure(loss, params, batches, state)
    dim, vector = workload.dim, jnp.ones(workload.dim)
    matvec = curvature.hessian_matvec(loss, params, batches, state, mode=mode)
    counted = jax.jit(matvec).lower(vector).compile().cost_analysis()["bytes accessed"]
    step = cost_model.product_cost(
        Network(dim, 0.0, 0.0, workload.linearization / 4 / 64),
        planning.H100,
        num_examples=64,
        num_steps=1,
        mode=mode,
        reorthogonalize="none",
    )
    product = step.memory_bytes - 8 * 4 * dim  # without Lanczos's own vectors
    assert 0.5 < product / counted < 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: planning.lanczos_bytes(3, 4, 0), "num_steps must be at least 1, got 0"),
        (lambda: planning.lanczos_bytes(3, 4, 1, "disk"), "store must be one of"),
        (lambda: cost_model.product_flops(Network(1, 1, 0, 1), 0), "num_examples must be at least"),
        (lambda: cost_model.product_flops(Network(1, 1, 0, 1), 1, "fast"), "mode must be one of"),
        (lambda: cost_model.transformer(**DECODER | {"hidden": 0}), "hidden must be at least 1"),
    ],
)
def test_bad_counts_are_named(function, message):
    with pytest.raises(ValueError, match=message):
        function()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"memory": 0}, r"memory must lie in \(0, inf\], got 0"),
        ({"modes": ("auto",)}, "modes must be one of 'linearized', 'forward-over-reverse'"),
        ({"stores": ("disk",)}, "stores must be one of 'device', 'bfloat16', 'pinned_host'"),
    ],
)
def test_bad_input_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        planning.plan(WORKLOAD, **{"num_steps": 4} | settings)


X = jax.random.normal(jax.random.key(1), (4, 16, 12)) * jnp.geomspace(5, 0.05, 12)


def quadratic(w, batch):
    return 0.5 * jnp.mean((batch @ (w - jnp.arange(12.0))) ** 2)


ESTIMATE = partial(
    estimate_limit,
    quadratic,
    jnp.arange(12.0),
    X,
    key=jax.random.key(0),
    epsilon=0.1,
    num_steps=12,
    num_gap_steps=4,
)


class Refusing:
    """`lanczos.extend`, but the given calls of it find no memory on the device."""

    def __init__(self, *calls):
        self.calls, self.count, self.steps = calls, -1, []
        self.extend = lanczos.extend

    def __call__(self, matvec, state, **settings):
        self.count += 1
        if self.count in self.calls:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        self.steps.append(int(state.step))
        return self.extend(matvec, state, **settings)


def test_device_out_of_memory_is_planned_again_and_no_step_is_lost(monkeypatch):
    whole = ESTIMATE(num_probes=2)
    refusing = Refusing(1)
    monkeypatch.setattr(lanczos, "extend", refusing)
    progress = []
    estimate = ESTIMATE(num_probes=2, on_progress=lambda *at: progress.append(at))
    assert float(estimate.prediction.ratio) == pytest.approx(float(whole.prediction.ratio), 1e-4)
    # The first probe's steps had been made when the second's were refused, and are not made again.
    assert refusing.steps == [0, 0, 0, 0]
    assert [at for at in progress if at[0] == "spectrum"] == [
        ("spectrum", 12, 24),
        ("spectrum", 24, 24),
    ]
    assert any("forward-over-reverse" in reason for reason in estimate.reasons)


def test_linearisation_out_of_memory_is_made_batch_by_batch(monkeypatch):
    make, linearised = curvature.hessian_matvec, []

    def once(*args, **settings):
        operator = make(*args, **settings)
        linearised.append(operator.linearized)
        if len(linearised) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return operator

    monkeypatch.setattr(curvature, "hessian_matvec", once)
    estimate = ESTIMATE()
    assert linearised == [True, False]
    assert any("ran out of memory" in reason for reason in estimate.reasons)


def test_second_refusal_is_explained(monkeypatch):
    monkeypatch.setattr(lanczos, "extend", Refusing(0, 1))
    with pytest.raises(MemoryError, match=r"out of memory at step 0 .* second, lighter plan"):
        ESTIMATE()


def test_other_errors_of_the_device_pass_through(monkeypatch):
    def broken(*args, **settings):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(lanczos, "extend", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        ESTIMATE()


def test_what_cannot_fit_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(lanczos, "extend", Refusing(0, 1, 2))
    with pytest.raises(MemoryError, match="nothing fits: even the lightest way takes"):
        ESTIMATE(memory=100)


def test_less_memory_gives_the_same_answer_another_way():
    plenty, tight = ESTIMATE(), ESTIMATE(memory=12_000)
    np.testing.assert_allclose(plenty.prediction.ratio, tight.prediction.ratio, rtol=1e-3)


@pytest.mark.parametrize(
    ("memory", "stores", "store", "reorthogonalize"),
    [
        (6e9, lanczos.STORES, "device", "full"),
        (5.3e9, lanczos.STORES, "bfloat16", "full"),
        (5.15e9, lanczos.STORES, "bfloat16", "selective"),
        (4.75e9, lanczos.STORES, "pinned_host", "full"),
        (6e9, ("device", "none"), "device", "full"),  # what a mesh can choose from
        (5.5e9, ("device", "none"), "device", "selective"),
        (5.15e9, ("device", "none"), "device", "full"),
    ],
)
def test_selective_comes_before_the_host_and_before_no_basis(
    memory, stores, store, reorthogonalize
):
    plan = planning.plan(WORKLOAD, num_steps=128, memory=memory, stores=stores)
    assert plan.fits
    assert (plan.store, plan.reorthogonalize) == (store, reorthogonalize)
    if reorthogonalize == "selective":
        assert "reorthogonalisation full with the basis in device memory" in plan.reasons[0]


def test_full_reorthogonalisation_asked_for_stays():
    plan = planning.plan(
        WORKLOAD, num_steps=128, reorthogonalize="full", memory=5.5e9, stores=("device", "none"),
        modes=("linearized",),
    )  # fmt: skip
    assert plan.reorthogonalize == "none"


def test_a_mesh_shares_the_work():
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    whole, ways = planning.prepare(quadratic, jnp.arange(12.0), X)
    assert ways == {"modes": planning.MODES}
    part, ways = planning.prepare(quadratic, jnp.arange(12.0), X, mesh=mesh, shard_params=True)
    assert ways == {"modes": ("forward-over-reverse",)}
    assert part == planning.share(whole, 4)


def test_shallow_runs_are_reorthogonalised_fully_and_deep_ones_in_bounded_memory():
    by_depth = [planning.plan(WORKLOAD, num_steps=n, memory=80e9) for n in (256, 257, 2000)]
    assert [plan.reorthogonalize for plan in by_depth] == ["full", "selective", "selective"]
    assert by_depth[1].parts["basis"] == by_depth[2].parts["basis"]
    halved = PLAN(num_steps=256, reorthogonalize="full", memory=80e9, stores=("bfloat16",))
    assert halved.parts["basis"] == by_depth[0].parts["basis"] / 2


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H200", True),
        ("NVIDIA H100 PCIe", False),
        ("NVIDIA H200 NVL", False),
        ("NVIDIA H1000", False),
        ("TPU v5", False),
    ],
)
def test_data_sheets_are_those_of_their_boards(kind, known):
    device = SimpleNamespace(device_kind=kind)
    assert planning.data_sheet_flops("bfloat16", device) == (989e12 if known else None)
    assert planning.data_sheet_flops("float32", device) == (67e12 if known else None)
    with pytest.raises(ValueError, match=r"precision must be one of 'bfloat16'.*got 'float16'"):
        planning.data_sheet_flops("float16", device)

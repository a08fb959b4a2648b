"""Losses as users write them: narrow, weighted, without forward mode or batching rule, changing."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import adapters, curvature, spectrum

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 4)).astype(np.float32)
TARGETS = RNG.normal(size=12).astype(np.float32)
WEIGHTS = np.concatenate([np.full(3, 20.0), RNG.uniform(size=6), np.zeros(3)]).astype(np.float32)
PARAMS = {"a": RNG.normal(size=4).astype(np.float32), "b": np.float32(0.3)}
RAGGED = [(INPUTS[:5], TARGETS[:5], WEIGHTS[:5]), (INPUTS[5:], TARGETS[5:], WEIGHTS[5:])]
MODES = ["linearized", "forward-over-reverse", "reverse-over-reverse"]


def residuals(params, batch):
    return jnp.tanh(batch[0] @ params["a"] + params["b"]) - batch[1]


def square(params, batch):
    return 0.5 * jnp.mean(residuals(params, batch) ** 2)


def dense(operator):
    return adapters.to_dense(operator)


def oracle(loss, params=PARAMS):
    """Return value, gradient and Hessian of `loss(flat vector)` in float64, dense."""
    with jax.enable_x64(True):
        flat, back = jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        )
        of = lambda v: loss(back(v))  # noqa: E731
        return of(flat), jax.grad(of)(flat), jax.hessian(of)(flat)


# --- weights ----------------------------------------------------------------------------------


def weighted(params, batch):
    return 0.5 * residuals(params, batch) ** 2, batch[2]


def token_losses(params, batch):
    """Two tokens an example, the second masked out in half of them."""
    of = 0.5 * residuals(params, batch) ** 2
    mask = (jnp.arange(len(batch[1]) * 2).reshape(-1, 2) % 4 != 3).astype(jnp.float32)
    return jnp.stack([of, 2 * of], axis=1), mask * batch[2][:, None]


def whole_weighted(params):
    losses = 0.5 * residuals(params, (INPUTS, TARGETS)) ** 2
    return (WEIGHTS.astype(float) * losses).sum() / WEIGHTS.sum()


def whole_tokens(params):
    losses, weights = zip(*(token_losses(params, batch) for batch in RAGGED), strict=True)
    losses, weights = jnp.concatenate(losses), jnp.concatenate(weights)
    return (weights * losses).sum() / weights.sum()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("loss", "whole"), [(weighted, whole_weighted), (token_losses, whole_tokens)]
)
def test_weights_of_examples_are_those_of_the_whole(loss, whole, mode):
    """Σ w l / Σ w over all batches, not a mean of ratios of each."""
    _, gradient, hessian = oracle(whole)
    operator = curvature.hessian_matvec(loss, PARAMS, RAGGED, mode=mode)
    np.testing.assert_allclose(dense(operator), hessian, rtol=1e-4, atol=1e-6)
    result = curvature.mean_gradient(loss, PARAMS, RAGGED)
    np.testing.assert_allclose(result, gradient, rtol=1e-4, atol=1e-6)


def test_weights_over_a_source_on_the_host():
    _, _, hessian = oracle(whole_weighted)
    operator = curvature.hessian_matvec_over(weighted, PARAMS, lambda: iter(RAGGED))
    np.testing.assert_allclose(dense(operator), hessian, rtol=1e-4, atol=1e-6)


def test_losses_of_the_examples_are_averaged():
    each = lambda params, batch: 0.5 * residuals(params, batch) ** 2  # noqa: E731
    _, gradient, hessian = oracle(lambda p: square(p, (INPUTS, TARGETS)))
    for loss in (each, square):
        result = dense(curvature.hessian_matvec(loss, PARAMS, RAGGED))
        np.testing.assert_allclose(result, hessian, rtol=1e-4, atol=1e-6)
        result = curvature.mean_gradient(loss, PARAMS, RAGGED)
        np.testing.assert_allclose(result, gradient, rtol=1e-4, atol=1e-6)


def test_weights_in_gauss_newton_and_fisher():
    def outputs(params, batch):
        return jnp.tanh(batch[0] @ params["a"] + params["b"])

    def output_losses(y, batch):
        return 0.5 * (y - batch[1]) ** 2, batch[2]

    with jax.enable_x64(True):
        flat, back = jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        )
        of = lambda v: outputs(back(v), (INPUTS, TARGETS))  # noqa: E731
        jacobian, weights = jax.jacobian(of)(flat), WEIGHTS / WEIGHTS.astype(float).sum()
        gauss_newton = jacobian.T @ (weights[:, None] * jacobian)
        rows = (of(flat) - TARGETS)[:, None] * jacobian
        fisher = rows.T @ (weights[:, None] * rows)
    for mode in MODES:
        settings = {"mode": mode}
        operator = curvature.gauss_newton_matvec(outputs, output_losses, PARAMS, RAGGED, **settings)
        np.testing.assert_allclose(dense(operator), gauss_newton, rtol=1e-4, atol=1e-6)
        operator = curvature.fisher_matvec(
            outputs, PARAMS, RAGGED, example_losses=output_losses, **settings
        )
        np.testing.assert_allclose(dense(operator), fisher, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"), [(-1.0, "weights.*at least 0"), (0.0, "weights.*sum to 0")]
)
def test_weights_that_make_no_mean_are_named(weights, message):
    loss = lambda p, b: (residuals(p, b) ** 2, jnp.full(len(b[1]), weights))  # noqa: E731
    with pytest.raises(ValueError, match=message):
        curvature.hessian_matvec(loss, PARAMS, RAGGED)


# --- narrow types -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_many_batches_of_a_narrow_loss(dtype):
    """2,000 batches: sums in the narrow type would stop growing long before the end."""
    rows = np.ones((2000, 1, 1), np.float32)
    params = {"kernel": jnp.ones(1, dtype)}
    loss = lambda p, x: jnp.mean((x.astype(dtype) @ p["kernel"]) ** 2)  # noqa: E731
    gradient = curvature.mean_gradient(loss, params, rows)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, 2.0, rtol=1e-3)
    for mode in MODES:
        operator = curvature.hessian_matvec(loss, params, rows, mode=mode)
        assert operator.dtype == jnp.float32
        np.testing.assert_allclose(operator(jnp.ones(1)), 2.0, rtol=1e-3)


def typed_scan(params, batch):
    step = lambda carry, x: ((jnp.tanh(carry @ params["w"]) + x), None)  # noqa: E731
    carry, _ = jax.lax.scan(step, jnp.zeros(3, params["w"].dtype), batch.astype(params["w"].dtype))
    return jnp.mean(carry.astype(jnp.promote_types(carry.dtype, jnp.float32)) ** 2)


def test_narrow_parameters_with_a_typed_scan_carry():
    """A recurrent network whose carry has the type of its parameters."""
    inputs = RNG.normal(size=(2, 5, 7, 2)).astype(np.float32)

    def loss_in(dtype):
        net = nn.RNN(nn.OptimizedLSTMCell(3, dtype=dtype, param_dtype=dtype))
        return lambda params, x: net.apply(params, x)[:, -1].astype(jnp.float32).mean() ** 2

    params = nn.RNN(nn.OptimizedLSTMCell(3)).init(jax.random.key(0), inputs[0])
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    operator = curvature.hessian_matvec(loss_in(jnp.bfloat16), params, inputs)
    assert operator.dtype == jnp.float32
    vector = jax.random.normal(jax.random.key(1), (operator.dim,))
    wanted = curvature.hessian_matvec(loss_in(jnp.float32), wide, inputs)(vector)
    assert np.linalg.norm(operator(vector) - wanted) < 5e-2 * np.linalg.norm(wanted)


def test_a_typed_carry_in_every_mode():
    batches = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    narrow = {"w": jnp.eye(3, dtype=jnp.bfloat16)}
    wide = lambda p: jnp.mean(jnp.stack([typed_scan(p, batch) for batch in batches]))  # noqa: E731
    _, _, hessian = oracle(wide, narrow)
    for mode in MODES:
        result = dense(curvature.hessian_matvec(typed_scan, narrow, batches, mode=mode))
        assert np.linalg.norm(result - hessian) < 5e-2 * np.linalg.norm(hessian)


# --- no forward mode --------------------------------------------------------------------------


@jax.custom_vjp
def normalised(x):
    return jax.nn.softmax(x)


def _normalised_forward(x):
    y = normalised(x)
    return y, y  # the residual holds the output, as in flash attention


def _normalised_backward(y, cotangent):
    return (y * (cotangent - (y * cotangent).sum(-1, keepdims=True)),)


normalised.defvjp(_normalised_forward, _normalised_backward)


@jax.custom_vjp
def rounded(x):
    return jnp.round(8 * x) / 8


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))


def attention(softmax, params, batch):
    scores = batch[0] * params["a"] + params["b"]
    return jnp.mean((softmax(scores) @ jnp.arange(4.0) - batch[1]) ** 2)


def quantised(round_off, params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ round_off(params["a"]) + params["b"]) - batch[1]) ** 2)


@pytest.mark.parametrize("mode", ["auto", "linearized", "reverse-over-reverse", "budget"])
def test_functions_without_forward_mode(mode):
    settings = {"memory_budget": 0} if mode == "budget" else {"mode": mode}
    through = lambda x: x + jax.lax.stop_gradient(jnp.round(8 * x) / 8 - x)  # noqa: E731
    for make, own, plain in (
        (attention, normalised, jax.nn.softmax),
        (quantised, rounded, through),
    ):
        of = lambda f, make=make: lambda p, b: make(f, p, b)  # noqa: E731
        wanted = dense(curvature.hessian_matvec(of(plain), PARAMS, RAGGED))
        result = dense(curvature.hessian_matvec(of(own), PARAMS, RAGGED, **settings))
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-6)


def test_an_adjoint_solver():
    from jax.experimental.ode import odeint

    def loss(params, batch):
        decay = lambda y, t: -params["a"] * y  # noqa: E731
        return jnp.mean(odeint(decay, batch[0][0], jnp.array([0.0, 1.0]))[-1] ** 2)

    params = {"a": jnp.abs(PARAMS["a"])}
    batches = [(INPUTS[:1],), (INPUTS[1:2],)]
    rows = INPUTS[:2].astype(float)
    wanted = (4 * rows**2 * np.exp(-2 * np.asarray(params["a"], float)) / 4).mean(0)
    operator = curvature.hessian_matvec(loss, params, batches)
    np.testing.assert_allclose(dense(operator), np.diag(wanted), rtol=1e-3, atol=1e-5)


def test_the_error_names_the_mode_that_works():
    loss = lambda p, b: attention(normalised, p, b)  # noqa: E731
    with pytest.raises(TypeError, match=r"forward-over-reverse.*use 'reverse-over-reverse'"):
        curvature.hessian_matvec(loss, PARAMS, RAGGED, mode="forward-over-reverse")
    plain = lambda p, b: attention(jax.nn.softmax, p, b)  # noqa: E731
    tangent = jax.tree.map(jnp.ones_like, PARAMS)
    wanted = curvature.hvp(plain, PARAMS, tangent, RAGGED[0])
    result = curvature.hvp(loss, PARAMS, tangent, RAGGED[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result, wanted
    )


# --- no batching rule -------------------------------------------------------------------------


def scaled_on_host(x):
    """A function of the host's that no `vmap` may touch, with its derivative."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda x: np.asarray(3 * x), shape, x)


@jax.custom_jvp
def tripled(x):
    return scaled_on_host(x)


tripled.defjvp(lambda x, t: (tripled(x[0]), 3 * t[0]))


def experts(params, batch):
    """A mixture of two experts, half of the rows each."""
    half = len(batch[0]) // 2
    kernels = jnp.stack([params["a"], 2 * params["a"]])[..., None]
    sizes = jnp.array([half, len(batch[0]) - half], jnp.int32)
    outputs = jax.lax.ragged_dot(batch[0], kernels, sizes)[:, 0]
    return jnp.mean((jnp.tanh(outputs + params["b"]) - batch[1]) ** 2)


def experts_plainly(params, batch):
    half = len(batch[0]) // 2
    factor = jnp.where(jnp.arange(len(batch[0])) < half, 1, 2)
    outputs = factor * (batch[0] @ params["a"])
    return jnp.mean((jnp.tanh(outputs + params["b"]) - batch[1]) ** 2)


def from_host(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["a"]) - tripled(params["b"])) ** 2)


def from_host_plainly(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["a"]) - 3 * params["b"]) ** 2)


@pytest.mark.parametrize("mode", ["auto", "linearized", "forward-over-reverse"])
@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize(
    ("loss", "plain"), [(experts, experts_plainly), (from_host, from_host_plainly)]
)
def test_losses_that_cannot_be_vmapped(loss, plain, num_batches, mode):
    batches = tuple(x.reshape(num_batches, -1, *x.shape[1:]) for x in (INPUTS, TARGETS))
    wanted = dense(curvature.hessian_matvec(plain, PARAMS, batches))
    operator = curvature.hessian_matvec(loss, PARAMS, batches, mode=mode)
    columns = [operator(row) for row in jnp.eye(5)]
    np.testing.assert_allclose(np.stack(columns), wanted, rtol=1e-4, atol=1e-6)


def test_an_output_loss_with_a_function_of_the_host_in_it():
    """Not linear in the outputs, so its second derivative needs the rule that it was given."""

    def split(triple):
        apply = lambda p, batch: jnp.tanh(batch[0] @ p["a"]) + p["b"]  # noqa: E731
        return curvature.split_loss(
            apply, lambda y, batch: jnp.mean((triple(y) - batch[1]) ** 4 + y**2)
        )

    batches = tuple(x.reshape(3, -1, *x.shape[1:]) for x in (INPUTS, TARGETS))
    for of in (
        lambda loss, mode: curvature.hessian_matvec(loss, PARAMS, batches, mode=mode),
        lambda loss, mode: curvature.gauss_newton_matvec(
            loss.apply, loss.output_loss, PARAMS, batches, mode=mode
        ),
    ):
        wanted = dense(of(split(lambda x: 3 * x), "auto"))
        for mode in ("auto", "linearized", "reverse-over-reverse"):
            found = dense(of(split(tripled), mode))
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


# --- what a loss holds ------------------------------------------------------------------------


class Tempered:
    """A loss that is a method, and reads what may change."""

    def __init__(self):
        self.temperature, self.scale = 1.0, np.ones(4, np.float32)

    def loss(self, params, batch):
        logits = (batch[0] * self.scale) @ params["a"] / self.temperature
        return jnp.mean((jnp.tanh(logits + params["b"]) - batch[1]) ** 2)


SHIFT = jnp.zeros(4)


def shifted(params, batch):
    return jnp.mean((jnp.tanh((batch[0] + SHIFT) @ params["a"]) - params["b"]) ** 2)


def largest(loss):
    return float(np.linalg.eigvalsh(dense(curvature.hessian_matvec(loss, PARAMS, RAGGED))).max())


def truth(loss):
    def whole(params):
        return loss(params, (INPUTS, TARGETS))

    return float(np.linalg.eigvalsh(oracle(whole)[2]).max())


def test_what_a_loss_reads_is_read_anew():
    global SHIFT
    held = Tempered()
    for change in (
        lambda: None,
        lambda: setattr(held, "temperature", 5.0),
        lambda: setattr(held, "scale", np.full(4, 0.5, np.float32)),
        lambda: held.scale.__setitem__(0, 2.0),
    ):
        change()
        np.testing.assert_allclose(largest(held.loss), truth(held.loss), rtol=1e-4)
        gradient = curvature.mean_gradient(held.loss, PARAMS, RAGGED)
        wanted = oracle(lambda p: held.loss(p, (INPUTS, TARGETS)))[1]
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)
    for value in (0.0, 1.0):
        SHIFT = jnp.full(4, value)
        np.testing.assert_allclose(largest(shifted), truth(shifted), rtol=1e-4)


def test_an_operator_of_ones_own_is_read_anew():
    eigenvalues = np.arange(1.0, 5.0, dtype=np.float32)
    matvec = lambda v: eigenvalues * v  # noqa: E731
    for _ in range(2):
        measure = spectrum.spectral_measure(matvec, jax.random.key(0), dim=4, num_steps=4)
        np.testing.assert_allclose(measure.nodes[0], np.sort(eigenvalues), rtol=1e-5)
        eigenvalues *= 3


class Module(eqx.Module):
    """A loss that is a module: a pytree with arrays, and no hash."""

    scale: jax.Array

    def __call__(self, params, batch):
        return self.scale * square(params, batch)


@dataclasses.dataclass
class Record:
    """Neither frozen nor hashable."""

    scale: np.ndarray

    def __call__(self, params, batch):
        return self.scale * square(params, batch)


class Listed(nn.Module):
    """A Linen module whose fields are lists, dicts and NumPy arrays."""

    sizes: list
    scale: np.ndarray
    options: dict

    def loss(self, params, batch):
        return self.scale * self.options["factor"] * square(params, batch)


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: Module(jnp.float32(scale)),
        lambda scale: Record(np.float32(scale)),
        lambda scale: Listed([1], np.float32(scale), {"factor": 1.0}).loss,
    ],
)
def test_losses_without_a_hash(make):
    wanted = dense(curvature.hessian_matvec(square, PARAMS, RAGGED))
    for scale in (1.0, 2.0, 2.0):
        operator = curvature.hessian_matvec(make(scale), PARAMS, RAGGED)
        np.testing.assert_allclose(dense(operator), scale * wanted, rtol=1e-5)
        gradient = curvature.mean_gradient(make(scale), PARAMS, RAGGED)
        alone = curvature.mean_gradient(square, PARAMS, RAGGED)
        np.testing.assert_allclose(gradient, scale * alone, rtol=1e-5)


def test_equal_programs_are_compiled_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    held = Tempered()
    curvature.mean_gradient(held.loss, PARAMS, RAGGED)
    compiled.clear()
    curvature.mean_gradient(held.loss, PARAMS, RAGGED)
    assert not compiled


def test_a_near_miss_of_a_setting_is_named():
    outputs = lambda p, b: b[0] @ p["a"]  # noqa: E731
    with pytest.raises(TypeError, match=r"hessian_matvec has no argument 'memory_bugdet'.*_budget"):
        curvature.hessian_matvec(square, PARAMS, RAGGED, memory_bugdet=1)
    with pytest.raises(TypeError, match="did you mean 'mask'"):
        curvature.gauss_newton_matvec(outputs, lambda y, b: y.mean(), PARAMS, RAGGED, masks=None)
    with pytest.raises(TypeError, match="fisher_matvec has no argument 'modus'"):
        curvature.fisher_matvec(outputs, PARAMS, RAGGED, modus="auto")


def test_programs_are_told_apart():
    """By constants inside loops, branches and nested programs too."""
    from jaxlimit._core.functions import Frozen

    def make(a, b, c, key):
        array = np.full(3, b, np.float32)

        def function(x):
            x = jax.lax.scan(lambda y, _: (y * array.astype(y.dtype), None), x, length=2)[0]
            x = jax.lax.cond(x.sum() > 0, lambda x: x + a, lambda x: x, x)
            return jax.jit(lambda x: x * c)(x) + jax.random.uniform(key, (3,))

        return function

    values = (1.0, 2.0, jnp.ones(3), jax.random.key(0))
    function = make(*values)
    same = Frozen(function, jnp.ones(3))
    assert same == Frozen(function, jnp.ones(3))
    assert hash(same) == hash(Frozen(function, jnp.ones(3)))
    assert same != Frozen(function, jnp.ones(3, jnp.float16))
    digests = {same._key[1]}
    for i, other in enumerate((3.0, 3.0, jnp.arange(3.0), jax.random.key(1))):
        changed = make(*values[:i], other, *values[i + 1 :])
        digests.add(Frozen(changed, jnp.ones(3))._key[1])
    assert len(digests) == 5
    again = make(*values)
    assert Frozen(again, jnp.ones(3))._key[1] == same._key[1]
    assert Frozen(again, jnp.ones(3)) != same  # another function, which may differ elsewhere


def test_weights_are_constants_and_may_be_one_for_each_token():
    """Weights that lean on the parameters have no derivative of their own, in any operator."""

    def leaning(params, batch):
        losses, weights = token_losses(params, batch)
        return losses, weights * (1 + 0 * params["b"]) * jnp.exp(params["b"])

    for make in (curvature.mean_gradient, lambda *args: dense(curvature.hessian_matvec(*args))):
        result, wanted = make(leaning, PARAMS, RAGGED), make(token_losses, PARAMS, RAGGED)
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-6)

    def outputs(params, batch):
        return jnp.tanh(batch[0] @ params["a"] + params["b"])

    def losses_of(y, batch):
        of = 0.5 * (y - batch[1]) ** 2
        mask = (jnp.arange(len(y) * 2).reshape(-1, 2) % 4 != 3).astype(jnp.float32)
        return jnp.stack([of, 2 * of], axis=1), mask * batch[2][:, None]

    with jax.enable_x64(True):
        flat, back = jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        )
        parts = [losses_of(outputs(PARAMS, batch), batch)[1] for batch in RAGGED]
        weights = jnp.concatenate(parts).ravel().astype(float)
        of = lambda v: jnp.concatenate(  # noqa: E731
            [losses_of(outputs(back(v), batch), batch)[0] for batch in RAGGED]
        ).ravel()
        rows = jax.jacobian(of)(flat)
        fisher = rows.T @ (weights[:, None] * rows) / weights.sum()
    operator = curvature.fisher_matvec(outputs, PARAMS, RAGGED, example_losses=losses_of)
    np.testing.assert_allclose(dense(operator), fisher, rtol=1e-4, atol=1e-6)


def test_programs_that_differ_in_their_wiring_are_told_apart():
    from jaxlimit._core.functions import Frozen

    first = True

    def minus(x):
        y = jnp.sin(x)
        return x - y if first else y - x

    def chosen(x):
        pair = (jnp.sin(x), jnp.cos(x))
        return pair[0] if first else pair[1]

    for function in (minus, chosen):
        first = True
        before = Frozen(function, jnp.ones(3))
        first = False
        assert before != Frozen(function, jnp.ones(3))


def test_the_limit_of_a_loss_without_forward_mode():
    """The plan may ask for products made anew, which then go in reverse."""
    import jaxlimit
    from jaxlimit import planning

    of = lambda f: lambda p, b: attention(f, p, b)  # noqa: E731
    settings = {"key": jax.random.key(0), "epsilon": 0.05, "num_steps": 5, "num_gap_steps": 2}
    wanted = jaxlimit.estimate_limit(of(jax.nn.softmax), PARAMS, RAGGED, **settings)
    for mode in ("auto", "reverse-over-reverse"):
        result = jaxlimit.estimate_limit(of(normalised), PARAMS, RAGGED, mode=mode, **settings)
        np.testing.assert_allclose(result.largest, wanted.largest, rtol=1e-4)
    _, ways = planning.prepare(of(normalised), PARAMS, RAGGED, mode="reverse-over-reverse")
    assert ways["modes"] == ("forward-over-reverse",)

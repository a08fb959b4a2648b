"""Estimators side by side on one case, one of the user's own among them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlimit import curvature, flatten_weights, models, spectrum, traces
from jaxlimit.cli import peer_rows
from jaxlimit.cli.commands import BenchOptions
from jaxlimit.cli.errors import UsageError, near
from jaxlimit.cli.tasks import find_function
from jaxlimit.lab.reporting import markdown_table, time_in_turns

CASES = ("tiny-digits", "fc5-digits", "conv-digits")
_DENSE = 1500
_DEEP = 96


class Case(NamedTuple):
    """A trained network with its data.

    Attributes:
        loss: loss of a batch.
        params: parameters after some training.
        batches: batches of digits.
        dim: number of weights.
        name: name of the case.
    """

    loss: Callable
    params: Any
    batches: Any
    dim: int
    name: str


class Row(NamedTuple):
    """One estimator.

    Attributes:
        name: its name.
        call: computes the estimate.
        products: Hessian products that it uses.
        error: relative error of the result of `call`.
    """

    name: str
    call: Callable[[], Any]
    products: int
    error: Callable[[Any], float]


def table(options: BenchOptions) -> str:
    """Time the estimators of one kind in turns, and compare each with a reference."""
    if options.repeats < 1:
        raise UsageError(f"--repeats must be at least 1, got {options.repeats}")
    case = make_case(options.case, options.seed)
    own = None if options.add is None else find_function(options.add)
    rows, reference = _ROWS[options.kind](case, own, jax.random.key(options.seed))
    times = time_in_turns({row.name: row.call for row in rows}, repeats=options.repeats)
    head = (f"{options.kind} on {options.case}: D = {case.dim:,}, reference: {reference}; "
            f"{options.repeats} calls of each in turns, the fastest counts")  # fmt: skip
    columns = {
        "estimator": [row.name for row in rows],
        "ms": [f"{1e3 * times[row.name]['minimum']:.3g}" for row in rows],
        "first call, s": [f"{times[row.name]['first']:.3g}" for row in rows],
        "products": [str(row.products) for row in rows],
        "relative error": [f"{row.error(row.call()):.2g}" for row in rows],
    }
    return f"{head}\n\n{markdown_table(columns)}"


def make_case(name: str, seed: int) -> Case:
    """Train a small network on scikit-learn's digits for a few epochs.

    Raises:
        UsageError: if there is no such case.
    """
    if name not in CASES:
        raise UsageError(f"there is no case {name!r}; {near(name, CASES)}")
    from jaxlimit._core.extras import require

    digits = require("sklearn.datasets", "data", "a case on digits").load_digits()
    images = jnp.asarray(digits.images[:1024, ..., None] / 16, jnp.float32)
    labels = jnp.asarray(digits.target[:1024])
    apply, params = _network(name, jax.random.key(seed), images[:1])

    def cross_entropy(logits, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss = curvature.split_loss(apply, cross_entropy)
    batches = (images.reshape(4, 256, 8, 8, 1), labels.reshape(4, 256))
    optimizer = optax.adam(1e-3)

    @jax.jit
    def train(params):
        def step(carry, i):
            params, state = carry
            batch = jax.tree.map(lambda x: x[i % 4], batches)
            updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(80))[0][0]

    params = train(params)
    return Case(loss, params, batches, flatten_weights(params)[0].size, name)


def _network(name: str, key: Any, images: Any) -> tuple[Callable, Any]:
    if name == "tiny-digits":
        keys = jax.random.split(key, 2)
        params = {"hidden": jax.random.normal(keys[0], (64, 12)) / 8,
                  "out": jax.random.normal(keys[1], (12, 10)) / 4}  # fmt: skip

        def tiny(params, batch):
            return jnp.tanh(batch[0].reshape(len(batch[0]), -1) @ params["hidden"]) @ params["out"]

        return tiny, params
    module = models.create("fc5", num_classes=10) if name == "fc5-digits" else _convolutional()
    variables = module.init(key, images)
    return lambda params, batch: module.apply({"params": params}, batch[0]), variables["params"]


def _convolutional() -> Any:
    import flax.linen as nn

    layers = [nn.Conv(16, (3, 3)), nn.relu, nn.Conv(32, (3, 3), strides=2), nn.relu,
              lambda x: x.reshape(len(x), -1), nn.Dense(10)]  # fmt: skip
    return nn.Sequential(layers)


def _products(case: Case, own: Callable | None, key: Any) -> tuple[list[Row], str]:
    vector = jax.random.normal(key, (case.dim,))
    args = (case.loss, case.params, case.batches)
    ours: dict[str, Callable] = {
        f"jaxlimit, {mode}": jax.jit(curvature.hessian_matvec(*args, mode=mode))
        for mode in ("linearized", "forward-over-reverse")
    }
    weights, unflatten = flatten_weights(case.params)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), case.batches)
    plain = partial(_plain_product, case.loss, unflatten, weights, flat)
    calls = ours | {"jax.jvp of jax.grad, all at once": plain}
    reference, what = plain(vector), "jax.jvp of jax.grad in the same precision"
    if case.dim <= _DENSE:
        with jax.enable_x64(True):
            wide = lambda tree: jax.tree.map(lambda x: _wide(x), tree)  # noqa: E731
            hessian = _dense(case.loss, wide(case.params), wide(flat))
            reference = np.asarray(hessian) @ np.asarray(vector, np.float64)
        what = "the dense Hessian in float64"
    if own is not None:
        calls["yours"] = _checked(own(*args), case.dim, vector)

    def error(found):
        return float(np.linalg.norm(found - np.asarray(reference)) / np.linalg.norm(reference))

    rows = [Row(name, partial(call, vector), 1, error) for name, call in calls.items()]
    for name, (call, flat) in peer_rows.products(case, vector).items():
        rows.append(Row(name, call, 1, lambda found, flat=flat: error(flat(found))))
    return rows, what


# Data and weights are arguments: as constants they would be worked out by the compiler.
@partial(jax.jit, static_argnums=0)
def _plain_product(loss: Callable, unflatten: Any, weights: Any, batch: Any, vector: Any) -> Any:
    gradient = jax.grad(lambda w: loss(unflatten(w), batch))
    return jax.jvp(gradient, (weights,), (vector,))[1]


def _dense(loss: Callable, params: Any, batch: Any) -> Any:
    weights, unflatten = flatten_weights(params)
    return jax.jit(jax.hessian(lambda w: loss(unflatten(w), batch)))(weights)


def _wide(x: Any) -> Any:
    x = np.asarray(x)
    return jnp.asarray(x, jnp.float64) if x.dtype.kind == "f" else jnp.asarray(x)


def _checked(product: Callable, dim: int, vector: Any) -> Callable:
    if not callable(product):
        raise UsageError(f"--add must return a function v -> H v, got {type(product).__name__}")
    shape = jnp.shape(product(vector))
    if shape != (dim,):
        raise UsageError(f"the product of --add must return shape ({dim},), got {shape}")
    return product


def _traces(case: Case, own: Callable | None, key: Any) -> tuple[list[Row], str]:
    matvec = curvature.hessian_matvec(case.loss, case.params, case.batches)
    exact, what = _reference_trace(case, matvec)
    counts = 48
    calls: dict[str, Callable] = {
        "jaxlimit hutchinson": lambda: traces.hutchinson(
            matvec, key, dim=case.dim, num_matvecs=counts),
        "jaxlimit hutch_plus_plus": lambda: traces.hutch_plus_plus(
            matvec, key, dim=case.dim, num_matvecs=counts),
        "jaxlimit xtrace": lambda: traces.xtrace(matvec, key, dim=case.dim, num_matvecs=counts),
    }  # fmt: skip
    calls |= peer_rows.traces(matvec, key, case.dim, counts)

    def error(found):
        return abs(float(getattr(found, "value", found)) - exact) / abs(exact)

    return [*_rows(calls, counts, error), *_own_rows(own, matvec, key, case.dim, error)], what


def _rows(calls: dict[str, Callable], products: int, error: Callable) -> list[Row]:
    return [Row(name, call, products, error) for name, call in calls.items()]


def _own_rows(own: Any, matvec: Any, key: Any, dim: int, error: Callable) -> list[Row]:
    """Return the row of the user's own estimator, its products counted in a run of its own."""
    if own is None:
        return []
    counted = []

    def counting(vector: Any) -> Any:
        # Of an entry, so that it is called for each of the vectors under `vmap`.
        jax.debug.callback(lambda _: counted.append(1), vector[0])
        return matvec(vector)

    jax.block_until_ready(own(counting, key, dim))
    jax.effects_barrier()
    return [Row("yours", lambda: own(matvec, key, dim), len(counted), error)]


def _reference_trace(case: Case, matvec: Any) -> tuple[float, str]:
    if case.dim <= _DENSE:
        dense = jax.jit(jax.vmap(matvec))(jnp.eye(case.dim))
        return float(np.trace(np.asarray(dense, np.float64))), "the dense Hessian's diagonal"
    found = traces.hutchinson(matvec, jax.random.key(10**6), dim=case.dim, num_matvecs=1000)
    error = float(found.standard_error)
    return float(found.value), f"1,000 probes ± {error / abs(float(found.value)):.1%}"


def _spectra(case: Case, own: Callable | None, key: Any) -> tuple[list[Row], str]:
    """Compare tr |H|(|H| + c)⁻¹, with c a thousandth of the largest eigenvalue."""
    matvec = curvature.hessian_matvec(case.loss, case.params, case.batches)
    steps = min(48, case.dim)
    if case.dim <= _DENSE:
        dense = np.asarray(jax.jit(jax.vmap(matvec))(jnp.eye(case.dim)), np.float64)
        nodes, what = np.linalg.eigvalsh((dense + dense.T) / 2), "dense eigenvalues"
        weights = np.full(case.dim, 1 / case.dim)
    else:
        deep = spectrum.spectral_measure(matvec, jax.random.key(10**6), dim=case.dim,
                                         num_steps=_DEEP, num_probes=8)  # fmt: skip
        nodes, weights = np.asarray(deep.nodes), np.asarray(deep.weights) / 8
        what = f"8 probes of {_DEEP} steps"
    c = np.abs(nodes).max() / 1000
    of = lambda nodes, weights: float(np.sum(weights * np.abs(nodes) / (np.abs(nodes) + c)))  # noqa: E731
    exact = of(nodes, weights)
    calls = {
        "jaxlimit spectral_measure": lambda: spectrum.spectral_measure(
            matvec, key, dim=case.dim, num_steps=steps)
    }  # fmt: skip
    calls |= peer_rows.spectra(matvec, key, case.dim, steps)

    def error(found):
        x, w = (found.nodes, found.weights) if hasattr(found, "nodes") else found
        w = np.asarray(w, float)
        return abs(of(np.asarray(x, float), w / w.sum()) - exact) / exact

    return [*_rows(calls, steps, error), *_own_rows(own, matvec, key, case.dim, error)], what


_ROWS = {"product": _products, "trace": _traces, "spectrum": _spectra}

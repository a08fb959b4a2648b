"""Measure products and Lanczos on an accelerator, in one command, against the bars set for it.

python benchmarks/accelerator.py                # GPU or TPU: 10,000 images, half an hour at most
python benchmarks/accelerator.py --tiny         # a rehearsal of every line of it, on any machine

For FC5, VGG16, ResNet18 and ResNet50 on random images of CIFAR-10's shape: one Hessian product
(images a second, share of the measured matmul rate), Lanczos (products and steps, the time of
reorthogonalisation and its share of the measured copy bandwidth), and the kernels that take the
most time in a product. Then the whole prediction for ResNet18, and the peers where PyTorch has
them. The file is written again after every case, so that a run cut off keeps what it had.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import curvature, estimate_limit, flatten_weights, lanczos, models, planning, spectrum
from jaxlimit import training as train
from jaxlimit.lab import peers
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import kernel_times, time_in_turns

BARS = {
    "reorthogonalisation, of copy bandwidth": 0.70,
    "ResNet18 product, of matmul rate": 0.35,
    "ResNet18 prediction, seconds": 120.0,
}
DTYPES = {"float32": ("highest", None), "tf32": ("tensorfloat32", None),
          "bfloat16": ("highest", jnp.bfloat16)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure an accelerator."""

    models: tuple[str, ...] = ("fc5", "vgg16", "resnet18", "resnet50")
    num_images: int = 10_000
    batch_size: int = 500
    num_steps: int = 96
    """Lanczos depth, also of the prediction."""
    precision: str = "bfloat16"
    """Of the products that the bars are for: float32, tf32 or bfloat16."""
    matmul_size: int = 8192
    copy_bytes: int = 2**31
    repeats: int = 5
    peers: bool = True
    """Time PyHessian and curvlinops, too, where they can be imported."""
    tiny: bool = False
    """Rehearse: the same lines on narrow networks and few images. No figure of it means a thing."""
    output: Path = Path("benchmarks/results")

    def shrunk(self) -> "Config":
        """Return the settings of the rehearsal."""
        return dataclasses.replace(
            self, num_images=16, batch_size=8, num_steps=4, matmul_size=256, copy_bytes=2**22,
            repeats=1,
        )  # fmt: skip


NARROW = {
    "fc5": {"widths": (32, 16)},
    "vgg16": {"stages": ((8,), (8,))},
    "resnet18": {"width": 8},
    "resnet50": {"width": 8, "stage_sizes": (1, 1)},
}


def make_case(name: str, config: Config) -> tuple[Any, Any, Any, Any]:
    """Make a network as initialised, with random images: loss, parameters, batches, state."""
    fields = NARROW[name] if config.tiny else {}
    module = models.create(name, num_classes=10, **fields)
    shape = (config.num_images // config.batch_size, config.batch_size, 32, 32, 3)
    images = jax.random.normal(jax.random.key(0), shape)
    labels = jax.random.randint(jax.random.key(1), shape[:2], 0, 10)
    state = dict(module.init(jax.random.key(2), images[0, :1]))
    return train.make_loss(module), state.pop("params"), (images, labels), state


def rates(config: Config) -> dict[str, float]:
    """Measure matrix products a second in each precision, and bytes a second of a copy."""
    size = config.matmul_size
    calls: dict[str, Callable] = {}
    for name, (precision, dtype) in DTYPES.items():
        if name != "tf32" or jax.devices()[0].platform == "gpu":
            square = jnp.ones((size, size), dtype or jnp.float32)
            multiply = jax.jit(
                lambda a, precision=precision: jnp.matmul(
                    a, a, precision=precision, preferred_element_type=jnp.float32
                )
            )
            calls[name] = lambda multiply=multiply, square=square: multiply(square)
    source = jnp.ones(config.copy_bytes // 4)
    copy = jax.jit(lambda x: x + 1)
    calls["copy"] = lambda: copy(source)
    seconds = time_in_turns(calls, repeats=config.repeats)
    found = {n: 2 * size**3 / s["minimum"] for n, s in seconds.items() if n != "copy"}
    return found | {"copy": 2 * source.nbytes / seconds["copy"]["minimum"]}


def measure_product(case: tuple, config: Config, rate: dict[str, float]) -> dict[str, Any]:
    """Time a product in each precision, in the mode that the plan chooses."""
    loss, params, batches, state = case
    vector = spectrum.probe(jax.random.key(3), flatten_weights(params)[0].size)
    results: dict[str, Any] = {"dim": vector.size}
    for name, (precision, dtype) in DTYPES.items():
        if name not in rate:
            results[name] = "not available here"
            continue
        workload = planning.measure(loss, params, batches, state, product_dtype=dtype)
        modes = planning.MODES if dtype is None else ("linearized",)
        plan = planning.plan(workload, num_steps=config.num_steps, modes=modes)
        if not plan.fits:
            results[name] = {"plan": plan}
            continue
        with jax.default_matmul_precision(precision):
            matvec = curvature.hessian_matvec(*case[:3], state, mode=plan.mode, product_dtype=dtype)
            seconds = time_in_turns(
                {name: lambda matvec=matvec: matvec(vector)}, repeats=config.repeats
            )[name]
            flops = planning.count_flops(matvec, vector)
            kernels = kernel_times(lambda matvec=matvec: matvec(vector), top=5)
            cost = jax.jit(matvec).lower(vector).compile().cost_analysis() if not kernels else None
        results[name] = {
            "plan": plan,
            "seconds": seconds,
            "images_a_second": config.num_images / seconds["minimum"],
            "flops": flops,
            "share_of_matmul_rate": flops / seconds["minimum"] / rate[name],
            "top_kernels": kernels or {"no trace; the compiler's count": cost},
        }
    return results


def measure_lanczos(case: tuple, config: Config, rate: dict[str, float]) -> dict[str, Any]:
    """Time the steps of Lanczos with and without a basis, on a product that costs next to nothing.

    The basis is read twice for each of two projections; the difference to a run without
    reorthogonalisation is what that takes.
    """
    _, params, _, _ = case
    start = spectrum.probe(jax.random.key(4), flatten_weights(params)[0].size)
    matvec = jax.tree_util.Partial(jnp.multiply, jnp.linspace(-1, 1, start.size))
    depth = min(lanczos.WARM_UP, config.num_steps)
    calls = {
        mode: lambda mode=mode: (
            lanczos.tridiagonalize(
                matvec, start, num_steps=depth, reorthogonalize=mode, keep_basis=False
            )
            if mode == "none"
            else lanczos.tridiagonalize(matvec, start, num_steps=depth, reorthogonalize=mode)
        )
        for mode in ("none", "full")
    }
    seconds = time_in_turns(calls, repeats=config.repeats)
    projecting = (seconds["full"]["minimum"] - seconds["none"]["minimum"]) / depth
    read = 4 * depth * start.nbytes
    bandwidth = read / projecting if projecting > 0 else float("nan")
    return {
        "rows": depth,
        "seconds_a_step": projecting,
        "bytes_a_second": bandwidth,
        "share_of_copy_bandwidth": bandwidth / rate["copy"],
    }


def measure_spectrum(case: tuple, config: Config) -> dict[str, Any]:
    """Time stochastic Lanczos quadrature of one probe, compiled before."""
    loss, params, batches, state = case
    dim = flatten_weights(params)[0].size
    dtype = DTYPES[config.precision][1]
    with jax.default_matmul_precision(DTYPES[config.precision][0]):
        matvec = curvature.hessian_matvec(loss, params, batches, state, product_dtype=dtype)
        run = partial(spectrum.spectral_measure, dim=dim, num_steps=config.num_steps)
        key = jax.random.key(5)
        return time_in_turns({"slq": lambda: run(matvec, key).nodes}, repeats=1)["slq"]


def measure_prediction(config: Config) -> dict[str, Any]:
    """Time the whole prediction for ResNet18, compilation and ε included."""
    loss, params, batches, state = make_case("resnet18", config)
    began = time.perf_counter()
    with jax.default_matmul_precision(DTYPES[config.precision][0]):
        estimate = estimate_limit(
            loss, params, batches, state,
            key=jax.random.key(6),
            num_steps=config.num_steps,
            num_gap_steps=config.num_steps,
            product_dtype=DTYPES[config.precision][1],
        )  # fmt: skip
    return {"seconds": time.perf_counter() - began, "reasons": estimate.reasons}


def measure_peers(name: str, config: Config) -> Any:
    """Time the peers' products on the same device, where they and PyTorch can be imported.

    On one batch, which the peers hold with all that PyTorch keeps of it, in float32 on both sides.
    """
    try:
        torch = peers.peer("torch")
    except ImportError as error:
        return f"not available here: {error}"
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = jax.random.randint(jax.random.key(7), (config.batch_size, 32, 32, 3), 0, 256)
    labels = jax.random.randint(jax.random.key(8), (config.batch_size,), 0, 10)
    fields = NARROW[name] if config.tiny else {}
    problem = peers.problem_on(name, np.asarray(images), np.asarray(labels), **fields)
    problem = problem._replace(
        model=problem.model.to(device),
        torch_batch=tuple(tensor.to(device) for tensor in problem.torch_batch),
    )
    tensors = [tensor.to(device) for tensor in problem.torch_vector(problem.vector)]

    def waiting(product: Callable) -> Callable:
        def call() -> None:
            product(tensors)
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    matvec = peers.matvec(problem)
    makers: dict[str, Callable] = {
        "PyHessian": lambda: waiting(peers.pyhessian_product(peers.pyhessian_operator(problem))),
        "curvlinops": lambda: waiting(peers.curvlinops_product(problem)),
        "ours": lambda: lambda: matvec(problem.vector),
    }

    def timed(name: str) -> Any:
        return time_in_turns({name: makers[name]()}, repeats=config.repeats)[name]

    found = {name: attempt(partial(timed, name)) for name in makers}
    return {"dim": problem.dim, "num_images": config.batch_size} | found


def main(config: Config) -> None:
    """Measure case after case, writing as it goes, and hold the bars beside the figures."""
    config = config.shrunk() if config.tiny else config
    name = "accelerator_rehearsal" if config.tiny else "accelerator"
    content: dict[str, Any] = {
        "benchmark": name,
        "what_it_is": "a rehearsal on narrow networks: no figure means anything" if config.tiny
        else "measured",
        "settings": dataclasses.asdict(config) | {"output": None},
        "environment": environment(),
        "bars": BARS,
        "cases": {},
    }  # fmt: skip

    def keep(key: str, value: Any) -> None:
        content["cases"][key] = value
        write_json(config.output / f"{name}.json", content)
        console.print(f"{key}: done")

    rate = rates(config)
    keep("rates", rate)
    for model in config.models:
        case = make_case(model, config)
        steps: dict[str, Callable] = {
            "product": lambda case=case: measure_product(case, config, rate),
            "lanczos": lambda case=case: measure_lanczos(case, config, rate),
            "spectrum": lambda case=case: measure_spectrum(case, config),
        }
        for step, call in steps.items():
            keep(f"{model}, {step}", attempt(call))
    keep("resnet18, prediction", attempt(lambda: measure_prediction(config)))
    for model in ("fc5", "resnet18"):
        beside = (lambda model=model: measure_peers(model, config)) if config.peers else None
        keep(f"{model}, peers", attempt(beside) if beside else "not asked for")
    report(content, config)


def attempt(call: Callable) -> Any:
    """Return what a case gives, or in words why it gives nothing: no case ends the run."""
    try:
        return call()
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"


def report(content: dict[str, Any], config: Config) -> None:
    """Print each bar beside what was reached."""
    cases = content["cases"]

    def figure(case: str, *path: str) -> float:
        value = cases.get(case)
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return float("nan") if value is None else float(value)

    shares = [figure(f"{m}, lanczos", "share_of_copy_bandwidth") for m in config.models]
    shares = [share for share in shares if math.isfinite(share)]
    reached = {
        "reorthogonalisation, of copy bandwidth": max(shares, default=math.nan),
        "ResNet18 product, of matmul rate": figure(
            "resnet18, product", config.precision, "share_of_matmul_rate"
        ),
        "ResNet18 prediction, seconds": figure("resnet18, prediction", "seconds"),
    }
    for bar, wanted in BARS.items():
        console.print(f"{bar}: {reached[bar]:.3g}, bar {wanted:g}")
    if config.tiny:
        console.print("a rehearsal: the code ran, the figures mean nothing")


if __name__ == "__main__":
    main(tyro.cli(Config))
